//! A problem as an operator reads it: in one line, what is wrong, why, and what to do next.

use std::fmt;

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

#[cfg(test)]
mod tests {
    use super::*;

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
