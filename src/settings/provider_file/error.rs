use std::fmt;

use crate::settings::error::{NotToml, all_of};

/// Why a provider file cannot be applied. Never holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderFileError {
    #[error(transparent)]
    Syntax(#[from] NotToml),
    /// Settings are wrong: all of them.
    #[error("{}", all_of(.0))]
    Invalid(Vec<Problem>),
}

/// One wrong setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Which block, by its number and its host.
    pub block: String,
    pub key: String,
    /// What would be right.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: `{}` {}", self.block, self.key, self.text)
    }
}
