//! `tokenkeeper login`: a user logs in at the simulated host, a worker stores the pair, and requests get its token.

mod code;
mod device;
mod page;
mod servers;

use std::net::TcpListener;

use tokenkeeper_testkit::wait::{PATIENCE, within};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};

use crate::cli::{Cli, Ended};
use crate::harness::{Dialect, Kind, ScmOptions, World};

/// A command that waits for a person.
struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// What it has printed so far.
    printed: String,
}

impl Running {
    fn start(cli: &Cli, arguments: &[&str]) -> Self {
        let mut child = cli.start(arguments);
        let stdout = child.stdout.take().expect("it is piped");
        Self { child, lines: BufReader::new(stdout).lines(), printed: String::new() }
    }

    /// Reads on until a line that has this text; gives back that line.
    async fn line_with(&mut self, text: &str) -> String {
        self.line(text, |line| line.contains(text)).await
    }

    async fn line(&mut self, text: &str, is_it: impl Fn(&str) -> bool) -> String {
        let found = async {
            while let Some(line) = self.lines.next_line().await.expect("its output") {
                self.printed.push_str(&line);
                self.printed.push('\n');
                if is_it(&line) {
                    return Some(line);
                }
            }
            None
        };
        let found = within(&format!("a line with {text:?}"), PATIENCE, found).await;
        if let Some(line) = found {
            return line;
        }
        let mut stderr = String::new();
        let mut pipe = self.child.stderr.take().expect("it is piped");
        pipe.read_to_string(&mut stderr).await.expect("its error");
        panic!("it ended without {text:?}:\n{}\n{stderr}", self.printed)
    }

    /// The page that it tells a person to open.
    async fn page(&mut self) -> String {
        self.line("a page to open", |line| line.starts_with("  http")).await.trim().to_owned()
    }

    /// Waits until it has ended.
    async fn ended(mut self) -> Ended {
        while let Some(line) =
            within("its output", PATIENCE, self.lines.next_line()).await.expect("its output")
        {
            self.printed.push_str(&line);
            self.printed.push('\n');
        }
        let rest = crate::cli::ended(self.child).await;
        Ended { stdout: self.printed, ..rest }
    }
}

/// A port of this machine that nobody listens on.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// A world whose host sends browsers back to a port of this machine, and that URI.
async fn world_with_redirect(dialect: Dialect) -> (World, String) {
    let redirect = format!("http://127.0.0.1:{}/callback", free_port());
    let redirect_uri = dialect.wants_redirect_uri().then(|| redirect.clone());
    let world = World::with_scm(Kind::Sqlite, ScmOptions { redirect_uri, ..ScmOptions::new(dialect) }).await;
    world.scm.register_redirect(&redirect);
    (world, redirect)
}

/// The port of a redirect URI.
fn port_of(redirect: &str) -> String {
    let url = url::Url::parse(redirect).expect("a URL");
    url.port().expect("a port").to_string()
}
