//! Events of pairs that could not be stored at once.

use std::error::Error;
use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

use metrics::{counter, describe_counter};

use super::millis;

const PARKED: &str = "tokenkeeper_parked_pairs_total";

/// Where a pair is, on its way to the database by another road: label `step`.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// On the queue of parked pairs.
    Parked,
    /// In a file of the spool folder.
    Spooled,
    /// In the database.
    Stored,
    /// Dropped, because a newer pair is there.
    Superseded,
    /// In the dead letters, or still in its file: it cannot be read.
    Unreadable,
}

impl Step {
    const ALL: [Self; 5] = [Self::Parked, Self::Spooled, Self::Stored, Self::Superseded, Self::Unreadable];

    const fn name(self) -> &'static str {
        match self {
            Self::Parked => "parked",
            Self::Spooled => "spooled",
            Self::Stored => "stored",
            Self::Superseded => "superseded",
            Self::Unreadable => "unreadable",
        }
    }

    fn count(self) {
        counter!(PARKED, "step" => self.name()).increment(1);
    }
}

/// A refreshed pair could not be stored; it is tried again for as long as the process lives.
pub fn pair_not_stored(host: &str, error: &dyn Display, wait: Duration) {
    tracing::error!(host, %error, wait_ms = millis(wait), "a refreshed pair is not stored yet");
}

/// The worker stops, the database does not take a pair, and the broker keeps it.
pub fn pair_parked(host: &str) {
    Step::Parked.count();
    tracing::warn!(host, "a refreshed pair is parked with the broker, for any worker to store");
}

/// The worker stops, neither the database nor the broker takes a pair, and a file keeps it.
pub fn pair_spooled(host: &str, error: &dyn Error, file: &Path) {
    Step::Spooled.count();
    let file = file.display();
    tracing::warn!(host, %error, %file, "a refreshed pair is in the spool folder, for the next worker that starts here");
}

/// Nothing takes a pair. It is tried again until the process ends, and then it is lost.
pub fn pair_not_parked(host: &str, error: &dyn Error) {
    tracing::error!(host, %error, "a refreshed pair can be neither stored nor parked");
}

/// A parked pair was stored.
pub fn parked_pair_stored(host: &str) {
    Step::Stored.count();
    tracing::info!(host, "a parked pair is stored");
}

/// A parked pair was dropped, because a newer one is there.
pub fn parked_pair_superseded(host: &str) {
    Step::Superseded.count();
    tracing::info!(host, "a newer pair is there; the parked one is dropped");
}

/// A parked pair waits for the database.
pub fn parked_pair_waits(host: &str, error: &dyn Display, wait: Duration) {
    tracing::warn!(host, %error, wait_ms = millis(wait), "a parked pair is not stored yet");
}

/// A parked pair cannot be read, and is kept for an operator.
pub fn parked_pair_unreadable(host: &str, error: &dyn Display) {
    Step::Unreadable.count();
    tracing::error!(host, %error, "a parked pair cannot be stored as things are; it is kept");
}

/// The spool folder, or a file in it, cannot be worked with.
pub fn spool_unusable(path: &Path, error: &dyn Error) {
    let path = path.display();
    tracing::error!(%path, %error, "cannot work with the spool folder (setting worker.spool_dir)");
}

pub(super) fn describe() {
    describe_counter!(
        PARKED,
        "Refreshed pairs that could not be stored before their worker stopped, by step."
    );
    for step in Step::ALL {
        counter!(PARKED, "step" => step.name()).absolute(0);
    }
}
