//! Events of refreshed pairs that could not be stored at once.

use std::error::Error;
use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

use metrics::{counter, describe_counter};
use tokio::time::Instant;

use super::repeated::Repeated;
use super::told::Told;
use super::{label, millis};
use crate::domain::problem::Problem;

const PARKED: &str = "tokenkeeper_parked_pairs_total";

label! {
    /// Label `step`.
    enum Step {
        Parked = "parked",
        /// In a file of the spool folder.
        Spooled = "spooled",
        Stored = "stored",
        /// Dropped, because a newer pair is stored.
        Superseded = "superseded",
        /// Kept in the dead letters or in its file.
        Unreadable = "unreadable",
    }
}

impl Step {
    fn count(self) {
        counter!(PARKED, "step" => self.name()).increment(1);
    }
}

/// Storing is tried again for as long as the process lives.
pub fn pair_not_stored(host: &str, error: &dyn Display, wait: Duration) {
    static TOLD: Repeated = Repeated::new();
    if let Some(kept_back) = TOLD.lets_through(&format_args!("{host}: {error}"), Instant::now()) {
        tracing::error!(host, %error, wait_ms = millis(wait), kept_back, "cannot store a refreshed pair; it will be retried");
    }
}

/// The worker stops, and the database does not accept the pair.
pub fn pair_parked(host: &str) {
    Step::Parked.count();
    tracing::warn!(host, "refreshed pair parked on the broker; any worker can store it");
}

/// The worker stops, and neither the database nor the broker accepts the pair.
pub fn pair_spooled(host: &str, error: &dyn Error, file: &Path) {
    Step::Spooled.count();
    let file = file.display();
    tracing::warn!(host, %error, %file, "refreshed pair written to the spool folder; start a worker with this folder to store it");
}

/// It is tried again until the process ends, and then the pair is lost.
pub fn pair_not_parked(host: &str, error: &dyn Error) {
    tracing::error!(host, %error, "cannot store or park a refreshed pair; it will be lost when this process ends");
}

pub fn parked_pair_stored(host: &str) {
    Step::Stored.count();
    tracing::info!(host, "parked pair stored");
}

pub fn parked_pair_superseded(host: &str) {
    Step::Superseded.count();
    tracing::info!(host, "parked pair dropped: a newer one is stored");
}

pub fn parked_pair_waits(host: &str, error: &dyn Display, wait: Duration) {
    static TOLD: Repeated = Repeated::new();
    if let Some(kept_back) = TOLD.lets_through(&format_args!("{host}: {error}"), Instant::now()) {
        tracing::warn!(host, %error, wait_ms = millis(wait), kept_back, "cannot store a parked pair; it will be retried");
    }
}

pub fn parked_pair_unreadable(host: &str, error: &dyn Display) {
    Step::Unreadable.count();
    tracing::error!(host, %error, "cannot read a parked pair; it is kept for an operator");
}

pub fn spool_unusable(path: &Path, error: &dyn Error) {
    let path = path.display();
    tracing::error!(%path, %error, "cannot read what is in the spool folder; check the folder's permissions");
}

/// A time in which nothing can be written to the spool folder. It is logged when it begins, once a minute, and when it is over.
#[derive(Debug)]
pub struct SpoolTrouble(Told);

impl SpoolTrouble {
    pub fn begin() -> Self {
        Self(Told::default())
    }

    /// Logs why, unless it was logged within the last minute.
    pub fn because(&mut self, problem: &Problem) {
        if self.0.is_due(problem, Instant::now()) {
            tracing::error!(error = %problem, "a pair that neither the database nor the broker takes would be lost");
        }
    }

    /// Files can be written there.
    pub fn end(self) {
        tracing::info!("the spool folder can be written again");
    }
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
