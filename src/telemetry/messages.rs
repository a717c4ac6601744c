//! The start and end of each message, the only events that every message has.

use std::sync::LazyLock;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use super::{HANDLING, IN_FLIGHT, MESSAGES, MessageOutcome, millis};
use crate::contract::{ErrorCode, MessageKind};

/// Counts a message as in hand while this exists.
#[derive(Debug)]
pub struct InFlight(MessageKind);

impl InFlight {
    pub fn count(kind: MessageKind) -> Self {
        Series::of(kind).in_flight.increment(1.0);
        Self(kind)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        Series::of(self.0).in_flight.decrement(1.0);
    }
}

pub fn message_settled(kind: MessageKind, outcome: MessageOutcome, took: Duration) {
    Series::of(kind).count(outcome, took);
    // The usual case, thousands of times a second.
    tracing::debug!(outcome = outcome.name(), took_ms = millis(took), "message settled");
}

/// `publisher` is None if it is unknown.
pub fn message_refused(
    kind: MessageKind,
    outcome: MessageOutcome,
    code: ErrorCode,
    publisher: Option<&str>,
    took: Duration,
) {
    Series::of(kind).count(outcome, took);
    let (outcome, code) = (outcome.name(), code.name());
    tracing::info!(outcome, code, publisher, took_ms = millis(took), "message settled");
}

/// A message failed, its publisher cannot be told, and it waits for another try. `times` counts its tries.
pub fn put_off(kind: MessageKind, times: u32) {
    tracing::warn!(
        kind = kind.routing_key(),
        times,
        "message failed and its publisher cannot be told; it will be retried later"
    );
}

/// The series of one kind of message. They are looked up once, because a lookup takes longer than counting. Do not use
/// this before the recorder is installed, or nothing is counted.
struct Series {
    in_flight: Gauge,
    handling: Histogram,
    ok: Counter,
    error: Counter,
    dead_lettered: Counter,
    requeued: Counter,
    put_off: Counter,
}

impl Series {
    fn of(kind: MessageKind) -> &'static Self {
        static TOKEN_REQUEST: LazyLock<Series> = LazyLock::new(|| Series::new(MessageKind::TokenRequest));
        static WORKSPACE_START: LazyLock<Series> = LazyLock::new(|| Series::new(MessageKind::WorkspaceStart));
        static TOKEN_STORE: LazyLock<Series> = LazyLock::new(|| Series::new(MessageKind::TokenStore));
        static TOKEN_REPORT: LazyLock<Series> = LazyLock::new(|| Series::new(MessageKind::TokenReport));
        match kind {
            MessageKind::TokenRequest => &TOKEN_REQUEST,
            MessageKind::WorkspaceStart => &WORKSPACE_START,
            MessageKind::TokenStore => &TOKEN_STORE,
            MessageKind::TokenReport => &TOKEN_REPORT,
        }
    }

    fn new(kind: MessageKind) -> Self {
        let label = kind.routing_key();
        let messages =
            |outcome: MessageOutcome| counter!(MESSAGES, "type" => label, "outcome" => outcome.name());
        Self {
            in_flight: gauge!(IN_FLIGHT, "type" => label),
            handling: histogram!(HANDLING, "type" => label),
            ok: messages(MessageOutcome::Ok),
            error: messages(MessageOutcome::Error),
            dead_lettered: messages(MessageOutcome::DeadLettered),
            requeued: messages(MessageOutcome::Requeued),
            put_off: messages(MessageOutcome::PutOff),
        }
    }

    fn count(&self, outcome: MessageOutcome, took: Duration) {
        self.settled(outcome).increment(1);
        self.handling.record(took);
    }

    const fn settled(&self, outcome: MessageOutcome) -> &Counter {
        match outcome {
            MessageOutcome::Ok => &self.ok,
            MessageOutcome::Error => &self.error,
            MessageOutcome::DeadLettered => &self.dead_lettered,
            MessageOutcome::Requeued => &self.requeued,
            MessageOutcome::PutOff => &self.put_off,
        }
    }
}
