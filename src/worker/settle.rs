//! A message's way from delivery to ack, its states as types: each step consumes the one before it.
//!
//! `Received` → decode → handle → `Handled` → reply, dead letter → `Replied` → ack. A message that cannot take its next
//! step is given back to the broker; there is no other way out.

use std::sync::Arc;

use lapin::message::Delivery;
use tokio::time::Instant;
use tracing::{Instrument, Span, field};

use super::acks::{Acks, Verdict};
use crate::broker::{DeadLetter, OutgoingReply, Publisher, Replies, Stopped, Unanswered};
use crate::database::Availability;
use crate::handle::{Handler, Incoming, Outcome};
use crate::lifecycle::Stop;
use crate::message::{Envelope, ErrorCode, InvalidRequest, MessageKind, Reply, ReplyTo, Request, decode};
use crate::telemetry::{self, MessageOutcome};

/// What a message needs on its way.
pub(super) struct Settler {
    pub(super) handler: Handler,
    pub(super) publisher: Publisher,
    pub(super) database: Availability,
    pub(super) stop: Stop,
}

/// A message in hand. In a box from step to step: it is a kilobyte.
pub(super) struct Received {
    kind: MessageKind,
    delivery: Delivery,
    envelope: Envelope,
    since: Instant,
    replies: Arc<Replies>,
    acks: Acks,
}

/// A message that was handled.
struct Handled {
    received: Box<Received>,
    outcome: Outcome,
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
        telemetry::message_received(kind);
        let envelope = Envelope::read(&delivery.properties, prefix);
        Box::new(Self { kind, delivery, envelope, since: Instant::now(), replies, acks })
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

    async fn publish_reply(&self, reply_to: &ReplyTo, reply: &Reply) -> Result<(), Unanswered> {
        let reply_type = self.kind.reply_type();
        let outgoing = OutgoingReply { reply_to, reply_type, envelope: &self.envelope };
        self.replies.publish(&outgoing, &reply.encode()).await
    }

    fn give_back(self: Box<Self>, reason: Unanswered) {
        telemetry::message_requeued(&reason);
        self.acks.settle(self.delivery.delivery_tag, Verdict::Requeue);
        telemetry::message_settled(self.kind, MessageOutcome::Requeued, None, self.since.elapsed());
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
        let incoming = Incoming {
            kind: received.kind,
            request,
            envelope: &received.envelope,
            redelivered: received.delivery.redelivered,
        };
        let outcome = tokio::select! {
            biased;
            outcome = self.handler.handle(incoming) => Some(outcome),
            () = self.out_of_time() => None,
        };
        match outcome {
            Some(outcome) => Ok(Handled { received, outcome }),
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
        let Handled { received, outcome } = handled;
        let published = match (&received.envelope.reply_to, outcome.reply()) {
            (Some(reply_to), Some(reply)) => received.publish_reply(reply_to, reply).await,
            (None, _) | (_, None) => Ok(()),
        };
        if let Err(unanswered) = published {
            return Err((received, unanswered));
        }
        let code = outcome.error_code();
        let settled = match &outcome {
            Outcome::Answered(_) if code.is_none() => MessageOutcome::Ok,
            Outcome::Answered(_) => MessageOutcome::Error,
            Outcome::Invalid { reason, .. } | Outcome::Unanswerable { reason } => {
                match Box::pin(self.lay_into_dead_letters(&received, reason)).await {
                    Ok(()) => MessageOutcome::DeadLettered,
                    Err(stopped) => return Err((received, stopped.into())),
                }
            }
        };
        Ok(Replied { received, outcome: settled, code })
    }

    async fn lay_into_dead_letters(&self, received: &Received, detail: &str) -> Result<(), Stopped> {
        telemetry::dead_lettered(received.kind, detail);
        let letter = DeadLetter {
            routing_key: received.kind.routing_key(),
            properties: &received.delivery.properties,
            reason: ErrorCode::InvalidRequest.name(),
            detail,
            at: self.handler.clock.now(),
        };
        self.publisher.dead_letter(&letter, &received.delivery.data).await
    }
}

impl Replied {
    fn ack(self) {
        let Self { received, outcome, code } = self;
        received.acks.settle(received.delivery.delivery_tag, Verdict::Ack);
        telemetry::message_settled(received.kind, outcome, code, received.since.elapsed());
    }
}
