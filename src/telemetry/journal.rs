//! Events of the journal of pairs.

use std::fmt::Display;

use metrics::{counter, describe_counter};
use tokio::time::Instant;

use super::label;
use super::repeated::Repeated;
use crate::domain::clock::Timestamp;

const RECORDS: &str = "tokenkeeper_journal_records_total";

label! {
    /// Label `step`.
    enum Step {
        Appended = "appended",
        /// Not in time: it is appended later.
        Late = "late",
        /// Not at all: the journal lacks it.
        Lost = "lost",
        /// The row was behind it, and has its pair now.
        Applied = "applied",
        /// It cannot be opened or stored.
        Unusable = "unusable",
    }
}

impl Step {
    fn count(self, records: u64) {
        counter!(RECORDS, "step" => self.name()).increment(records);
    }
}

pub fn journal_appended() {
    Step::Appended.count(1);
}

/// The pair is handed out without it: the database has it.
pub fn journal_not_appended(host: &str, error: &dyn Display, is_lost: bool) {
    static TOLD: Repeated = Repeated::new();
    if is_lost { Step::Lost } else { Step::Late }.count(1);
    if let Some(kept_back) = TOLD.lets_through(&format_args!("{error}"), Instant::now()) {
        tracing::warn!(host, %error, is_lost, kept_back, "cannot append a pair to the journal; a restored database would lack it");
    }
}

pub fn journal_not_applied(host: &str, error: &dyn Display) {
    static TOLD: Repeated = Repeated::new();
    Step::Unusable.count(1);
    if let Some(kept_back) = TOLD.lets_through(&format_args!("{host}: {error}"), Instant::now()) {
        tracing::error!(host, %error, kept_back, "a record of the journal cannot be used");
    }
}

pub fn journal_without_provider(host: &str) {
    static TOLD: Repeated = Repeated::new();
    if let Some(kept_back) = TOLD.lets_through(&host, Instant::now()) {
        tracing::warn!(
            host,
            kept_back,
            "the journal has pairs of a host that has no provider; they are left there"
        );
    }
}

pub fn journal_read(records: u64, stored: u64) {
    tracing::info!(records, stored, "reading the journal from where the database stands");
}

/// `went_back`: their reservations are unknown, too.
pub fn journal_applied(stored: u64, left: u64, went_back: bool) {
    Step::Applied.count(stored);
    tracing::warn!(stored, left, went_back, "pairs that the database lacked were stored from the journal");
}

pub fn journal_not_followed(error: &dyn Display) {
    static TOLD: Repeated = Repeated::new();
    if let Some(kept_back) = TOLD.lets_through(error, Instant::now()) {
        tracing::warn!(%error, kept_back, "cannot follow the journal; it will be tried again");
    }
}

/// `last`: when the mark was written that this process saw last.
pub fn database_went_back(last: Option<Timestamp>) {
    let last = last.map(|last| last.to_string());
    tracing::error!(
        last,
        "the database went back: it was restored, or a failover lost commits; the journal is read again"
    );
}

/// `since`: when the mark was moved last.
pub fn journal_too_short(since: Timestamp) {
    tracing::error!(
        %since,
        "the journal begins after the database's state: pairs that were stored between are unknown; \
         `tokenkeeper token condemn --updated-before` asks their users to log in again"
    );
}

pub fn journal_is_another() {
    tracing::warn!(
        "the mark in the database belongs to another journal; this one is read from its beginning"
    );
}

pub(super) fn describe() {
    describe_counter!(RECORDS, "Records of the journal of pairs, by step.");
    for step in Step::ALL {
        counter!(RECORDS, "step" => step.name()).absolute(0);
    }
}
