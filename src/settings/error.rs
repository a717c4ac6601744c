use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::domain::problem::of_system;

/// Why the settings are unusable. Never holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error(
        "cannot read the settings file {}: {}; name another with --config or TOKENKEEPER_CONFIG",
        path.display(), of_system(error)
    )]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("{}, {error}", path.display())]
    Syntax { path: PathBuf, error: NotToml },
    #[error("the environment variable {0} is not UTF-8 text")]
    NotUnicode(String),
    /// The file and the environment cannot be merged.
    #[error("the settings cannot be put together: {0}")]
    Merge(#[from] config::ConfigError),
    /// All wrong settings.
    #[error("{}", all_of(.0))]
    Invalid(Vec<Problem>),
    #[error(
        "`encryption.keys` is not set: make a key with `tokenkeeper keys generate` and put it into the \
         environment variable TOKENKEEPER_KEYS, or into a file that `encryption.keys_file` names"
    )]
    NoKeys,
}

/// Where a text stops being TOML. The line itself may hold a secret, so no error repeats it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct NotToml {
    /// Counted from 1.
    line: usize,
    /// Counted from 1, in characters.
    column: usize,
    message: String,
}

/// One wrong setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `section.key`.
    pub key: String,
    pub source: Source,
    /// Says what would be right.
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Default,
    File(PathBuf),
    /// The environment variable of this name.
    Variable(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` ({}) {}", self.key, self.source, self.text)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Variable(name) => f.write_str(name),
        }
    }
}

impl NotToml {
    pub(super) fn new(text: &str, error: &toml::de::Error) -> Self {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message: error.message().to_owned(),
        }
    }
}

/// Every problem on a line of its own.
pub(super) fn all_of(problems: &[impl fmt::Display]) -> String {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    match &lines[..] {
        [problem] => problem.clone(),
        problems => format!("{} settings are wrong:\n  {}", problems.len(), problems.join("\n  ")),
    }
}
