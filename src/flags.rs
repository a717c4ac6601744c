//! Feature flags: OpenFeature with the flagd provider on a file, reloaded when the file changes.
//!
//! ```text
//! flags.json ── poll ── check ── private copy ── flagd provider ── OpenFeature client ── FlagSet
//!                         └─ broken: logged once, the last good FlagSet stays in force
//! ```
//!
//! The provider can watch a file itself, but it wakes for every write in the file's folder, where SQLite may keep a
//! database. After 1000 of them it stops reloading, and it only logs that a file is broken. So each provider gets a
//! private copy that never changes, and a changed file gets a new provider. No evaluation sees half of a change, and
//! workers in one process do not share flags.

mod cache;
mod definition;
mod flag_set;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod reload;
#[cfg(test)]
mod tests;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flag_set::FlagSet;
use parking_lot::RwLock;
pub use reload::{FlagsEvent, Reloader};

use crate::domain::problem::Problem;

/// Whether a still valid token may be refreshed while nobody holds it. Boolean, on by default.
pub const OPPORTUNISTIC_TOKEN_REFRESH: &str = "opportunistic_token_refresh";

/// For how many minutes the tokens of a starting workspace must work. Integer, 1 to 1440, 10 by default.
pub const WORKSPACE_START_LIFETIME: &str = "workspace_start_scm_access_token_lifetime";

const DEFAULT_REFRESH: bool = true;
const DEFAULT_MINUTES: i64 = 10;
/// How long the tokens of a starting workspace work if neither its message nor a flag says it.
pub const DEFAULT_LIFETIME: Duration = Duration::from_mins(DEFAULT_MINUTES.unsigned_abs());
const LIFETIME_MINUTES: RangeInclusive<i64> = 1..=1440;

/// The file that flags are read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlagFile {
    /// Named by an operator: it must exist at start.
    Required(PathBuf),
    /// The default path: the file may be missing, and may appear at any time.
    Optional(PathBuf),
}

/// The flags in force. Clones are cheap and see every reload.
///
/// A flag without targeting costs nothing to evaluate. With targeting, the provider parses the rule each time: about
/// 10 µs for a short rule, 1 ms for a list of a thousand users. So ask only where the answer matters, once a request.
/// A rule's answer for a user is cached until the file changes, unless the rule reads the time.
#[derive(Clone)]
pub struct Flags {
    /// The lock is held only while the pointer is copied.
    current: Arc<RwLock<Arc<FlagSet>>>,
}

/// Why a flag file was not loaded. It is told as a [`Problem`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.problem())]
pub enum FlagsError {
    Missing(PathBuf),
    Unreadable {
        file: PathBuf,
        reason: String,
    },
    /// The file is not in flagd's format.
    Definition {
        file: PathBuf,
        /// Line and column, the path of the wrong key, or both.
        place: String,
        reason: String,
    },
    /// The file is valid, but the provider did not start.
    Provider {
        file: PathBuf,
        reason: String,
    },
}

impl FlagsError {
    pub fn problem(&self) -> Problem {
        match self {
            Self::Missing(file) => Problem::new(
                format!("there is no flag file {} (flags.file)", file.display()),
                "",
                "create it, or correct flags.file",
            ),
            Self::Unreadable { file, reason } => Problem::new(
                format!("cannot read the flag file {} (flags.file)", file.display()),
                reason,
                format!("ls -l {}, and let the user that runs tokenkeeper read it", file.display()),
            ),
            Self::Definition { file, place, reason } => Problem::new(
                format!("the flag file {} is wrong at {place} (flags.file)", file.display()),
                reason,
                "correct it there; flags.example.json is a good one",
            ),
            Self::Provider { file, reason } => Problem::new(
                format!("cannot load the flag file {} (flags.file)", file.display()),
                reason,
                "a writable temporary folder (TMPDIR), and free inotify instances (sysctl fs.inotify.max_user_instances)",
            ),
        }
    }
}

impl Flags {
    /// The defaults, which no file changes.
    pub fn defaults() -> Self {
        Self { current: Arc::new(RwLock::new(Arc::new(FlagSet::defaults()))) }
    }

    /// Loads `file`. The flags follow its changes while [`Reloader::run`] runs.
    ///
    /// # Errors
    /// The file is invalid, or it is [`FlagFile::Required`] and missing.
    pub async fn open(file: &FlagFile) -> Result<(Self, Reloader), FlagsError> {
        let flags = Self::defaults();
        let reloader = Reloader::start(flags.clone(), file).await?;
        Ok((flags, reloader))
    }

    /// Whether this user's token may be refreshed while it is still valid and nobody holds it.
    pub async fn opportunistic_token_refresh(&self, user_id: &str) -> bool {
        self.current().opportunistic_token_refresh(user_id).await
    }

    /// How long the tokens of a starting workspace must work if the message does not say.
    pub async fn workspace_start_lifetime(&self, user_id: &str) -> Duration {
        self.current().workspace_start_lifetime(user_id).await
    }

    fn current(&self) -> Arc<FlagSet> {
        Arc::clone(&self.current.read())
    }

    fn put_in_force(&self, flags: FlagSet) {
        let flags = Arc::new(flags);
        let before = {
            let mut current = self.current.write();
            std::mem::replace(&mut *current, flags)
        };
        // After the lock is released: this may stop a provider and delete its files.
        drop(before);
    }
}

impl FlagFile {
    pub fn path(&self) -> &Path {
        match self {
            Self::Required(path) | Self::Optional(path) => path,
        }
    }
}

/// The lifetime for a variant of [`WORKSPACE_START_LIFETIME`], or `None` if it is out of range.
fn lifetime_of(minutes: i64) -> Option<Duration> {
    LIFETIME_MINUTES.contains(&minutes).then(|| Duration::from_mins(minutes.unsigned_abs()))
}
