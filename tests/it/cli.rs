//! The command line, as operators and their scripts meet it: exit codes, output, and no secret in either.

mod migrate;
mod provider;
mod request;
mod setup;
mod token;

use std::process::Stdio;

use serde_json::Value;
use tokenkeeper_testkit::program::Program;
use tokenkeeper_testkit::wait::{PATIENCE, within};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

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

    pub(crate) fn unset(mut self, variable: &str) -> Self {
        self.program.unset(variable);
        self
    }

    /// Writes a file into its folder.
    pub(crate) fn write(&self, name: &str, content: &str) {
        std::fs::write(self.folder.path().join(name), content).expect("write a file");
    }

    /// Runs a command without anything on its standard input.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Ended {
        self.run_with_input(arguments, "").await
    }

    pub(crate) async fn run_with_input(&self, arguments: &[&str], input: &str) -> Ended {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start tokenkeeper");
        let mut stdin = child.stdin.take().expect("it is piped");
        // A command that reads nothing may have ended already.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        let what = format!("`tokenkeeper {}` to end", arguments.join(" "));
        let output = within(&what, PATIENCE, child.wait_with_output()).await.expect("its output");
        Ended {
            code: output.status.code().expect("it ends by itself"),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.program.command();
        command.args(arguments);
        command
    }
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
        for secret in world.secrets() {
            let told = self.stdout.contains(&secret) || self.stderr.contains(&secret);
            assert!(!told, "a secret in the output: {self:?}");
        }
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
