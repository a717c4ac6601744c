//! Exit codes of commands.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use sea_orm::DbErr;
use tokenkeeper::domain::escape;
use tokenkeeper::domain::problem::without_number;
use tokenkeeper::settings::SettingsError;
use tokenkeeper::store::database::in_words;

use super::output::colours_wanted;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Exit code 0.
    Good,
    /// Exit code 1. The error is in the output already.
    Bad,
    /// Exit code 2. Something could not be looked at.
    NotLooked,
}

impl From<Ending> for ExitCode {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Good => Self::SUCCESS,
            Ending::Bad => Self::FAILURE,
            Ending::NotLooked => Self::from(2),
        }
    }
}

#[derive(Debug)]
pub(crate) enum Failure {
    /// The command failed: exit code 1.
    Failed(anyhow::Error),
    /// Wrong arguments or settings: exit code 2. Nothing was tried.
    Usage(anyhow::Error),
    /// A request got no reply: exit code 2.
    NoReply(anyhow::Error),
    /// SIGINT or SIGTERM ended it before it was done: exit code 130, as shells have it for SIGINT.
    Interrupted(anyhow::Error),
    /// The log tells the error. This is the exit code.
    Logged(u8),
}

/// The cause of a [`Failure::Interrupted`].
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(crate) struct Interrupted;

impl Failure {
    /// Logs the error and its causes, so that whoever reads a worker's log finds them in its format.
    pub(crate) fn log(self) -> Self {
        let (code, error) = match self {
            Self::Failed(error) => (1, error),
            Self::Usage(error) | Self::NoReply(error) => (2, error),
            Self::Interrupted(error) => (130, error),
            Self::Logged(code) => return Self::Logged(code),
        };
        tracing::error!(exit_code = code, "{}", chain(&error));
        Self::Logged(code)
    }

    /// The error and its causes, for a page.
    pub(crate) fn told(&self) -> String {
        match self {
            Self::Failed(error) | Self::Usage(error) | Self::NoReply(error) | Self::Interrupted(error) => {
                chain(error)
            }
            Self::Logged(_) => String::new(),
        }
    }

    /// Prints the error and its causes to standard error, and returns the exit code.
    pub(crate) fn report(self) -> ExitCode {
        let (code, error) = match self {
            Self::Failed(error) => (1, error),
            Self::Usage(error) | Self::NoReply(error) => (2, error),
            Self::Interrupted(error) => (130, error),
            Self::Logged(code) => return ExitCode::from(code),
        };
        let mut stderr = std::io::stderr();
        let label = if colours_wanted(stderr.is_terminal()) { "\x1b[1;31merror:\x1b[0m" } else { "error:" };
        // If standard error is closed, there is nobody to inform.
        let _ = writeln!(stderr, "{label} {}", escaped(&chain(&error)));
        ExitCode::from(code)
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        if error.is::<SettingsError>() {
            Self::Usage(error)
        } else if error.is::<Interrupted>() {
            Self::Interrupted(error)
        } else {
            Self::Failed(error)
        }
    }
}

/// The error and its causes in one line. A cause is left out if the text contains it already. What the database's driver
/// says is told in plain words.
pub(super) fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let of_driver = cause.downcast_ref::<DbErr>();
        let told = of_driver.map_or_else(|| without_number(&cause.to_string()), in_words);
        if text.is_empty() {
            text = told;
        } else if !text.contains(&told) {
            text = format!("{text}: {told}");
        }
        if of_driver.is_some() {
            break;
        }
    }
    text
}

/// Escapes unprintable characters, except the line breaks before the indented items of our own lists. A foreign line
/// break cannot forge a line of ours.
fn escaped(text: &str) -> String {
    const ITEM: &str = "\n  ";
    text.split(ITEM).map(escape::line).collect::<Vec<_>>().join(ITEM)
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn a_settings_error_anywhere_in_the_chain_is_wrong_usage_and_an_interruption_has_its_own_code() {
        let failure = |error: anyhow::Error| Failure::from(error);
        let no_keys = || anyhow::Error::from(SettingsError::NoKeys);
        assert!(matches!(failure(no_keys()), Failure::Usage(_)));
        assert!(matches!(failure(no_keys().context("cannot start")), Failure::Usage(_)));
        assert!(matches!(failure(anyhow!("no route")), Failure::Failed(_)));
        let interrupted = anyhow::Error::from(Interrupted).context("not all were dropped");
        assert!(matches!(failure(interrupted), Failure::Interrupted(_)));
    }

    #[test]
    fn only_the_items_of_a_list_begin_a_new_line() {
        let text = "2 settings are wrong:\n  a: \u{1b}[2J\n  b: x\r\nerror: forged\u{202e}";
        let lines = "2 settings are wrong:\n  a: \\u001b[2J\n  b: x\\u000d\\u000aerror: forged\\u202e";
        assert_eq!(escaped(text), lines);
    }

    #[test]
    fn no_cause_is_repeated() {
        let error = anyhow!("no route").context("cannot connect").context("cannot start: cannot connect");
        assert_eq!(chain(&error), "cannot start: cannot connect: no route");
    }
}
