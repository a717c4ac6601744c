//! Events of housekeeping.

use std::fmt::Display;

use metrics::{counter, describe_counter};

const PASSES: &str = "tokenkeeper_housekeeping_passes_total";
const ENTRIES: &str = "tokenkeeper_housekeeping_entries_total";

/// What became of an entry: label `outcome`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChoreOutcome {
    /// It was removed.
    Removed,
    /// It was refreshed.
    Refreshed,
    /// It could not be.
    Failed,
    /// It was no longer what had been found.
    Moved,
}

impl ChoreOutcome {
    const ALL: [Self; 4] = [Self::Removed, Self::Refreshed, Self::Failed, Self::Moved];

    const fn name(self) -> &'static str {
        match self {
            Self::Removed => "removed",
            Self::Refreshed => "refreshed",
            Self::Failed => "failed",
            Self::Moved => "moved",
        }
    }
}

/// An entry was looked after.
pub fn chore_done(outcome: ChoreOutcome) {
    counter!(ENTRIES, "outcome" => outcome.name()).increment(1);
}

/// A pass came to its end.
pub fn housekeeping_done(removed: u64, refreshed: u64, failed: u64, moved: u64) {
    counter!(PASSES, "outcome" => "done").increment(1);
    tracing::info!(removed, refreshed, failed, moved, "housekeeping done");
}

/// Another worker has the duty.
pub fn housekeeping_left_to_another() {
    counter!(PASSES, "outcome" => "left_to_another").increment(1);
    tracing::debug!("another worker does the housekeeping");
}

/// A pass, or one entry of it, failed.
pub fn housekeeping_failed(error: &dyn Display) {
    counter!(PASSES, "outcome" => "failed").increment(1);
    tracing::error!(%error, "housekeeping failed; it is tried again in the next interval");
}

/// Describes the metrics of housekeeping, and shows them at zero.
pub(super) fn describe() {
    describe_counter!(PASSES, "Times housekeeping was due in this worker, by outcome.");
    describe_counter!(ENTRIES, "Entries that housekeeping looked after, by outcome.");
    for outcome in ["done", "left_to_another", "failed"] {
        counter!(PASSES, "outcome" => outcome).absolute(0);
    }
    for outcome in ChoreOutcome::ALL {
        counter!(ENTRIES, "outcome" => outcome.name()).absolute(0);
    }
}
