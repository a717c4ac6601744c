//! Messages that were repeatedly in hand when a connection or a worker ended.

use metrics::{counter, describe_counter};
use tokio::time::Instant;

use super::label;
use super::seldom::Seldom;
use crate::contract::MessageKind;

const SUSPECTS: &str = "tokenkeeper_suspects_total";

label! {
    /// Label `to`.
    pub enum SuspectMoved {
        /// Only a few are in hand at a time.
        Suspects = "suspects",
        /// Only one is in hand at a time.
        Isolated = "isolated",
        /// The message was alone in hand too often when a connection or worker ended.
        DeadLetters = "dead_letters",
    }
}

pub fn suspect_moved(kind: MessageKind, to: SuspectMoved) {
    counter!(SUSPECTS, "to" => to.name()).increment(1);
    let kind = kind.routing_key();
    match to {
        SuspectMoved::DeadLetters => tracing::error!(
            kind,
            "a message repeatedly ended the worker or connection that handled it; it is moved to the dead letters"
        ),
        SuspectMoved::Suspects | SuspectMoved::Isolated => tracing::warn!(
            kind,
            to = to.name(),
            "a message was in hand too often when a connection or a worker ended; it is moved away from the other messages"
        ),
    }
}

pub fn message_not_moved(error: &dyn std::fmt::Display) {
    static LINES: Seldom = Seldom::new();
    if let Some(kept_back) = LINES.lets_through(Instant::now()) {
        tracing::warn!(%error, kept_back, "cannot move a suspect message");
    }
}

pub(super) fn describe() {
    describe_counter!(
        SUSPECTS,
        "Messages set apart because they may end the worker or connection that handles them."
    );
    for to in SuspectMoved::ALL {
        counter!(SUSPECTS, "to" => to.name()).absolute(0);
    }
}
