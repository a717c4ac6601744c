//! The real `git`, as a user has it, apart from the user's settings.

use std::{fmt, io, path::Path, process::Stdio};

use tokio::process::Command;

/// Why a clone failed.
#[derive(Debug)]
pub struct CloneError {
    /// git's exit code; `None` where a signal ended it.
    pub exit_code: Option<i32>,
    /// What git said.
    pub stderr: String,
}

impl fmt::Display for CloneError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { exit_code, stderr } = self;
        match exit_code {
            Some(code) => write!(f, "git clone ended with code {code}: {stderr}"),
            None => write!(f, "git clone was ended by a signal: {stderr}"),
        }
    }
}

impl std::error::Error for CloneError {}

/// Clones `url`, which carries its credentials, into the folder `destination`.
///
/// git asks nobody for a password and uses no credential helper, so that the token in the URL decides alone.
/// The clone is killed when this future is dropped.
pub async fn git_clone(url: &str, destination: &Path) -> Result<(), CloneError> {
    let mut command = Command::new("git");
    let output = isolate(&mut command)
        .args(["-c", "credential.helper=", "-c", "http.extraHeader=", "-c", "http.proxy="])
        .args(["clone", "--quiet", url])
        .arg(destination)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .expect("start git: is it installed?");
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(CloneError { exit_code: output.status.code(), stderr })
}

/// Runs a git command that has to work, with `input` on its stdin.
pub(super) async fn git(folder: &Path, arguments: &[&str], input: Vec<u8>) -> io::Result<()> {
    let mut command = Command::new("git");
    let mut process = isolate(&mut command)
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = process.stdin.take().expect("git's stdin");
    tokio::io::copy(&mut input.as_slice(), &mut stdin).await?;
    drop(stdin);
    let status = process.wait().await?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("git {arguments:?}: {status}"))) }
}

/// Keeps the settings and the language of the person who runs the test out of a git command.
pub(super) fn isolate(command: &mut Command) -> &mut Command {
    for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_CONFIG_PARAMETERS", "GIT_ASKPASS"] {
        command.env_remove(variable);
    }
    command
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("LC_ALL", "C")
        .env("NO_PROXY", "127.0.0.1")
        .env("no_proxy", "127.0.0.1")
}
