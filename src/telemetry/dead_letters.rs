//! Events of sealing the dead letters that the broker itself moved there.

use std::fmt::Display;

use metrics::{counter, describe_counter, describe_gauge, gauge};

const THERE: &str = "tokenkeeper_dead_letters";
const SEALED: &str = "tokenkeeper_dead_letters_sealed_total";

/// How many lie there, without those that somebody is looking at.
pub fn dead_letters_are(count: u32) {
    gauge!(THERE).set(f64::from(count));
}

pub fn dead_letter_sealed() {
    counter!(SEALED).increment(1);
}

pub fn dead_letters_sealed(count: u32) {
    tracing::info!(count, "sealed messages that the broker had moved to the dead letters");
}

/// The next try is in a minute.
pub fn dead_letters_not_sealed(error: &dyn Display) {
    tracing::warn!(%error, "cannot seal messages that the broker moved to the dead letters");
}

/// An operator or another worker consumes the queue. The next try is in a minute.
pub fn dead_letters_in_use() {
    tracing::debug!("somebody else consumes the dead letters");
}

pub fn dead_letters_left_unsealed(count: u32, at_most: u32) {
    tracing::warn!(
        count,
        at_most,
        "too many dead letters to seal: those that the broker moved there stay in clear; replay or drop some"
    );
}

pub(super) fn describe() {
    describe_gauge!(THERE, "Dead letters that lie in the queue, as of the last minute.");
    describe_counter!(
        SEALED,
        "Dead letters that the broker moved there in clear and that were sealed afterwards."
    );
    counter!(SEALED).absolute(0);
}
