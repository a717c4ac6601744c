//! Events of housekeeping.

use std::fmt::Display;

use metrics::{counter, describe_counter};

use super::label;

const PASSES: &str = "tokenkeeper_housekeeping_passes_total";
const ENTRIES: &str = "tokenkeeper_housekeeping_entries_total";

label! {
    /// Label `outcome`.
    pub enum ChoreOutcome {
        Removed = "removed",
        Refreshed = "refreshed",
        Failed = "failed",
        /// The entry had changed since it was found.
        Moved = "moved",
    }
}

pub fn chore_done(outcome: ChoreOutcome) {
    counter!(ENTRIES, "outcome" => outcome.name()).increment(1);
}

pub fn housekeeping_done(removed: u64, refreshed: u64, failed: u64, moved: u64) {
    counter!(PASSES, "outcome" => "done").increment(1);
    tracing::info!(removed, refreshed, failed, moved, "housekeeping done");
}

pub fn housekeeping_left_to_another() {
    counter!(PASSES, "outcome" => "left_to_another").increment(1);
    tracing::debug!("another worker does the housekeeping");
}

pub fn housekeeping_failed(error: &dyn Display) {
    counter!(PASSES, "outcome" => "failed").increment(1);
    tracing::error!(%error, "housekeeping failed; the next pass tries again");
}

pub(super) fn describe() {
    describe_counter!(PASSES, "Times housekeeping was due in this worker, by outcome.");
    describe_counter!(ENTRIES, "Entries that housekeeping handled, by outcome.");
    for outcome in ["done", "left_to_another", "failed"] {
        counter!(PASSES, "outcome" => outcome).absolute(0);
    }
    for outcome in ChoreOutcome::ALL {
        counter!(ENTRIES, "outcome" => outcome.name()).absolute(0);
    }
}
