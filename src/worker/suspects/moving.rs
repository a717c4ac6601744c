//! What is done about a suspect: it is moved on, handled where it is alone, or given up.

use std::sync::Arc;
use std::time::Duration;

use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::ConfirmSelectOptions;

use super::{Next, Origin, Tier, moved_to};
use crate::broker::{DeadLetter, Feed, MovedMessage, MovedTo, NotMoved, Replies, within};
use crate::contract::MessageKind;
use crate::telemetry::{self, SuspectMoved};
use crate::worker::acks::{Acks, Disposition};
use crate::worker::arrivals::Arrival;
use crate::worker::settle::{Received, Settler};
use crate::worker::settlement::Settlement;

/// The broker's own reason for a message that it gives up itself.
const DELIVERY_LIMIT: &str = "delivery_limit";

/// The reason for a message in a queue of suspects that no worker moved there.
const UNREADABLE: &str = "unreadable_suspect";

impl Settler {
    /// Moves a message away from the queue of its kind.
    pub(in crate::worker) async fn move_away(
        self: Arc<Self>,
        kind: MessageKind,
        delivery: Delivery,
        acks: Acks,
        lifeline: Lifeline,
    ) {
        let settlement = Settlement::new(acks, delivery.delivery_tag);
        if !lifeline.holds().await {
            return settlement.settle(Disposition::Reject);
        }
        let origin = Origin::of(kind, &self.keys, &delivery);
        let moved = self.move_on(&origin, &delivery, Feed::Suspects).await;
        settlement.settle(disposition(moved));
    }

    /// Handles, moves on or gives up a delivery from a queue of suspects.
    pub(in crate::worker) async fn process_suspect(
        self: Arc<Self>,
        tier: Tier,
        arrival: Arrival,
        replies: Arc<Replies>,
        acks: Acks,
        lifeline: Lifeline,
        next: Next,
    ) {
        match (next, Origin::open(&self.keys, &arrival.delivery)) {
            (Next::Work, Some(origin)) => {
                let received = Received::new(origin.kind, tier, arrival, &self.prefix, replies, acks);
                let received = received.with_origin(origin);
                self.process(received).await;
            }
            (Next::Work | Next::MoveTo(_) | Next::GiveUp, _) => {
                self.move_suspect(arrival.delivery, acks, lifeline, next).await;
            }
        }
    }

    /// Moves on or gives up a delivery from a queue of suspects.
    pub(in crate::worker) async fn move_suspect(
        self: Arc<Self>,
        delivery: Delivery,
        acks: Acks,
        lifeline: Lifeline,
        next: Next,
    ) {
        let settlement = Settlement::new(acks, delivery.delivery_tag);
        if !lifeline.holds().await {
            return settlement.settle(Disposition::Reject);
        }
        let moved = match (Origin::open(&self.keys, &delivery), next) {
            (Some(origin), Next::MoveTo(feed)) => self.move_on(&origin, &delivery, feed).await,
            (Some(origin), Next::Work | Next::GiveUp) => {
                telemetry::suspect_moved(origin.kind, SuspectMoved::DeadLetters);
                let detail = "each connection or worker that worked on it alone ended";
                self.give_up(Some(origin.kind), &delivery, DELIVERY_LIMIT, detail).await
            }
            (None, Next::Work | Next::MoveTo(_) | Next::GiveUp) => {
                let detail = "no worker with one of these encryption keys moved it here";
                self.give_up(None, &delivery, UNREADABLE, detail).await
            }
        };
        settlement.settle(disposition(moved));
    }

    async fn move_on(&self, origin: &Origin, delivery: &Delivery, to: Feed) -> Result<(), NotMoved> {
        let Some(sealed) = origin.seal(&self.keys, &delivery.data) else { return Err(NotMoved) };
        telemetry::suspect_moved(origin.kind, moved_to(to));
        let moved =
            MovedMessage { to: MovedTo::Queue(to), properties: &delivery.properties, origin: &sealed };
        self.publisher.move_on(&moved, &delivery.data).await
    }

    async fn give_up(
        &self,
        kind: Option<MessageKind>,
        delivery: &Delivery,
        reason: &'static str,
        detail: &str,
    ) -> Result<(), NotMoved> {
        let letter = DeadLetter {
            routing_key: match kind {
                Some(kind) => kind.routing_key(),
                None => delivery.routing_key.as_str(),
            },
            properties: &delivery.properties,
            reason,
            detail,
            at: self.handler.clock.now(),
        };
        self.publisher.dead_letter_of_suspect(&letter, &delivery.data).await
    }
}

/// The channel that a suspect came over.
pub(in crate::worker) struct Lifeline {
    pub(in crate::worker) channel: Arc<Channel>,
    /// How long an answer over it may take.
    pub(in crate::worker) limit: Duration,
}

impl Lifeline {
    /// Whether the channel outlives the delivery. A message whose delivery ends the channel must not be moved: it could not be
    /// acked, and would be moved once more with each delivery.
    async fn holds(&self) -> bool {
        let answer = self.channel.confirm_select(ConfirmSelectOptions::default());
        within(self.limit, || "hear from the broker after a suspect came".to_owned(), answer).await.is_ok()
    }
}

/// A message that was moved is acked. Otherwise it goes back, which counts: at the delivery limit the broker moves it itself.
const fn disposition(moved: Result<(), NotMoved>) -> Disposition {
    match moved {
        Ok(()) => Disposition::Ack,
        Err(NotMoved) => Disposition::Reject,
    }
}
