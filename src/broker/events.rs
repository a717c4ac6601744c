//! A bounded queue of events in memory, and a task that publishes them.
//!
//! An event never delays a reply. If the broker does not keep up, the queue overflows: events are dropped and counted.

use futures_util::{StreamExt, stream};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio_util::sync::CancellationToken;

use crate::broker::{EventFate, Publisher};
use crate::contract::Event;
use crate::telemetry::{self, EventLoss};

/// The length of the queue: what a busy worker refreshes while a broker restarts.
const CAPACITY: usize = 4_096;

/// How many events are published before the first one is confirmed. With one at a time, confirms would limit how many tokens
/// a worker can refresh.
const UNCONFIRMED: usize = 64;

/// The sending end. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Events(Sender<Event>);

/// The receiving end.
#[derive(Debug)]
pub struct Outbox(Receiver<Event>);

pub fn queue() -> (Events, Outbox) {
    let (sender, receiver) = mpsc::channel(CAPACITY);
    (Events(sender), Outbox(receiver))
}

impl Events {
    /// Queues an event. Never waits.
    pub fn emit(&self, event: Event) {
        if let Err(refused) = self.0.try_send(event) {
            telemetry::event_lost(refused.into_inner().name(), EventLoss::Overflow);
        }
    }
}

impl Outbox {
    /// Publishes queued events until `drain` fires and the queue is empty, or the publisher stops.
    pub async fn publish(self, publisher: Publisher, drain: CancellationToken) {
        let events = stream::unfold((self.0, drain), async |(mut handed_in, drain)| {
            let event = tokio::select! {
                // Queued events first.
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
