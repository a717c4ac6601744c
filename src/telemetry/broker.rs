//! The connections to the broker, and what keeps a worker from it.

use std::time::Duration;

use metrics::{counter, describe_counter};
use tokio::time::Instant;

use super::label;
use super::repeated::Repeated;
use crate::domain::problem::Problem;

pub(super) const RECONNECTS: &str = "tokenkeeper_broker_reconnects_total";

label! {
    /// A connection to the broker: label `connection`.
    pub enum Link {
        /// Deliveries, replies and acks.
        Consume = "consume",
        /// Suspects, a few at a time.
        Suspects = "suspects",
        /// Isolated suspects, one at a time.
        Isolated = "isolated",
        /// Replies to queues whose names only the broker can check.
        Reply = "reply",
        /// Dead letters, parked pairs and events.
        Publish = "publish",
    }
}

pub fn broker_connected(link: Link, broker: &str) {
    tracing::debug!(connection = link.name(), broker, "connected to the broker");
}

/// A connection, or a consumer of it, is made anew.
pub fn broker_lost(link: Link) {
    counter!(RECONNECTS, "connection" => link.name()).increment(1);
}

pub fn broker_problem(problem: &Problem) {
    tracing::warn!("broker: {problem}");
}

pub fn broker_problem_lasts(problem: &Problem, lasting: Duration) {
    tracing::warn!(lasting_secs = lasting.as_secs(), "broker, still: {problem}");
}

pub fn broker_problem_over(problem: &Problem, lasted: Duration) {
    tracing::info!(lasted_secs = lasted.as_secs(), "broker, over: {}", problem.what);
}

/// The broker blocked or unblocked a connection (memory or disk alarm).
pub fn broker_blocked(link: Link, reason: Option<&str>) {
    if let Some(reason) = reason {
        tracing::warn!(
            connection = link.name(),
            reason,
            "the broker blocks publishing on this connection; check its memory and disk alarms"
        );
    } else {
        tracing::info!(connection = link.name(), "the broker allows publishing on this connection again");
    }
}

/// One of several nodes takes no connection. The next one is tried.
pub fn broker_node_failed(problem: &Problem) {
    static TOLD: Repeated = Repeated::new();
    if let Some(kept_back) = TOLD.lets_through(problem, Instant::now()) {
        tracing::info!(kept_back, "broker, a node of several: {problem}");
    }
}

pub(super) fn describe() {
    describe_counter!(RECONNECTS, "Times a broker connection, channel or consumer was re-established.");
    for link in Link::ALL {
        counter!(RECONNECTS, "connection" => link.name()).absolute(0);
    }
}
