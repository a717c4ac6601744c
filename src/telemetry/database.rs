//! Events of the database as a whole: whether it answers, and how its clock differs from ours.

use std::fmt::Display;

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use tokio::time::Instant;

use super::repeated::Repeated;
use super::told::Told;
use crate::domain::clock::Offset;
use crate::domain::problem::Problem;

const AWAY: &str = "tokenkeeper_database_away_total";
const REACHABLE: &str = "tokenkeeper_database_reachable";
const CLOCK_OFFSET: &str = "tokenkeeper_clock_offset_seconds";

/// A time without a database. It is logged when it begins, once a minute, and when it is over.
#[derive(Debug)]
pub struct DatabaseAway {
    since: Instant,
    told: Told,
}

impl DatabaseAway {
    /// The database went away, or is not there yet.
    pub fn begin() -> Self {
        counter!(AWAY).increment(1);
        gauge!(REACHABLE).set(0.0);
        Self { since: Instant::now(), told: Told::default() }
    }

    /// Logs why, unless it was logged within the last minute. A new cause is logged at once.
    pub fn because(&mut self, problem: &Problem) {
        if self.told.is_due(problem, Instant::now()) {
            let away_secs = self.since.elapsed().as_secs();
            tracing::error!(error = %problem, away_secs, "waiting for the database; no messages are taken until it is usable");
        }
    }

    /// The database can be used.
    pub fn end(self) {
        gauge!(REACHABLE).set(1.0);
        tracing::info!(away_secs = self.since.elapsed().as_secs(), "the database is usable again");
    }
}

/// The server that connections went to takes no writes any more, and another one does, or it does again.
pub fn database_server_changed(server: &str) {
    static TOLD: Repeated = Repeated::new();
    if let Some(kept_back) = TOLD.lets_through(&server, Instant::now()) {
        tracing::warn!(
            server,
            kept_back,
            "a connection met a database server that takes no writes; all connections are made anew, to this one"
        );
    }
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
