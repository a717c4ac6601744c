use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why there are no settings to work with. Never holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The settings file cannot be read.
    #[error(
        "cannot read the settings file {}: {error}; name another with --config or TOKENKEEPER_CONFIG",
        path.display()
    )]
    Unreadable {
        /// The settings file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The settings file is not TOML.
    #[error("{}, line {line}, column {column}: {message}", path.display())]
    Syntax {
        /// The settings file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Counted from 1, in characters.
        column: usize,
        /// What is wrong there, without the text of the line, which may hold a password.
        message: String,
    },
    /// An environment variable is not UTF-8.
    #[error("the environment variable {0} is not UTF-8 text")]
    NotUnicode(String),
    /// The file and the environment do not make one set of values.
    #[error("the settings cannot be put together: {0}")]
    Merge(#[from] config::ConfigError),
    /// Settings are wrong: all of them.
    #[error("{}", list(.0))]
    Invalid(Vec<Problem>),
    /// A command needs the encryption keys and there are none.
    #[error(
        "`encryption.keys` is not set: make a key with `tokenkeeper keys generate` and put it into the \
         environment variable TOKENKEEPER_KEYS, or into a file that `encryption.keys_file` names"
    )]
    NoKeys,
}

/// One wrong setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `section.key`.
    pub key: String,
    /// Where its value comes from.
    pub source: Source,
    /// What would be right.
    pub text: String,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nobody set it.
    Default,
    /// The settings file.
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

fn list(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
    match &lines[..] {
        [problem] => format!("a setting is wrong: {problem}"),
        problems => format!("{} settings are wrong:\n  {}", problems.len(), problems.join("\n  ")),
    }
}
