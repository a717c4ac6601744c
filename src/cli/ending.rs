//! How a command ends, as an exit code that scripts tell apart.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use tokenkeeper::domain::escape;
use tokenkeeper::settings::SettingsError;

use super::output::colours_wanted;

/// A command that ran to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// All is well: 0.
    Good,
    /// What came out is an error, and was printed already: 1.
    Bad,
}

impl From<Ending> for ExitCode {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Good => Self::SUCCESS,
            Ending::Bad => Self::FAILURE,
        }
    }
}

/// Why a command did not run to its end.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It was tried and did not work: 1.
    Failed(anyhow::Error),
    /// Wrong arguments or settings, so nothing was tried: 2.
    Usage(anyhow::Error),
    /// A request was not answered: 2.
    NoReply(anyhow::Error),
}

impl Failure {
    /// Prints the error with the chain of its causes to standard error, and gives the exit code.
    pub(crate) fn report(self) -> ExitCode {
        let (code, error) = match self {
            Self::Failed(error) => (1, error),
            Self::Usage(error) | Self::NoReply(error) => (2, error),
        };
        let mut stderr = std::io::stderr();
        let label = if colours_wanted(stderr.is_terminal()) { "\x1b[1;31merror:\x1b[0m" } else { "error:" };
        // Where standard error is gone there is nobody left to tell.
        let _ = writeln!(stderr, "{label} {}", escaped(&chain(&error)));
        ExitCode::from(code)
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        if error.is::<SettingsError>() { Self::Usage(error) } else { Self::Failed(error) }
    }
}

/// The error and its causes in one line. A cause that its effect has told already is not told again.
pub(super) fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Escapes what is unprintable, but for the line breaks before the items of our own lists, which are indented: what breaks a
/// line on its own account does not begin one that looks like ours.
fn escaped(text: &str) -> String {
    const ITEM: &str = "\n  ";
    text.split(ITEM).map(escape::line).collect::<Vec<_>>().join(ITEM)
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn wrong_settings_are_wrong_usage_however_deep_they_are_found() {
        let failure = |error: anyhow::Error| Failure::from(error);
        let no_keys = || anyhow::Error::from(SettingsError::NoKeys);
        assert!(matches!(failure(no_keys()), Failure::Usage(_)));
        assert!(matches!(failure(no_keys().context("cannot start")), Failure::Usage(_)));
        assert!(matches!(failure(anyhow!("no route")), Failure::Failed(_)));
    }

    #[test]
    fn an_error_breaks_no_line_but_between_the_items_of_a_list() {
        let text = "2 settings are wrong:\n  a: \u{1b}[2J\n  b: x\r\nerror: forged\u{202e}";
        let lines = "2 settings are wrong:\n  a: \\u001b[2J\n  b: x\\u000d\\u000aerror: forged\\u202e";
        assert_eq!(escaped(text), lines);
    }

    #[test]
    fn the_chain_of_causes_is_told_once() {
        let error = anyhow!("no route").context("cannot connect").context("cannot start: cannot connect");
        assert_eq!(chain(&error), "cannot start: cannot connect: no route");
    }
}
