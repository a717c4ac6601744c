//! A message's way from delivery to ack, its states as types: each step consumes the one before it.
//!
//! `Received` → decode → handle → `Handled` → reply, dead letter → `Replied` → ack. A message that cannot take its next
//! step is given back to the broker, or put off (`put_off.rs`); there is no other way out.

use std::borrow::Cow;
use std::mem;
use std::sync::Arc;

use lapin::message::Delivery;
use tokio::time::Instant;
use tracing::{Instrument, Span};
use zeroize::Zeroizing;

use super::acks::{Acks, Disposition};
use super::arrivals::Arrival;
use super::settlement::Settlement;
use super::suspects::{Origin, Tier};
use crate::app::lifecycle::Stop;
use crate::broker::{DeadLetter, NotMoved, OutgoingReply, Publisher, Replies, Stopped, Told, Unanswered};
use crate::contract::{
    Envelope, ErrorCode, InvalidRequest, MessageKind, Reply, ReplyTo, Request, UnknownFields, decode_noting,
};
use crate::domain::clock::Timestamp;
use crate::domain::secret::KeyRing;
use crate::limits::bulkhead::{Bulkhead, Queue, Resource, WaitSlot, Waiter};
use crate::requests::{Handler, Incoming, LATE_REPLY, Outcome, TimeFrame};
use crate::store::database::Availability;
use crate::telemetry::{self, InFlight, MessageOutcome};

pub(super) struct Settler {
    pub(super) handler: Handler,
    pub(super) publisher: Publisher,
    pub(super) database: Availability,
    /// Seal the origin of a message that is moved: a suspect, or one that is put off.
    pub(super) keys: Arc<KeyRing>,
    /// The prefix of our queues' names.
    pub(super) prefix: String,
    /// The most times that a message is put off. None: nothing is put off, because the broker itself delays and counts.
    pub(super) retry_limit: Option<u32>,
    pub(super) stop: Stop,
}

/// A message in hand. Boxed from step to step, because it takes a kilobyte.
pub(super) struct Received {
    pub(super) kind: MessageKind,
    /// The feed whose prefetch it counts against.
    queue: Queue,
    /// Without its body.
    pub(super) delivery: Delivery,
    /// Wiped when it is dropped: a `token.store` holds a pair.
    pub(super) body: Zeroizing<Vec<u8>>,
    pub(super) envelope: Envelope,
    /// When its `expiration` ends, if the broker removed that property while the message waited.
    pub(super) deadline: Option<Timestamp>,
    /// How often it has been put off.
    pub(super) put_off: u32,
    /// When it came to this worker. It may have waited for a place since.
    arrived: Instant,
    since: Instant,
    replies: Arc<Replies>,
    settlement: Settlement,
    in_flight: InFlight,
}

struct Handled {
    received: Box<Received>,
    outcome: Outcome,
    time: TimeFrame,
}

/// A message whose reply the broker has confirmed, and which was copied to the dead letters if it belongs there.
struct Replied {
    received: Box<Received>,
    outcome: MessageOutcome,
    code: Option<ErrorCode>,
}

impl Received {
    /// A message that is replied to with `replies` and settled with `acks`.
    pub(super) fn new(
        kind: MessageKind,
        tier: Tier,
        Arrival { mut delivery, at: arrived }: Arrival,
        prefix: &str,
        replies: Arc<Replies>,
        acks: Acks,
    ) -> Box<Self> {
        let envelope = Envelope::read(&delivery.properties, prefix);
        let settlement = Settlement::new(acks, delivery.delivery_tag);
        let body = Zeroizing::new(mem::take(&mut delivery.data));
        let (deadline, put_off) = (None, 0);
        let (queue, since, in_flight) = (tier.queue(kind), Instant::now(), InFlight::count(kind));
        Box::new(Self {
            kind,
            queue,
            delivery,
            body,
            envelope,
            deadline,
            put_off,
            arrived,
            since,
            replies,
            settlement,
            in_flight,
        })
    }

    /// Restores what a message was before it was moved.
    pub(super) fn with_origin(mut self: Box<Self>, origin: Origin) -> Box<Self> {
        self.envelope.publisher = origin.publisher;
        self.deadline = origin.deadline_ms.map(Timestamp::from_millis);
        self.put_off = origin.put_off;
        self
    }

