//! The command that prints the encryption keys: the client of a KMS or a vault.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use zeroize::Zeroizing;

use crate::domain::escape;
use crate::domain::problem::of_system;

/// The most that it may print, in bytes. A key takes some 60.
const MAX_OUTPUT: usize = 64 * 1024;

/// How often to look whether a command has ended that has closed its output.
const LOOK: Duration = Duration::from_millis(10);

/// Why the command brought no keys. Repeats neither its output nor its arguments: both may be secrets.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeysCommandError {
    #[error("must name a program")]
    Empty,
    #[error("cannot start {program}: {}", of_system(error))]
    NotStarted { program: String, error: io::Error },
    #[error("{program} ended with {status}; run it by hand to see why")]
    Failed { program: String, status: ExitStatus },
    #[error("{program} did not end within {} s, and was killed (encryption.keys_command_timeout_secs)", limit.as_secs())]
    TooSlow { program: String, limit: Duration },
    #[error("{program} printed more than 64 KiB, and was killed; it must print the keys alone")]
    TooLong { program: String },
    #[error("what {program} prints cannot be read: {error}")]
    Unreadable { program: String, error: io::Error },
    #[error("what {program} prints is not UTF-8")]
    NotText { program: String },
}

/// Runs a program and its arguments once, without a shell and without input, and gives back what it printed. Its errors go
/// nowhere: a line that is not ours has no place in a log, and may hold a secret.
///
/// # Errors
/// [`KeysCommandError`]. Nothing of the command runs any more then.
pub(super) fn run(command: &[String], limit: Duration) -> Result<Zeroizing<String>, KeysCommandError> {
    let [program, arguments @ ..] = command else { return Err(KeysCommandError::Empty) };
    let name = || escape::line(program).into_owned();
    let until = Instant::now() + limit;
    let started = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // What it starts itself is in its group, and ends with it.
        .process_group(0)
        .spawn();
    let child = started.map_err(|error| KeysCommandError::NotStarted { program: name(), error })?;
    let mut running = Running { child, is_over: false };
    let output = match running.output(limit) {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(KeysCommandError::Unreadable { program: name(), error }),
        Err(_) => return Err(KeysCommandError::TooSlow { program: name(), limit }),
    };
    if output.len() > MAX_OUTPUT {
        return Err(KeysCommandError::TooLong { program: name() });
    }
    match running.end(until) {
        Some(status) if status.success() => {}
        Some(status) => return Err(KeysCommandError::Failed { program: name(), status }),
        None => return Err(KeysCommandError::TooSlow { program: name(), limit }),
    }
    let text = str::from_utf8(&output).map_err(|_| KeysCommandError::NotText { program: name() })?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// A command that is killed when it is dropped, with all that it started.
struct Running {
    child: Child,
    is_over: bool,
}

type Output = io::Result<Zeroizing<Vec<u8>>>;

impl Running {
    /// What it prints, to the end or to one byte more than it may. On a thread: reading has no time limit.
    fn output(&mut self, limit: Duration) -> Result<Output, mpsc::RecvTimeoutError> {
        let (send, received) = mpsc::channel();
        if let Some(stdout) = self.child.stdout.take() {
            thread::spawn(move || {
                // A buffer that does not grow: growing leaves copies behind.
                let mut output = Zeroizing::new(Vec::with_capacity(MAX_OUTPUT + 2));
                let most = u64::try_from(MAX_OUTPUT + 1).unwrap_or(u64::MAX);
                let read = stdout.take(most).read_to_end(&mut output);
                // Nobody waits any more once the time is over.
                let _ = send.send(read.map(|_| output));
            });
        }
        received.recv_timeout(limit)
    }

    /// How it ended. `None`: it did not in time.
    fn end(&mut self, until: Instant) -> Option<ExitStatus> {
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                self.is_over = true;
                return Some(status);
            }
            if Instant::now() >= until {
                return None;
            }
            thread::sleep(LOOK);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        // It fails for a group that is gone, which is what is wanted.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Result<Zeroizing<String>, KeysCommandError> {
        run(&["sh".to_owned(), "-c".to_owned(), script.to_owned()], limit)
    }

    #[test]
    fn its_output_is_the_keys() {
        assert_eq!(*shell("echo k1:key", Duration::from_secs(60)).unwrap(), "k1:key\n");
    }

    #[test]
    fn a_command_that_fails_is_told_with_its_status_and_without_its_output() {
        let error = shell("echo s3cret; echo s3cret >&2; exit 3", Duration::from_secs(60)).unwrap_err();
        assert_eq!(error.to_string(), "sh ended with exit status: 3; run it by hand to see why");
        let error = run(&["/none/tokenkeeper-kms".to_owned()], Duration::from_secs(60)).unwrap_err();
        assert_eq!(error.to_string(), "cannot start /none/tokenkeeper-kms: No such file or directory");
    }

    #[test]
    fn a_command_that_hangs_is_killed_with_what_it_started() {
        for script in ["sleep 600", "sleep 600 & wait", "exec >&-; sleep 600"] {
            let begin = Instant::now();
            let error = shell(script, Duration::from_millis(200)).unwrap_err();
            assert!(matches!(error, KeysCommandError::TooSlow { .. }), "{script}: {error}");
            assert!(begin.elapsed() < Duration::from_secs(60), "{script} was waited for");
        }
    }

    #[test]
    fn a_command_that_prints_without_end_is_killed() {
        let error = shell("while :; do echo s3cret; done", Duration::from_secs(60)).unwrap_err();
        assert!(matches!(error, KeysCommandError::TooLong { .. }), "{error}");
    }
}
