//! Whether events reach their exchange.

use metrics::{counter, describe_counter};

use super::label;
use crate::contract::Event;

const EVENTS: &str = "tokenkeeper_events_total";

label! {
    pub enum EventLoss {
        /// Too many events waited for the broker.
        Overflow = "overflow",
        /// The exchange does not exist, or we may not publish to it.
        Refused = "refused",
        Stopped = "stopped",
    }
}

pub fn event_published(event: &'static str) {
    counter!(EVENTS, "event" => event, "outcome" => "published").increment(1);
    tracing::debug!(event, "event published");
}

pub fn event_lost(event: &'static str, why: EventLoss) {
    counter!(EVENTS, "event" => event, "outcome" => why.name()).increment(1);
    tracing::warn!(event, reason = why.name(), "event dropped");
}

/// Publishing is tried again if that can help.
pub fn event_not_published(error: &dyn std::fmt::Display) {
    tracing::warn!(%error, "cannot publish an event");
}

pub(super) fn describe() {
    describe_counter!(EVENTS, "Events, by outcome.");
    for event in Event::NAMES {
        for outcome in EventLoss::ALL.into_iter().map(EventLoss::name).chain(["published"]) {
            counter!(EVENTS, "event" => event, "outcome" => outcome).absolute(0);
        }
    }
}
