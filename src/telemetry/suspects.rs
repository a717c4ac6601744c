//! Messages that were in hand when a connection or a worker ended, more than once.

use metrics::{counter, describe_counter};
use tokio::time::Instant;

use super::seldom::Seldom;
use crate::contract::MessageKind;

const SUSPECTS: &str = "tokenkeeper_suspects_total";

/// Where a suspect went: label `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SuspectMoved {
    /// To where a few are worked on at a time.
    Suspects,
    /// To where one is worked on at a time.
    Isolated,
    /// To the dead letters: it was alone in hand too often when that ended.
    DeadLetters,
}

impl SuspectMoved {
    const ALL: [Self; 3] = [Self::Suspects, Self::Isolated, Self::DeadLetters];

    const fn name(self) -> &'static str {
        match self {
            Self::Suspects => "suspects",
            Self::Isolated => "isolated",
            Self::DeadLetters => "dead_letters",
        }
    }
}

/// A suspect was moved on.
pub fn suspect_moved(kind: MessageKind, to: SuspectMoved) {
    counter!(SUSPECTS, "to" => to.name()).increment(1);
    let kind = kind.routing_key();
    match to {
        SuspectMoved::DeadLetters => tracing::error!(kind, "a message ends whatever works on it"),
        SuspectMoved::Suspects | SuspectMoved::Isolated => tracing::warn!(
            kind,
            to = to.name(),
            "a message was in hand too often when a connection or a worker ended: it is moved away from the others"
        ),
    }
}

/// A message could not be moved on.
pub fn message_not_moved(error: &dyn std::fmt::Display) {
    static LINES: Seldom = Seldom::new();
    if let Some(kept_back) = LINES.lets_through(Instant::now()) {
        tracing::warn!(%error, kept_back, "cannot move a message on");
    }
}

pub(super) fn describe() {
    describe_counter!(
        SUSPECTS,
        "Messages moved away from the others because they may end what works on them."
    );
    for to in SuspectMoved::ALL {
        counter!(SUSPECTS, "to" => to.name()).absolute(0);
    }
}
