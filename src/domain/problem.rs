//! A problem as an operator reads it: in one line, what is wrong, why, and what to do next.

use std::fmt;
use std::io;

/// Something that keeps a worker or a command from doing its job. All parts are plain words of ours, without the inner words
/// of a library and without a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong, and where: the setting or the object, as `the broker refuses the password (broker.url)`.
    pub what: String,
    /// What probably caused it. Empty where `what` says it all.
    pub cause: String,
    /// The next command or change, as `rabbitmqctl set_permissions …`.
    pub next: String,
}

impl Problem {
    pub fn new(what: impl Into<String>, cause: impl Into<String>, next: impl Into<String>) -> Self {
        Self { what: what.into(), cause: cause.into(), next: next.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if !self.cause.is_empty() {
            write!(f, ": {}", self.cause)?;
        }
        write!(f, "; next: {}", self.next)
    }
}

impl std::error::Error for Problem {}

/// A system's error in its plain words, without the number behind them: `Permission denied`.
pub fn of_system(error: &io::Error) -> String {
    without_number(&error.to_string())
}

/// Cuts what the standard library puts behind a system's error: ` (os error 13)`.
pub fn without_number(text: &str) -> String {
    match text.rsplit_once(" (os error ") {
        Some((words, number)) if number.ends_with(')') => words.to_owned(),
        _ => text.to_owned(),
    }
}

/// Fails if the table "First errors" of docs/operating.md does not have this event with this text.
#[cfg(test)]
pub(crate) fn documented(event: &str, problem: &Problem) {
    let row = format!("| {event} | {problem} |");
    let documentation = include_str!("../../docs/operating.md");
    assert!(documentation.contains(&row), "docs/operating.md, First errors, lacks the row:\n{row}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_systems_error_is_told_without_its_number() {
        assert_eq!(of_system(&io::Error::from_raw_os_error(13)), "Permission denied");
        assert_eq!(without_number("a name (os error"), "a name (os error");
    }

    #[test]
    fn a_problem_is_one_line_with_its_cause_and_the_next_command() {
        let problem = Problem::new("no database (database.url)", "nothing listens there", "start PostgreSQL");
        assert_eq!(
            problem.to_string(),
            "no database (database.url): nothing listens there; next: start PostgreSQL"
        );
        let plain = Problem { cause: String::new(), ..problem };
        assert_eq!(plain.to_string(), "no database (database.url); next: start PostgreSQL");
    }
}
