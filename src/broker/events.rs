//! Events on their way to the exchange of events: a bounded queue in memory and a task that publishes them.
//!
//! An event never holds up a reply. Where the broker does not keep up the queue overflows, and what does not fit is
//! dropped and counted; a requester's answer does not depend on any of them.

use futures_util::{StreamExt, stream};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio_util::sync::CancellationToken;

use crate::broker::{EventFate, Publisher};
use crate::contract::Event;
use crate::telemetry::{self, EventLoss};

/// So many events wait at most: what a busy worker refreshes in the time that a broker takes to come back.
const CAPACITY: usize = 4_096;

/// So many are published at most before the first of them is confirmed. One at a time, the broker's answers would be the
/// limit of how many tokens a worker can refresh and tell of.
const UNCONFIRMED: usize = 64;

/// Where events are handed in. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Events(Sender<Event>);

/// The other end: what is to be published.
#[derive(Debug)]
pub struct Outbox(Receiver<Event>);

/// A queue of events.
pub fn queue() -> (Events, Outbox) {
    let (sender, receiver) = mpsc::channel(CAPACITY);
    (Events(sender), Outbox(receiver))
}

impl Events {
    /// Hands an event in. Never waits.
    pub fn emit(&self, event: Event) {
        if let Err(refused) = self.0.try_send(event) {
            telemetry::event_lost(refused.into_inner().name(), EventLoss::Overflow);
        }
    }
}

impl Outbox {
    /// Publishes what is handed in, until `drain` fires and nothing is left, or the publisher takes no more.
    pub async fn publish(self, publisher: Publisher, drain: CancellationToken) {
        let events = stream::unfold((self.0, drain), async |(mut handed_in, drain)| {
            let event = tokio::select! {
                // First what is there.
                biased;
                event = handed_in.recv() => event,
                () = drain.cancelled() => None,
            };
            Some((event?, (handed_in, drain)))
        });
        events
            .for_each_concurrent(UNCONFIRMED, async |event| match publisher.event(&event).await {
                EventFate::Published => telemetry::event_published(event.name()),
                EventFate::Unwanted => telemetry::event_lost(event.name(), EventLoss::Refused),
                EventFate::Stopped => telemetry::event_lost(event.name(), EventLoss::Stopped),
            })
            .await;
    }
}
