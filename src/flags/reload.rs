//! Loads the flag file at start and whenever it changes.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::definition::check;
use super::flag_set::FlagSet;
use super::{FlagFile, Flags, FlagsError};
use crate::domain::problem::of_system;

#[must_use = "flags are reloaded only while it runs"]
pub struct Reloader {
    flags: Flags,
    file: FlagFile,
    /// The text of the flags in force.
    in_force: Option<String>,
    /// What in this text does not hold.
    warnings: Vec<String>,
    /// The error of the last poll.
    last_error: Option<FlagsError>,
    /// The error that was reported, until it is resolved.
    reported: Option<FlagsError>,
}

/// A change of the flags. It is logged already; a metric may count it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlagsEvent {
    /// The file is new, changed or repaired, and its flags are in force.
    InForce,
    /// The file is invalid or missing. The last good flags stay in force.
    Refused(FlagsError),
}

/// Each poll reads the whole file: the date and size of a file that Kubernetes mounts from a `ConfigMap` do not
/// show that a link in its path points to another version now.
const POLL_EVERY: Duration = Duration::from_millis(500);

impl Reloader {
    pub(super) async fn start(flags: Flags, file: &FlagFile) -> Result<Self, FlagsError> {
        let mut reloader = Self {
            flags,
            file: file.clone(),
            in_force: None,
            warnings: Vec::new(),
            last_error: None,
            reported: None,
        };
        reloader.load().await?;
        Ok(reloader)
    }

    /// What in the file does not hold. None: there is no file.
    pub fn warnings(&self) -> Option<&[String]> {
        self.in_force.as_ref().map(|_| &*self.warnings)
    }

    /// Runs until it is dropped. A change is in force within half a second; an error is reported within one.
    pub async fn run(mut self, mut on_event: impl FnMut(&FlagsEvent)) -> Infallible {
        let mut polls = interval(POLL_EVERY);
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            polls.tick().await;
            if let Some(event) = self.poll().await {
                on_event(&event);
            }
        }
    }

    pub(super) async fn poll(&mut self) -> Option<FlagsEvent> {
        match self.load().await {
            Ok(is_new) => {
                self.last_error = None;
                let is_resolved = self.reported.take().is_some();
                if is_resolved && !is_new {
                    tracing::info!(file = %self.file.path().display(), "the flag file is back and unchanged");
                }
                (is_new || is_resolved).then_some(FlagsEvent::InForce)
            }
            Err(error) => self.report(error).map(FlagsEvent::Refused),
        }
    }

    /// The error, if it is to be reported now: it was seen twice in a row, because an editor may be in the middle
    /// of writing the file, and it was not reported before.
    fn report(&mut self, error: FlagsError) -> Option<FlagsError> {
        let lasts = self.last_error.as_ref().is_some_and(|last| last.is_like(&error));
        let is_reported = self.reported.as_ref().is_some_and(|reported| reported.is_like(&error));
        self.last_error = Some(error.clone());
        if !lasts || is_reported {
            return None;
        }
        self.log(&error);
        self.reported = Some(error.clone());
        Some(error)
    }

    /// Puts the file's flags in force if they changed, and returns whether they did.
    async fn load(&mut self) -> Result<bool, FlagsError> {
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
                return Err(FlagsError::Unreadable { file: path.to_owned(), reason: of_system(&error) });
            }
        };
        if self.in_force.as_ref() == Some(&text) {
            return Ok(false);
        }
        let checked = check(path, &text)?;
        self.flags.put_in_force(FlagSet::load(path, &text, &checked).await?);
        self.in_force = Some(text);
        tracing::info!(file = %path.display(), flags = checked.defined.join(", "), "feature flags are in force");
        for warning in &checked.warnings {
            tracing::warn!(file = %path.display(), "{warning}");
        }
        self.warnings = checked.warnings;
        Ok(true)
    }

    fn may_be_missing(&self) -> bool {
        matches!(self.file, FlagFile::Optional(_)) && self.in_force.is_none()
    }

    fn log(&self, error: &FlagsError) {
        let file = self.file.path().display();
        match error {
            FlagsError::Missing(_) => {
                tracing::warn!(%file, "the flag file is missing; the last good flags stay in force");
            }
            FlagsError::Unreadable { .. } | FlagsError::Definition { .. } | FlagsError::Provider { .. } => {
                tracing::error!(%file, %error, "the flag file is not usable; the last good flags stay in force");
            }
        }
    }
}

impl FlagsError {
    /// A provider's error may name its private copy, whose name differs at every attempt.
    fn is_like(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Provider { .. }, Self::Provider { .. })) || self == other
    }
}
