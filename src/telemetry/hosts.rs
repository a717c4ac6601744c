//! What happens to whole hosts: their circuits, those that refuse everybody, messages that may not wait for them.

use std::fmt::Display;

use metrics::{counter, describe_counter, describe_gauge, gauge};

use crate::contract::MessageKind;
use crate::domain::clock::Timestamp;

const CIRCUIT: &str = "tokenkeeper_circuit_state";
const CIRCUIT_CHANGES: &str = "tokenkeeper_circuit_transitions_total";
const REFUSING: &str = "tokenkeeper_provider_refusing";
const HELD_BACK: &str = "tokenkeeper_refreshes_held_back_total";
const CROWDED: &str = "tokenkeeper_bulkhead_refusals_total";
const LOCAL_FAILURES: &str = "tokenkeeper_local_failures_total";

/// The state of a host's circuit: label `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CircuitState {
    /// The host is called.
    Closed,
    /// One call is let through.
    HalfOpen,
    /// The host is left alone.
    Open,
}

impl CircuitState {
    const ALL: [Self; 3] = [Self::Closed, Self::HalfOpen, Self::Open];

    const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }

    const fn level(self) -> f64 {
        match self {
            Self::Closed => 0.0,
            Self::HalfOpen => 1.0,
            Self::Open => 2.0,
        }
    }
}

/// A host is called for the first time. `held_back_by`: what may hold its refreshes back.
pub fn circuit_known(host: &str, held_back_by: &[&'static str]) {
    gauge!(CIRCUIT, "host" => host.to_owned()).set(CircuitState::Closed.level());
    gauge!(REFUSING, "host" => host.to_owned()).set(0.0);
    for state in CircuitState::ALL {
        counter!(CIRCUIT_CHANGES, "host" => host.to_owned(), "to" => state.name()).absolute(0);
    }
    for by in held_back_by {
        counter!(HELD_BACK, "host" => host.to_owned(), "by" => *by).absolute(0);
    }
}

/// The circuit of a host opened, closed, or lets a probe through.
pub fn circuit_changed(host: &str, before: CircuitState, after: CircuitState) {
    gauge!(CIRCUIT, "host" => host.to_owned()).set(after.level());
    counter!(CIRCUIT_CHANGES, "host" => host.to_owned(), "to" => after.name()).increment(1);
    let (from, to) = (before.name(), after.name());
    match after {
        CircuitState::Open => {
            tracing::warn!(host, from, to, "the circuit of this host opens: it is left alone");
        }
        CircuitState::HalfOpen => {
            tracing::info!(host, from, to, "the circuit of this host lets a probe through");
        }
        CircuitState::Closed => tracing::info!(host, from, to, "the circuit of this host is closed again"),
    }
}

/// The database says that a host refuses everybody, or that it does not any more.
pub fn host_refusing(host: &str, since: Option<Timestamp>) {
    gauge!(REFUSING, "host" => host.to_owned()).set(if since.is_some() { 1.0 } else { 0.0 });
    if let Some(since) = since {
        tracing::error!(
            host,
            %since,
            "this host refuses everybody's refresh token: correct its settings with `tokenkeeper provider apply`"
        );
    } else {
        tracing::info!(host, "this host is believed not to refuse everybody any more");
    }
}

/// A refusal was found to be no fault of its user, and is forgotten.
pub fn refusal_forgiven(host: &str) {
    tracing::info!(host, "a refused refresh token is not held against its user");
}

/// Whether a refusal is the user's or the provider's fault could not be found out: it stays the user's.
pub fn refusal_not_judged(host: &str, error: &dyn Display) {
    tracing::error!(host, %error, "cannot find out whether this host refuses everybody");
}

/// A refresh was asked for and did not begin. None: the host as a whole is left alone, which shows in its circuit.
pub fn refresh_not_begun(host: &str, held_back_by: Option<&'static str>) {
    if let Some(by) = held_back_by {
        counter!(HELD_BACK, "host" => host.to_owned(), "by" => by).increment(1);
        tracing::debug!(host, by, "a refresh is held back");
    }
}

/// A message may not wait for a host, because too many do already.
pub fn bulkhead_refused(host: &str, kind: MessageKind) {
    counter!(CROWDED, "host" => host.to_owned(), "type" => kind.routing_key()).increment(1);
    tracing::info!(host, "too many messages wait for this host already");
}

/// A provider was not called because of this machine, which is held against no host.
pub fn could_not_ask(cause: &'static str) {
    counter!(LOCAL_FAILURES, "cause" => cause).increment(1);
}

/// Providers may be called from here on, and not be for these reasons.
pub fn local_causes_known(causes: &[&'static str]) {
    for cause in causes {
        counter!(LOCAL_FAILURES, "cause" => *cause).absolute(0);
    }
}

/// Describes these metrics.
pub(super) fn describe() {
    describe_gauge!(CIRCUIT, "State of a host's circuit: 0 closed, 1 half open, 2 open.");
    describe_counter!(CIRCUIT_CHANGES, "Changes of a host's circuit, by the state it came to.");
    describe_gauge!(REFUSING, "1 while a host refuses everybody's refresh token.");
    describe_counter!(HELD_BACK, "Refreshes that did not begin, by what holds them back.");
    describe_counter!(CROWDED, "Messages that might not wait for a host, because too many did.");
    describe_counter!(LOCAL_FAILURES, "Calls of token endpoints that failed on this machine, by cause.");
}
