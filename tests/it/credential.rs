//! `tokenkeeper credential`: git gets its tokens through the queue, by itself.

mod cloning;
mod talking;

use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;

use crate::cli::{Cli, Ended, ended};
use crate::harness::{Dialect, Kind, World};

/// The settings of git of a person who uses the helper: in a home of its own.
struct Git<'a> {
    cli: &'a Cli,
}

impl<'a> Git<'a> {
    /// With these helpers, in this order.
    fn with_helpers(cli: &'a Cli, helpers: &[&str]) -> Self {
        let lines: Vec<String> = helpers.iter().map(|helper| format!("\thelper = \"{helper}\"\n")).collect();
        let allowed = "[protocol \"file\"]\n\tallow = always\n";
        cli.write("gitconfig", &format!("[credential]\n{}{allowed}", lines.concat()));
        Self { cli }
    }

    /// As the documentation says it.
    fn new(cli: &'a Cli) -> Self {
        Self::with_helpers(cli, &["!tokenkeeper credential"])
    }

    fn set(&self, section: &str) {
        let path = self.cli.folder.path().join("gitconfig");
        let config = std::fs::read_to_string(&path).unwrap() + section;
        std::fs::write(path, config).unwrap();
    }

    /// A git command in the folder, with its output.
    async fn run_in(&self, folder: &Path, arguments: &[&str], input: &str) -> Ended {
        let mut command = self.command(folder, arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("start git");
        let mut stdin = child.stdin.take().unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stdin, input.as_bytes()).await.expect("git reads");
        drop(stdin);
        ended(child).await
    }

    async fn run(&self, arguments: &[&str]) -> Ended {
        self.run_in(self.cli.folder.path(), arguments, "").await
    }

    fn command(&self, folder: &Path, arguments: &[&str]) -> Command {
        let plain = self.cli.command(&[]);
        let program = Path::new(env!("CARGO_BIN_EXE_tokenkeeper"));
        let bin = self.cli.folder.path().join("bin");
        if std::fs::create_dir(&bin).is_ok() {
            std::os::unix::fs::symlink(program, bin.join("tokenkeeper")).unwrap();
            std::os::unix::fs::symlink(program, bin.join("git-credential-tokenkeeper")).unwrap();
        }
        let mut command = Command::new("git");
        command.args(arguments).current_dir(folder).kill_on_drop(true).env_clear();
        command.envs(plain.as_std().get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
            .env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", bin.display()))
            .env("HOME", self.cli.folder.path())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", self.cli.folder.path().join("gitconfig"))
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("LC_ALL", "C")
            .env("NO_PROXY", "127.0.0.1");
        command
    }
}

/// A person of this world, with the helper's user in the environment.
fn cli_of(world: &World, user: &str) -> Cli {
    Cli::of(world).set("TOKENKEEPER_USER", user)
}

/// What git says to a helper about a host of the tests.
fn question(host: &str) -> String {
    format!("protocol=http\nhost={host}\n")
}
