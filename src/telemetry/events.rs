//! What becomes of events on their way to the exchange of events.

use metrics::{counter, describe_counter};

use crate::contract::Event;

const EVENTS: &str = "tokenkeeper_events_total";

/// Why an event was not published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventLoss {
    /// Too many waited for the broker.
    Overflow,
    /// The broker did not take it: there is no exchange of events, or we may not publish to it.
    Refused,
    /// The worker stopped first.
    Stopped,
}

impl EventLoss {
    const ALL: [Self; 3] = [Self::Overflow, Self::Refused, Self::Stopped];

    const fn outcome(self) -> &'static str {
        match self {
            Self::Overflow => "overflow",
            Self::Refused => "refused",
            Self::Stopped => "stopped",
        }
    }
}

/// The broker has an event.
pub fn event_published(event: &'static str) {
    counter!(EVENTS, "event" => event, "outcome" => "published").increment(1);
    tracing::debug!(event, "event published");
}

/// An event was dropped.
pub fn event_lost(event: &'static str, why: EventLoss) {
    counter!(EVENTS, "event" => event, "outcome" => why.outcome()).increment(1);
    tracing::warn!(event, reason = why.outcome(), "event dropped");
}

/// Publishing an event failed, which is tried again where that can help.
pub fn event_not_published(error: &dyn std::fmt::Display) {
    tracing::warn!(%error, "cannot publish an event");
}

/// Describes this metric and shows it at zero.
pub(super) fn describe() {
    describe_counter!(EVENTS, "Events, by what became of them.");
    for event in Event::NAMES {
        for outcome in EventLoss::ALL.into_iter().map(EventLoss::outcome).chain(["published"]) {
            counter!(EVENTS, "event" => event, "outcome" => outcome).absolute(0);
        }
    }
}