    /// The span of its log lines. Created after decoding, because adding fields to a span formats it again.
    fn span(&self, request: Option<&Request>) -> Span {
        tracing::info_span!(
            "message",
            kind = self.kind.routing_key(),
            request_id = self.envelope.request_id(),
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
    ) -> Result<Told, Unanswered> {
        let reply_type = self.kind.reply_type();
        // The message is kept if nobody hears that it failed.
        let exact = !self.kind.needs_reply_to() && reply.error().is_some();
        let outgoing = OutgoingReply { reply_to, reply_type, envelope: &self.envelope, exact };
        let until = time.give_up_at().max(Instant::now() + LATE_REPLY);
        let mut slot: Option<WaitSlot> = None;
        let next_check = |now: Instant| {
            if slot.is_none() {
                let waiter = Waiter {
                    queue: self.queue,
                    publisher: self.envelope.publisher.as_deref(),
                    user_id: None,
                };
                let queue = Resource::ReplyQueue(reply_to.as_str().to_owned());
                slot = bulkhead.enter(queue, waiter, now).ok();
            }
            let next_check = slot.as_mut()?.check(now).ok()?;
            let until = next_check.map_or(until, |next_check| next_check.min(until));
            (now < until).then_some(until)
        };
        let body = Zeroizing::new(reply.encode());
        self.replies.publish(&outgoing, &body, next_check).await
    }

    fn give_back(self: Box<Self>, reason: Unanswered) {
        telemetry::message_requeued(&reason);
        let disposition = match reason {
            Unanswered::Stopped | Unanswered::ConnectionGone => Disposition::Nack,
            // From RabbitMQ 4.3 on a nack does not count towards the delivery limit, so the message would come again for ever.
            Unanswered::NobodyToTell => Disposition::Reject,
        };
        let Self { kind, since, settlement, in_flight, .. } = *self;
        settlement.settle(disposition);
        drop(in_flight);
        telemetry::message_settled(kind, MessageOutcome::Requeued, since.elapsed());
    }
}

impl Settler {
    pub(super) async fn process(self: Arc<Self>, received: Box<Received>) {
        let mut unknown = UnknownFields::default();
        let request = decode_noting(received.kind, &received.body, &mut unknown);
        if !unknown.is_empty() {
            telemetry::unknown_fields(received.kind);
        }
        let span = received.span(request.as_ref().ok());
        self.settle(received, request, unknown).instrument(span).await;
    }

    async fn settle(
        &self,
        received: Box<Received>,
        request: Result<Request, InvalidRequest>,
        unknown: UnknownFields,
    ) {
        let mut handled = match self.handle(received, request).await {
            Ok(handled) => handled,
            Err((received, stopped)) => return received.give_back(stopped.into()),
        };
        handled.outcome.warn_of(unknown);
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
        let Received { kind, arrived, deadline, .. } = *received;
        let time = self.handler.time_frame(kind, &received.envelope, arrived, deadline);
        let incoming = Incoming {
            kind: received.kind,
            request,
            envelope: &received.envelope,
            time,
            queue: received.queue,
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

    /// Waits until the worker stops without finishing its messages: the grace period is over, or the database is away.
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
            (None, _) | (_, None) => Ok(Told::No),
        };
        // A publisher that must name a reply queue, and deletes it, wants no answer.
        let is_told = match published {
            Ok(told) => told == Told::Yes || received.kind.needs_reply_to(),
            Err(unanswered) => return Err((received, unanswered)),
        };
        let code = outcome.error_code();
        let settled = match &outcome {
            Outcome::Answered(reply) => match reply.error() {
                None => MessageOutcome::Ok,
                Some(_) if is_told => MessageOutcome::Error,
                // Nobody can be told, so the message is kept.
                Some(error) if self.may_be_put_off(&received, time, error.code) => {
                    match Box::pin(self.put_off(&received, time)).await {
                        Ok(()) => MessageOutcome::PutOff,
                        Err(NotMoved) => return Err((received, Unanswered::NobodyToTell)),
                    }
                }
                Some(error) => {
                    match Box::pin(self.lay_into_dead_letters(&received, error.code, &error.message)).await {
                        Ok(()) => MessageOutcome::DeadLettered,
                        Err(stopped) => return Err((received, stopped.into())),
                    }
                }
            },
            Outcome::Invalid { reason, .. } | Outcome::Unanswerable { reason, .. } => {
                let code = code.unwrap_or(ErrorCode::InvalidRequest);
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
        let detail = match received.put_off {
            0 => Cow::Borrowed(detail),
            times => Cow::Owned(format!("{detail} (tried {} times)", times + 1)),
        };
        let letter = DeadLetter {
            routing_key: received.kind.routing_key(),
            properties: &received.delivery.properties,
            reason: code.name(),
            detail: &detail,
            at: self.handler.clock.now(),
        };
        self.publisher.dead_letter(&letter, &received.body).await
    }
}

impl Replied {
    fn ack(self) {
        let Self { received, outcome, code } = self;
        let Received { kind, envelope, since, settlement, in_flight, .. } = *received;
        settlement.settle(Disposition::Ack);
        drop(in_flight);
        match code {
            None => telemetry::message_settled(kind, outcome, since.elapsed()),
            Some(code) => {
                let publisher = envelope.publisher.as_deref();
                telemetry::message_refused(kind, outcome, code, publisher, since.elapsed());
            }
        }
    }
}
