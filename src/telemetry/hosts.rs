//! Events of whole hosts: circuits, refusals of everybody, and limits of waiting messages.

use std::fmt::Display;

use metrics::{counter, describe_counter, describe_gauge, gauge};

use super::{LEASE_WAITS, LEASE_WATCHES, REFRESH_RETRIES, label};
use crate::contract::MessageKind;
use crate::domain::clock::Timestamp;

const CIRCUIT: &str = "tokenkeeper_circuit_state";
const CIRCUIT_CHANGES: &str = "tokenkeeper_circuit_transitions_total";
const REFUSING: &str = "tokenkeeper_provider_refusing";
const MUST_LOG_IN: &str = "tokenkeeper_users_to_log_in_again";
const HELD_BACK: &str = "tokenkeeper_refreshes_held_back_total";
const CROWDED: &str = "tokenkeeper_bulkhead_refusals_total";
const LOCAL_FAILURES: &str = "tokenkeeper_local_failures_total";

label! {
    /// Label `to`.
    pub enum CircuitState {
        /// Calls are allowed.
        Closed = "closed",
        /// One call is allowed.
        HalfOpen = "half_open",
        /// No calls are allowed.
        Open = "open",
    }
}

impl CircuitState {
    const fn level(self) -> f64 {
        match self {
            Self::Closed => 0.0,
            Self::HalfOpen => 1.0,
            Self::Open => 2.0,
        }
    }
}

/// The first refresh at this host is considered. Sets its series to zero, so that a rate over them has a start.
/// `held_back_by`: the possible labels of the metric.
pub fn host_known(host: &str, held_back_by: &[&'static str]) {
    for name in [REFRESH_RETRIES, LEASE_WAITS, LEASE_WATCHES] {
        counter!(name, "host" => host.to_owned()).absolute(0);
    }
    for kind in MessageKind::ALL {
        counter!(CROWDED, "host" => host.to_owned(), "type" => kind.routing_key()).absolute(0);
    }
    for state in CircuitState::ALL {
        counter!(CIRCUIT_CHANGES, "host" => host.to_owned(), "to" => state.name()).absolute(0);
    }
    for by in held_back_by {
        counter!(HELD_BACK, "host" => host.to_owned(), "by" => *by).absolute(0);
    }
}

/// Called for each host when the metrics are asked for: an open circuit is half open after a while, though nothing happens.
pub fn circuit_is(host: &str, state: CircuitState) {
    gauge!(CIRCUIT, "host" => host.to_owned()).set(state.level());
}

pub fn circuit_changed(host: &str, before: CircuitState, after: CircuitState) {
    counter!(CIRCUIT_CHANGES, "host" => host.to_owned(), "to" => after.name()).increment(1);
    let (from, to) = (before.name(), after.name());
    match after {
        CircuitState::Open => {
            tracing::warn!(host, from, to, "circuit opened: this host is not called for now");
        }
        CircuitState::HalfOpen => {
            tracing::info!(host, from, to, "circuit half open: one refresh tests this host");
        }
        CircuitState::Closed => tracing::info!(host, from, to, "circuit closed: this host is called again"),
    }
}

/// Called for each provider when the metrics are asked for. `must_log_in`: how many of its users must log in again.
pub fn provider_is(host: &str, is_refusing: bool, must_log_in: u32) {
    gauge!(REFUSING, "host" => host.to_owned()).set(if is_refusing { 1.0 } else { 0.0 });
    gauge!(MUST_LOG_IN, "host" => host.to_owned()).set(f64::from(must_log_in));
}

pub fn providers_not_looked_at(error: &dyn Display) {
    tracing::warn!(%error, "cannot count the users who must log in again; the metric keeps its last value");
}

pub fn host_refusing(host: &str, since: Option<Timestamp>) {
    if let Some(since) = since {
        tracing::error!(
            host,
            %since,
            "this host refuses everybody; correct its settings with `tokenkeeper provider apply`"
        );
    } else {
        tracing::info!(host, "this host no longer refuses everybody");
    }
}

/// The refusal was the host's fault, so it does not count against the user.
pub fn refusal_forgiven(host: &str) {
    tracing::info!(host, "a refused refresh token does not count against its user");
}

/// It stays unknown whether the user or the provider causes the refusal, so it counts against the user.
pub fn refusal_not_judged(host: &str, error: &dyn Display) {
    tracing::error!(host, %error, "cannot determine whether this host refuses every refresh token");
}

/// `None`: the circuit of the host is open, which has its own metric.
pub fn refresh_not_begun(host: &str, held_back_by: Option<&'static str>) {
    if let Some(by) = held_back_by {
        counter!(HELD_BACK, "host" => host.to_owned(), "by" => by).increment(1);
        tracing::debug!(host, by, "a refresh is held back");
    }
}

pub fn bulkhead_refused(host: &str, kind: MessageKind) {
    counter!(CROWDED, "host" => host.to_owned(), "type" => kind.routing_key()).increment(1);
    tracing::info!(host, "too many messages wait for this host; this one does not wait");
}

/// A call to a provider failed because of this machine. It does not count against the host.
pub fn could_not_ask(cause: &'static str) {
    counter!(LOCAL_FAILURES, "cause" => cause).increment(1);
}

/// Sets the metric to zero for all causes.
pub fn local_causes_known(causes: &[&'static str]) {
    for cause in causes {
        counter!(LOCAL_FAILURES, "cause" => *cause).absolute(0);
    }
}

pub(super) fn describe() {
    describe_gauge!(CIRCUIT, "State of a host's circuit: 0 closed, 1 half open, 2 open.");
    describe_counter!(CIRCUIT_CHANGES, "Changes of a host's circuit, by the state it came to.");
    describe_gauge!(REFUSING, "1 while a host refuses everybody.");
    describe_gauge!(MUST_LOG_IN, "Users whose refresh token a host refuses: they must log in again.");
    describe_counter!(HELD_BACK, "Refreshes that did not start, by what held them back.");
    describe_counter!(CROWDED, "Messages refused because too many waited for a host.");
    describe_counter!(
        LOCAL_FAILURES,
        "Calls to token endpoints that failed because of this machine, by cause."
    );
}
