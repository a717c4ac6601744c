//! What one check of `tokenkeeper doctor` found.

use super::problem::Problem;

/// One check, and how it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at, in a word or two.
    pub check: String,
    pub verdict: Verdict,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be, and how it is in a few words.
    Good(String),
    /// It works, and somebody should look at it.
    Warning(Problem),
    Wrong(Problem),
    /// It could not be looked at: why.
    NotLooked(String),
}

impl Finding {
    pub fn new(check: impl Into<String>, verdict: Verdict) -> Self {
        Self { check: check.into(), verdict }
    }

    pub fn good(check: impl Into<String>, how: impl Into<String>) -> Self {
        Self::new(check, Verdict::Good(how.into()))
    }

    pub fn warning(check: impl Into<String>, problem: Problem) -> Self {
        Self::new(check, Verdict::Warning(problem))
    }

    pub fn wrong(check: impl Into<String>, problem: Problem) -> Self {
        Self::new(check, Verdict::Wrong(problem))
    }

    pub fn not_looked(check: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(check, Verdict::NotLooked(why.into()))
    }
}
