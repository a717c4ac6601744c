//! The flag file's way into force, at start and whenever it changes.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::definition::check;
use super::flag_set::FlagSet;
use super::{FlagFile, Flags, FlagsError};

/// Follows the flag file.
#[must_use = "the flags stay as they are unless it runs"]
pub struct Reloader {
    flags: Flags,
    file: FlagFile,
    /// Text of the file whose flags are in force.
    in_force: Option<String>,
    /// Trouble that the last look met.
    met: Option<FlagsError>,
    /// Trouble that was told, until it is over.
    told: Option<FlagsError>,
}

/// What happened to the flags. It is in the log already; a metric may count it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlagsEvent {
    /// The file's flags are in force: it is new, changed, or mended.
    InForce,
    /// The file is broken or gone. The last good flags stay in force.
    Refused(FlagsError),
}

/// The content is read every time: the date and size of a file that Kubernetes mounts from a `ConfigMap` say
/// nothing when the link in its path moves to another version.
const LOOK_EVERY: Duration = Duration::from_millis(500);

impl Reloader {
    pub(super) async fn start(flags: Flags, file: &FlagFile) -> Result<Self, FlagsError> {
        let mut reloader = Self { flags, file: file.clone(), in_force: None, met: None, told: None };
        reloader.look().await?;
        Ok(reloader)
    }

    /// Runs until it is dropped. A change is in force within half a second, trouble is told within one.
    pub async fn run(mut self, mut on_event: impl FnMut(&FlagsEvent)) -> Infallible {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            if let Some(event) = self.follow().await {
                on_event(&event);
            }
        }
    }

    /// One look at the file, and what came of it.
    pub(super) async fn follow(&mut self) -> Option<FlagsEvent> {
        match self.look().await {
            Ok(is_new) => {
                self.met = None;
                let is_over = self.told.take().is_some();
                if is_over && !is_new {
                    tracing::info!(file = %self.file.path().display(), "the flag file is as it was before the trouble");
                }
                (is_new || is_over).then_some(FlagsEvent::InForce)
            }
            Err(trouble) => self.meet(trouble).map(FlagsEvent::Refused),
        }
    }

    /// The trouble, where it has to be told now: it was met twice, because an editor or a copy that is half way
    /// through the file is no trouble, and it was not told before.
    fn meet(&mut self, trouble: FlagsError) -> Option<FlagsError> {
        let lasts = self.met.as_ref().is_some_and(|met| met.is_like(&trouble));
        let is_told = self.told.as_ref().is_some_and(|told| told.is_like(&trouble));
        self.met = Some(trouble.clone());
        if !lasts || is_told {
            return None;
        }
        self.log(&trouble);
        self.told = Some(trouble.clone());
        Some(trouble)
    }

    /// Puts the file's flags in force where they are not; says whether they were not.
    async fn look(&mut self) -> Result<bool, FlagsError> {
        let path = self.file.path();
        let text = match tokio::fs::read_to_string(path).await {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return if self.may_be_missing() {
                    Ok(false)
                } else {
                    Err(FlagsError::Missing(path.to_owned()))
                };
            }
            Err(error) => {
                return Err(FlagsError::Unreadable { file: path.to_owned(), reason: error.to_string() });
            }
        };
        if self.in_force.as_ref() == Some(&text) {
            return Ok(false);
        }
        let checked = check(path, &text)?;
        self.flags.put_in_force(FlagSet::load(path, &text, &checked).await?);
        self.in_force = Some(text);
        tracing::info!(file = %path.display(), flags = checked.defined.join(", "), "feature flags are in force");
        for warning in checked.warnings {
            tracing::warn!(file = %path.display(), "{warning}");
        }
        Ok(true)
    }

    fn may_be_missing(&self) -> bool {
        matches!(self.file, FlagFile::Optional(_)) && self.in_force.is_none()
    }

    fn log(&self, trouble: &FlagsError) {
        let file = self.file.path().display();
        match trouble {
            FlagsError::Missing(_) => {
                tracing::warn!(%file, "the flag file is gone; the last good flags stay in force");
            }
            FlagsError::Unreadable { .. } | FlagsError::Definition { .. } | FlagsError::Provider { .. } => {
                tracing::error!(%file, error = %trouble, "the flag file is refused; the last good flags stay in force");
            }
        }
    }
}

impl FlagsError {
    /// What a provider or the system says may name a file that is called differently at every attempt.
    fn is_like(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Provider { .. }, Self::Provider { .. })) || self == other
    }
}
