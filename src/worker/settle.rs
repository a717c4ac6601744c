//! A message's way from delivery to ack, its states as types: each step consumes the one before it.
//!
//! `Received` → decode → handle → `Handled` → reply, dead letter → `Replied` → ack. A message that cannot take its next
//! step is given back to the broker; there is no other way out.

use std::sync::Arc;

use lapin::message::Delivery;
use tokio::time::Instant;
use tracing::{Instrument, Span, field};

use super::acks::{Acks, Verdict};
use super::settlement::Settlement;
use super::suspects::{Origin, Tier};
use crate::broker::{DeadLetter, OutgoingReply, Publisher, Replies, Stopped, Unanswered};
use crate::bulkhead::{Bulkhead, Queue, STALLED_AFTER, Seat, Thing, Waiter};
use crate::database::Availability;
use crate::handle::{Handler, Incoming, Outcome, TimeFrame};
use crate::lifecycle::Stop;
use crate::message::{Envelope, ErrorCode, InvalidRequest, MessageKind, Reply, ReplyTo, Request, decode};
use crate::secret::KeyRing;
use crate::telemetry::{self, InFlight, MessageOutcome};

/// What a message needs on its way.
pub(super) struct Settler {
    pub(super) handler: Handler,
    pub(super) publisher: Publisher,
    pub(super) database: Availability,
    /// For what suspects say of where they come from.
    pub(super) keys: Arc<KeyRing>,
    /// What the names of our queues begin with.
    pub(super) prefix: String,
    pub(super) stop: Stop,
}

/// A message in hand. In a box from step to step: it is a kilobyte.
pub(super) struct Received {
    kind: MessageKind,
    /// Whose prefetch it takes a place of.
    queue: Queue,
    delivery: Delivery,
    envelope: Envelope,
    since: Instant,
    replies: Arc<Replies>,
    settlement: Settlement,
    in_flight: InFlight,
}

/// A message that was handled.
struct Handled {
    received: Box<Received>,
    outcome: Outcome,
    time: TimeFrame,
}

/// A message whose reply the broker has confirmed, and whose copy lies in the dead letters if it belongs there.
struct Replied {
    received: Box<Received>,
    outcome: MessageOutcome,
    code: Option<ErrorCode>,
}

impl Received {
    /// A message that is replied to with `replies` and settled with `acks`.
    pub(super) fn new(
        kind: MessageKind,
        delivery: Delivery,
        prefix: &str,
        replies: Arc<Replies>,
        acks: Acks,
    ) -> Box<Self> {
        let envelope = Envelope::read(&delivery.properties, prefix);
        let settlement = Settlement::new(acks, delivery.delivery_tag);
        let in_flight = InFlight::count(kind);
        let (queue, since) = (Queue::Messages(kind), Instant::now());
        Box::new(Self { kind, queue, delivery, envelope, since, replies, settlement, in_flight })
    }

    /// A message that another queue than that of its kind brought, as it was there.
    pub(super) fn from_origin(
        Origin { kind, publisher }: Origin,
        tier: Tier,
        delivery: Delivery,
        prefix: &str,
        replies: Arc<Replies>,
        acks: Acks,
    ) -> Box<Self> {
        let mut received = Self::new(kind, delivery, prefix, replies, acks);
        received.envelope.publisher = publisher;
        received.queue = tier.queue(kind);
        received
    }

    /// What its log lines say it is about. Made once it is decoded: a span to which fields are added is written anew.
    fn span(&self, request: Option<&Request>) -> Span {
        tracing::info_span!(
            "message",
            kind = self.kind.routing_key(),
            // Whatever a publisher wrote: `Debug` escapes what would break a log line.
            request_id = self.envelope.correlation_id.as_deref().map(field::debug),
            user = request.map(Request::user_id),
            host = request.and_then(Request::host),
        )
    }

    async fn publish_reply(
        &self,
        reply_to: &ReplyTo,
        reply: &Reply,
        time: TimeFrame,
        bulkhead: &Bulkhead,
    ) -> Result<(), Unanswered> {
        let reply_type = self.kind.reply_type();
        let outgoing = OutgoingReply { reply_to, reply_type, envelope: &self.envelope };
        // The answer to a request whose time is over is still worth a moment.
        let until = time.give_up_at().max(Instant::now() + STALLED_AFTER);
        let mut seat: Option<Seat> = None;
        let patience = |now: Instant| {
            if seat.is_none() {
                let waiter = Waiter {
                    queue: self.queue,
                    publisher: self.envelope.publisher.as_deref(),
                    user_id: None,
                };
                let queue = Thing::ReplyQueue(reply_to.as_str().to_owned());
                seat = bulkhead.enter(queue, waiter, now).ok();
            }
            let patient_until = seat.as_mut()?.patience(now).ok()?;
            let until = patient_until.map_or(until, |patient_until| patient_until.min(until));
            (now < until).then_some(until)
        };
        self.replies.publish(&outgoing, &reply.encode(), patience).await
    }

