use std::fmt;

/// Why a provider file cannot be applied. Never holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderFileError {
    /// It is not TOML.
    #[error("line {line}, column {column}: {message}")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// Counted from 1, in characters.
        column: usize,
        /// What is wrong there, without the text of the line, which may hold a secret.
        message: String,
    },
    /// Settings are wrong: all of them.
    #[error("{}", list(.0))]
    Invalid(Vec<Problem>),
}

/// One wrong setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Which block, by its number and its host.
    pub block: String,
    /// Which key in it.
    pub key: String,
    /// What would be right.
    pub text: String,
}

impl ProviderFileError {
    pub(super) fn syntax(text: &str, error: &toml::de::Error) -> Self {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self::Syntax {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message: error.message().to_owned(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: `{}` {}", self.block, self.key, self.text)
    }
}

fn list(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
    match &lines[..] {
        [problem] => problem.clone(),
        problems => format!("{} settings are wrong:\n  {}", problems.len(), problems.join("\n  ")),
    }
}
