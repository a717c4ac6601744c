//! Feature flags: OpenFeature with the flagd provider on a file, reloaded when the file changes.
//!
//! ```text
//! flags.json ── poll ── check ── private copy ── flagd provider ── OpenFeature client ── FlagSet
//!                         └─ broken: told once, the last good FlagSet stays in force
//! ```
//!
//! The provider could watch the file by itself. It would wake for every write in the file's folder, where SQLite
//! may keep a database, and stop reloading after 1000 of them; and a broken file would be a line in its log and
//! nothing else. So it gets a copy that nobody changes, and a new provider takes over from the old one as a whole:
//! no evaluation ever meets half of a change, and workers in one process do not share flags.

mod definition;
mod flag_set;
mod reload;
mod remembered;
mod targeting;
#[cfg(test)]
mod tests;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flag_set::FlagSet;
use parking_lot::RwLock;
pub use reload::{FlagsEvent, Reloader};

/// Whether a still valid token may be refreshed while nobody holds it. Boolean, on by default.
pub const OPPORTUNISTIC_TOKEN_REFRESH: &str = "opportunistic_token_refresh";

/// For how many minutes the tokens of a starting workspace must work. Integer, 1 to 1440, 10 by default.
pub const WORKSPACE_START_LIFETIME: &str = "workspace_start_scm_access_token_lifetime";

const DEFAULT_REFRESH: bool = true;
const DEFAULT_MINUTES: i64 = 10;
const DEFAULT_LIFETIME: Duration = Duration::from_mins(DEFAULT_MINUTES.unsigned_abs());
const LIFETIME_MINUTES: RangeInclusive<i64> = 1..=1440;

/// The file that flags are read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlagFile {
    /// An operator named it: it must be there at start.
    Required(PathBuf),
    /// Where it is looked for by default: it may be missing, and appear at any time.
    Optional(PathBuf),
}

/// The flags in force. Clones are cheap and see every reload.
///
/// A flag without targeting costs nothing to ask for. With targeting the provider reads the rule anew each time: some
/// 10 µs for a short one, 1 ms for a list of a thousand users. So ask only where the answer matters, and once a request.
/// What a rule said of a user is remembered until the file changes, unless the rule may look at the time.
#[derive(Clone)]
pub struct Flags {
    /// Locked for as long as it takes to copy a pointer.
    current: Arc<RwLock<Arc<FlagSet>>>,
}

/// Why there are no flags to take over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlagsError {
    /// The file is not there.
    #[error("the flag file {} is not there; write it, or name another with `flags.file`", .0.display())]
    Missing(PathBuf),
    /// The file cannot be read.
    #[error("cannot read the flag file {}: {reason}", file.display())]
    Unreadable {
        /// The flag file.
        file: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The file does not define flags in flagd's format.
    #[error("the flag file {} is wrong at {place}: {reason}", file.display())]
    Definition {
        /// The flag file.
        file: PathBuf,
        /// Line and column, the path of the wrong key, or both.
        place: String,
        /// What is wrong there.
        reason: String,
    },
    /// The file is good and the provider did not start on it.
    #[error(
        "the flags of {} cannot be loaded: {reason}; the flagd provider needs a writable temporary folder \
         (TMPDIR) and a free inotify instance (fs.inotify.max_user_instances)",
        file.display()
    )]
    Provider {
        /// The flag file.
        file: PathBuf,
        /// What the provider or the system said.
        reason: String,
    },
}

impl Flags {
    /// The defaults, for ever.
    pub fn defaults() -> Self {
        Self { current: Arc::new(RwLock::new(Arc::new(FlagSet::defaults()))) }
    }

    /// Loads `file`. The flags follow its changes while [`Reloader::run`] runs.
    ///
    /// # Errors
    /// The file is broken, or it is [`FlagFile::Required`] and not there.
    pub async fn open(file: &FlagFile) -> Result<(Self, Reloader), FlagsError> {
        let flags = Self::defaults();
        let reloader = Reloader::start(flags.clone(), file).await?;
        Ok((flags, reloader))
    }

    /// Whether this user's token may be refreshed while it is still valid.
    pub async fn opportunistic_token_refresh(&self, user_id: &str) -> bool {
        self.current().opportunistic_token_refresh(user_id).await
    }

    /// For how long the tokens of a workspace that this user starts must work, where the message does not say.
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
        // Outside the lock: this may stop a provider and remove its files.
        drop(before);
    }
}

impl FlagFile {
    fn path(&self) -> &Path {
        match self {
            Self::Required(path) | Self::Optional(path) => path,
        }
    }
}

/// The lifetime that a variant of [`WORKSPACE_START_LIFETIME`] stands for; none where it is out of range.
fn lifetime_of(minutes: i64) -> Option<Duration> {
    LIFETIME_MINUTES.contains(&minutes).then(|| Duration::from_mins(minutes.unsigned_abs()))
}
