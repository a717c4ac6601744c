//! The command line, as operators and their scripts meet it: exit codes, output, and no secret in either.

mod import;
mod migrate;
mod other_databases;
mod provider;
mod request;
mod setup;
mod token;

use std::process::Stdio;

use serde_json::Value;
use tokenkeeper_testkit::leaks::Leaks;
use tokenkeeper_testkit::program::{Program, write_private};
use tokenkeeper_testkit::wait::{PATIENCE, within};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use crate::harness::{World, process::program};

/// The command line, in a folder and an environment of its own.
pub(crate) struct Cli {
    program: Program,
    pub(crate) folder: tempfile::TempDir,
}

/// What a command left behind.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Cli {
    /// The command line of an operator of this world.
    pub(crate) fn of(world: &World) -> Self {
        Self::with(world.environment().clone())
    }

    /// A command line with nothing set but these environment variables.
    pub(crate) fn with(environment: impl IntoIterator<Item = (String, String)>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self { program: program(folder.path(), environment), folder }
    }

    pub(crate) fn set(mut self, variable: &str, value: &str) -> Self {
        self.program.set(variable, value);
        self
    }

    /// Has a shell run this line before each command: `umask`, `ulimit`.
    pub(crate) fn before(mut self, line: &str) -> Self {
        self.program.before(line);
        self
    }

    pub(crate) fn unset(mut self, variable: &str) -> Self {
        self.program.unset(variable);
        self
    }

    /// Writes a file into its folder.
    pub(crate) fn write(&self, name: &str, content: &str) {
        write_private(&self.folder.path().join(name), content).expect("write a file");
    }

    /// Runs a command in a terminal, with this line typed into it. What it prints all comes as its output.
    pub(crate) async fn run_in_terminal(&self, arguments: &[&str], typed: &str) -> Ended {
        let plain = self.command(arguments);
        let plain = plain.as_std();
        let quoted = [plain.get_program()].into_iter().chain(plain.get_args());
        let quoted: Vec<String> = quoted.map(|part| format!("'{}'", part.to_str().expect("UTF-8"))).collect();
        // `script` of util-linux gives it a terminal, and ends with its exit code.
        let mut command = Command::new("script");
        command.args(["-qec", &quoted.join(" "), "/dev/null"]).env_clear();
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.current_dir(plain.get_current_dir().expect("it has a folder of its own"));
        run(command, &format!("{typed}\n"), &arguments.join(" ")).await
    }

    /// Runs a script of the shell in which `$TOKENKEEPER` is the program, with a folder `disk` that is a disk of its own of this
    /// size, as `4m`. Nobody else sees it.
    pub(crate) async fn run_on_a_small_disk(&self, size: &str, script: &str) -> Ended {
        let plain = self.command(&[]);
        let plain = plain.as_std();
        std::fs::create_dir(self.folder.path().join("disk")).expect("a folder to mount on");
        let script = format!("mount -t tmpfs -o size={size} tmpfs disk\n{script}");
        // Of util-linux. Without rights of the system: the mount is in a namespace of its own.
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-ec", &script]).env_clear();
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env("TOKENKEEPER", plain.get_program()).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.current_dir(plain.get_current_dir().expect("it has a folder of its own"));
        run(command, "", "sh").await
    }

    /// Runs a command without anything on its standard input.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Ended {
        self.run_with_input(arguments, "").await
    }

    pub(crate) async fn run_with_input(&self, arguments: &[&str], input: &str) -> Ended {
        run(self.command(arguments), input, &arguments.join(" ")).await
    }

    /// Starts a command whose output is kept, to be signalled and waited for ([`ended`]).
    pub(crate) fn start(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("start tokenkeeper")
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.program.command();
        command.args(arguments);
        command
    }
}

async fn run(mut command: Command, input: &str, arguments: &str) -> Ended {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("it is piped");
    // A command that reads nothing may have ended already.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let what = format!("`tokenkeeper {arguments}` to end");
    within(&what, PATIENCE, ended(child)).await
}

/// Waits for what was started.
pub(crate) async fn ended(child: Child) -> Ended {
    let output = within("a command to end", PATIENCE, child.wait_with_output()).await.expect("its output");
    Ended {
        code: output.status.code().expect("it ends by itself"),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

/// Sends a signal: `INT`, `TERM`.
pub(crate) async fn signal(child: &Child, signal: &str) {
    let pid = child.id().expect("it runs").to_string();
    let sent = Command::new("kill").args(["-s", signal, &pid]).status().await.expect("run kill");
    assert!(sent.success());
}

impl Ended {
    /// It ended well.
    #[track_caller]
    pub(crate) fn good(self) -> Self {
        self.with_code(0)
    }

    #[track_caller]
    pub(crate) fn with_code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    /// Its error is this one.
    #[track_caller]
    pub(crate) fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "{self:?} does not say: {text}");
        self
    }

    /// Neither its output nor its error holds a secret of this world.
    #[track_caller]
    pub(crate) fn keeps_secrets_of(self, world: &World) -> Self {
        let output = format!("{}\n{}", self.stdout, self.stderr);
        assert_eq!(Leaks::of(world.secrets()).find(&output), None, "a secret in the output: {self:?}");
        self
    }

    /// The output as a table: the cells of each line. Columns are two blanks apart.
    pub(crate) fn table(&self) -> Vec<Vec<&str>> {
        let cells = |line| -> Vec<&str> {
            str::split(line, "  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()
        };
        self.stdout.lines().map(cells).collect()
    }

    /// The value behind a name, in a table of names and values.
    #[track_caller]
    pub(crate) fn value(&self, name: &str) -> &str {
        let line = self.table().into_iter().find(|cells| cells.first() == Some(&name));
        line.and_then(|cells| cells.get(1).copied()).unwrap_or_else(|| panic!("no {name} in {self:?}"))
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}