    fn give_back(self: Box<Self>, reason: Unanswered) {
        telemetry::message_requeued(&reason);
        let verdict = match reason {
            Unanswered::Stopped | Unanswered::ConnectionGone => Verdict::Nack,
            // From RabbitMQ 4.3 on a nack does not count towards the delivery limit, and it would come again for ever.
            Unanswered::NoReplyTo => Verdict::Reject,
        };
        let Self { kind, since, settlement, in_flight, .. } = *self;
        settlement.settle(verdict);
        drop(in_flight);
        telemetry::message_settled(kind, MessageOutcome::Requeued, None, since.elapsed());
    }
}

impl Settler {
    /// Takes one message all the way.
    pub(super) async fn process(self: Arc<Self>, received: Box<Received>) {
        let request = decode(received.kind, &received.delivery.data);
        let span = received.span(request.as_ref().ok());
        self.settle(received, request).instrument(span).await;
    }

    async fn settle(&self, received: Box<Received>, request: Result<Request, InvalidRequest>) {
        let handled = match self.handle(received, request).await {
            Ok(handled) => handled,
            Err((received, stopped)) => return received.give_back(stopped.into()),
        };
        match self.reply(handled).await {
            Ok(replied) => replied.ack(),
            Err((received, reason)) => received.give_back(reason),
        }
    }

    async fn handle(
        &self,
        received: Box<Received>,
        request: Result<Request, InvalidRequest>,
    ) -> Result<Handled, (Box<Received>, Stopped)> {
        let time = self.handler.time_frame(received.kind, &received.envelope);
        let incoming = Incoming {
            kind: received.kind,
            request,
            envelope: &received.envelope,
            time,
            queue: received.queue,
            redelivered: received.delivery.redelivered,
        };
        let outcome = tokio::select! {
            biased;
            outcome = self.handler.handle(incoming) => Some(outcome),
            () = self.out_of_time() => None,
        };
        match outcome {
            Some(outcome) => Ok(Handled { received, outcome, time }),
            None => Err((received, Stopped)),
        }
    }

    /// The worker stops, and cannot finish what it has in hand: the grace period is over, or the database is away.
    async fn out_of_time(&self) {
        let pointless = async {
            self.stop.soft.cancelled().await;
            self.database.lost().await;
        };
        tokio::select! {
            () = self.stop.hard.cancelled() => {}
            () = pointless => {}
        }
    }

    async fn reply(&self, handled: Handled) -> Result<Replied, (Box<Received>, Unanswered)> {
        let Handled { received, outcome, time } = handled;
        let published = match (&received.envelope.reply_to, outcome.reply()) {
            (Some(reply_to), Some(reply)) => {
                received.publish_reply(reply_to, reply, time, self.handler.refresher.bulkhead()).await
            }
            (None, _) | (_, None) => Ok(()),
        };
        if let Err(unanswered) = published {
            return Err((received, unanswered));
        }
        let code = outcome.error_code();
        let settled = match &outcome {
            Outcome::Answered(reply) => match reply.error() {
                None => MessageOutcome::Ok,
                Some(_) if received.envelope.reply_to.is_some() => MessageOutcome::Error,
                // Nobody can be told, so the message is kept.
                Some(error) if is_worth_another_delivery(error.code) => {
                    return Err((received, Unanswered::NoReplyTo));
                }
                Some(error) => {
                    match Box::pin(self.lay_into_dead_letters(&received, error.code, &error.message)).await {
                        Ok(()) => MessageOutcome::DeadLettered,
                        Err(stopped) => return Err((received, stopped.into())),
                    }
                }
            },
            Outcome::Invalid { reason, .. } | Outcome::Unanswerable { reason } => {
                let code = ErrorCode::InvalidRequest;
                match Box::pin(self.lay_into_dead_letters(&received, code, reason)).await {
                    Ok(()) => MessageOutcome::DeadLettered,
                    Err(stopped) => return Err((received, stopped.into())),
                }
            }
        };
        Ok(Replied { received, outcome: settled, code })
    }

    async fn lay_into_dead_letters(
        &self,
        received: &Received,
        code: ErrorCode,
        detail: &str,
    ) -> Result<(), Stopped> {
        telemetry::dead_lettered(received.kind, detail);
        let letter = DeadLetter {
            routing_key: received.kind.routing_key(),
            properties: &received.delivery.properties,
            reason: code.name(),
            detail,
            at: self.handler.clock.now(),
        };
        self.publisher.dead_letter(&letter, &received.delivery.data).await
    }
}

/// Whether the same message may succeed when it is delivered again. Each delivery is tried for as long as a request has
/// time, so the broker's delivery limit is minutes away. What is older than its `expiration` stays so.
fn is_worth_another_delivery(code: ErrorCode) -> bool {
    code.is_retryable() && code != ErrorCode::DeadlineExceeded
}

impl Replied {
    fn ack(self) {
        let Self { received, outcome, code } = self;
        let Received { kind, since, settlement, in_flight, .. } = *received;
        settlement.settle(Verdict::Ack);
        drop(in_flight);
        telemetry::message_settled(kind, outcome, code, since.elapsed());
    }
}
