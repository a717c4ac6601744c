//! Events of the database as a whole: whether it answers, and how its clock differs from ours.

use std::fmt::Display;

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

use crate::domain::clock::Offset;

const AWAY: &str = "tokenkeeper_database_away_total";
const REACHABLE: &str = "tokenkeeper_database_reachable";
const CLOCK_OFFSET: &str = "tokenkeeper_clock_offset_seconds";

pub fn database_lost(error: &dyn Display) {
    counter!(AWAY).increment(1);
    gauge!(REACHABLE).set(0.0);
    tracing::error!(%error, "the database does not answer; no messages are taken until it does");
}

pub fn database_back() {
    gauge!(REACHABLE).set(1.0);
    tracing::info!("the database answers again");
}

pub fn clock_measured(offset: Offset) {
    gauge!(CLOCK_OFFSET).set(offset.seconds());
    if offset.is_notable() {
        tracing::warn!(
            offset_secs = offset.seconds(),
            "this machine's clock differs from the database's, which is used instead; check NTP on both"
        );
    }
}

pub fn clock_not_measured(error: &dyn Display) {
    tracing::warn!(%error, "cannot read the database's clock");
}

pub(super) fn describe() {
    describe_counter!(AWAY, "Times the database did not answer.");
    describe_gauge!(REACHABLE, "Whether the database answers (1) or not (0).");
    describe_gauge!(CLOCK_OFFSET, Unit::Seconds, "The database's clock minus this machine's.");
    counter!(AWAY).absolute(0);
    gauge!(REACHABLE).set(1.0);
}
