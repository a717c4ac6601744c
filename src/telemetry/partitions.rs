//! Events of partitions.

use std::fmt::Display;
use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, gauge};

use super::millis;

const OWNED: &str = "tokenkeeper_partitions_owned";
const REPLICAS: &str = "tokenkeeper_partition_replicas";
const MOVES: &str = "tokenkeeper_partition_moves_total";

const TAKEN: &str = "taken";
const GIVEN_UP: &str = "given_up";

pub fn share_changed(owned: usize, taken: usize, given_up: usize, replicas: usize, partitions: u16) {
    gauge!(OWNED).set(number(owned));
    gauge!(REPLICAS).set(number(replicas));
    counter!(MOVES, "direction" => TAKEN).increment(taken as u64);
    counter!(MOVES, "direction" => GIVEN_UP).increment(given_up as u64);
    tracing::info!(
        owned,
        partitions,
        taken,
        given_up,
        replicas,
        "this worker's share of the partitions changed"
    );
}

/// The worker stops, or its connection is lost.
pub fn no_share() {
    gauge!(OWNED).set(0.0);
}

pub fn replicas_not_seen(error: &dyn Display) {
    tracing::warn!(%error, "cannot read or update the list of replicas");
}

pub fn share_not_handed_over(error: &dyn Display, ttl: Duration) {
    tracing::warn!(
        %error,
        ttl_ms = millis(ttl),
        "cannot leave the list of replicas; the other workers take over these partitions after ttl_ms"
    );
}

pub(super) fn describe() {
    describe_gauge!(OWNED, "Partitions of each kind of message that this worker consumes.");
    describe_gauge!(REPLICAS, "Workers that share the partitions, this one included.");
    describe_counter!(MOVES, "Partitions that this worker took or gave up, by direction.");
    gauge!(OWNED).set(0.0);
    gauge!(REPLICAS).set(0.0);
    for direction in [TAKEN, GIVEN_UP] {
        counter!(MOVES, "direction" => direction).absolute(0);
    }
}

#[allow(clippy::cast_precision_loss, reason = "a gauge, of a number far below 2^52")]
fn number(count: usize) -> f64 {
    count as f64
}
