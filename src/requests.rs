//! The story of one request: authorise, load, decide, act, outcome.
//!
//! Nothing here publishes or acks: [`Handler::handle`] takes what came in and gives back an [`Outcome`] for
//! `worker.rs` to settle.

mod grant;
mod outcome;
mod refusal;
mod report;
mod store_pair;
mod token;
mod workspace_start;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub use self::outcome::Outcome;
pub use self::store_pair::Login;
use self::store_pair::Seal;
use self::token::Ask;
use crate::contract::{
    Echo, Envelope, ErrorBody, ErrorCode, ErrorReply, InvalidRequest, LifetimeSecs, MessageKind, Request,
    TokenReply,
};
use crate::domain::clock::{Clock, Timestamp};
use crate::domain::secret::KeyRing;
use crate::flags::Flags;
use crate::limits::bulkhead::Queue;
use crate::limits::publisher::{PublisherLimit, TooOften};
use crate::refresh::Refresher;
use crate::settings::{Access, Asked, Denied, WorkerSettings};
use crate::store::Store;
use crate::store::database::Availability;
use crate::store::provider_cache::Providers;
use crate::telemetry;
use crate::telemetry::audit::{self, Asker};

/// Handles requests: everything between a delivery and its outcome.
pub struct Handler {
    pub store: Store,
    pub providers: Providers,
    pub refresher: Arc<Refresher>,
    pub database: Availability,
    pub flags: Flags,
    pub access: Access,
    /// Open the logins that are sealed.
    pub keys: Arc<KeyRing>,
    /// How often a publisher may ask. None: there is no limit.
    pub publisher_limit: Option<PublisherLimit>,
    pub clock: Arc<dyn Clock>,
    pub budgets: Budgets,
}

/// The most time that a request can ask for. The broker closes a channel if a message is not acked for half an hour.
const LONGEST_BUDGET: Duration = Duration::from_secs(600);

/// AMQP's `timestamp` counts whole seconds, so a message may be younger than it says by up to this.
const REST_OF_THE_SECOND: Duration = Duration::from_millis(999);

/// How much time a request has, where its `expiration` does not say.
#[derive(Debug, Clone, Copy)]
pub struct Budgets {
    /// `token.request`, `token.store` and `token.report`.
    pub request: Duration,
    pub workspace_start: Duration,
}

impl From<&WorkerSettings> for Budgets {
    fn from(settings: &WorkerSettings) -> Self {
        Self { request: settings.request_budget, workspace_start: settings.workspace_start_budget }
    }
}

#[derive(Debug)]
pub struct Incoming<'a> {
    /// The kind of the queue that it came from.
    pub kind: MessageKind,
    pub request: Result<Request, InvalidRequest>,
    pub envelope: &'a Envelope,
    pub time: TimeFrame,
    /// The queue whose prefetch it counts against.
    pub queue: Queue,
}

#[derive(Debug, Clone, Copy)]
pub struct TimeFrame {
    received_at: Timestamp,
    deadline: Timestamp,
    give_up_at: Instant,
    is_of_message: bool,
}

impl TimeFrame {
    /// When its requester stops waiting.
    pub const fn give_up_at(&self) -> Instant {
        self.give_up_at
    }

    /// The same, by the clock that workers share.
    pub const fn deadline(&self) -> Timestamp {
        self.deadline
    }

    /// Whether the message itself says when its time ends. Otherwise a later try has as much time again.
    pub const fn is_of_message(&self) -> bool {
        self.is_of_message
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.give_up_at
    }
}

impl Handler {
    pub async fn handle(&self, incoming: Incoming<'_>) -> Outcome {
        let Incoming { kind, envelope, time, queue, .. } = incoming;
        let request_id = envelope.request_id();
        let asker = Asker { kind, publisher: envelope.publisher.as_deref(), request_id };
        let request = match self.accept(incoming) {
            Ok(request) => request,
            Err(refused) => {
                refused.audit(asker);
                return refused;
            }
        };
        // Every message has room for the largest of these, so the rare ones are boxed.
        match request {
            Request::Token(request) => {
                let ask = Ask {
                    user_id: request.user_id.as_str(),
                    host: request.host.as_str(),
                    lifetime: request.requested_lifetime_secs.map_or_else(
                        || self.access.within_limit(asker.publisher, LifetimeSecs::DEFAULT),
                        LifetimeSecs::duration,
                    ),
                    seal_to: request.reply_public_key.as_ref(),
                    time,
                    asker,
                    queue,
                };
                Outcome::token(self.token_reply(ask).await)
            }
            Request::WorkspaceStart(request) => {
                Outcome::workspace_start(Box::pin(self.start_workspace(&request, time, asker, queue)).await)
            }
            Request::Store(request) => {
                Outcome::store(Box::pin(self.store_pair(*request, time, asker, Seal::None)).await)
            }
            Request::SealedStore(request) => Box::pin(self.store_sealed_pair(&request, time, asker)).await,
            Request::Report(request) => {
                Outcome::report(Box::pin(self.report(&request, time, asker, queue)).await)
            }
        }
    }

    /// The request, or why the message is refused as a whole.
    #[expect(clippy::result_large_err, reason = "a refusal is the outcome of its message as any other")]
    fn accept(&self, incoming: Incoming<'_>) -> Result<Request, Outcome> {
        let Incoming { kind, request, envelope, time, .. } = incoming;
        // A message counts also if it is refused for another reason.
        let publisher = envelope.publisher.as_deref();
        let too_often = self.count(publisher).err();
        if let Some(unanswerable) = envelope.unanswerable {
            return Err(Outcome::unanswerable(unanswerable.to_string()));
        }
        // Before anything that is answered: a reply there is what the publisher may not have.
        if envelope.reply_to.as_ref().is_some_and(|queue| !self.access.admits_reply_to(publisher, queue)) {
            let denied = self.denied(publisher, Denied::ReplyQueue);
            return Err(Outcome::Unanswerable { code: ErrorCode::Forbidden, reason: denied.to_string() });
        }
        let request = request.map_err(|invalid| {
            if invalid.is_request {
                Outcome::invalid(kind, *invalid.echo, invalid.reason)
            } else {
                Outcome::unanswerable(invalid.reason)
            }
        })?;
        if let Some(reason) = envelope.unusable {
            return Err(Outcome::invalid(kind, Echo::of(&request), reason.to_owned()));
        }
        if kind.needs_reply_to() && envelope.reply_to.is_none() {
            let reason = "property reply_to: is missing; it names the queue of the reply".to_owned();
            return Err(Outcome::invalid(kind, Echo::of(&request), reason));
        }
        let asked = Asked {
            publisher,
            message: kind,
            user_id: request.user_id(),
            lifetime: request.requested_lifetime().map(LifetimeSecs::duration),
        };
        if let Err(denied) = self.access.admits(&asked) {
            let denied = self.denied(publisher, denied);
            return Err(Outcome::error(kind, Echo::of(&request), refusal::forbidden(denied)));
        }
        // A `token.store` without `reply_to` is stored all the same. Nobody would hear of the refusal, and the login would be lost.
        if let Some(too_often) = too_often
            && envelope.reply_to.is_some()
        {
            telemetry::publisher_refused(kind, publisher, too_often.is_logged);
            return Err(Outcome::error(kind, Echo::of(&request), refusal::too_often(too_often)));
        }
        if time.is_over() {
            let error =
                ErrorBody::new(ErrorCode::DeadlineExceeded, "the request is older than the time it has");
            return Err(Outcome::error(kind, Echo::of(&request), error));
        }
        if let Some(setting) = self.access.must_seal(envelope.publisher.as_deref(), kind)
            && let Some(field) = request.missing_seal()
        {
            return Err(Outcome::error(kind, Echo::of(&request), refusal::not_sealed(field, setting)));
        }
        Ok(request)
    }

    /// Under a policy all publishers that it does not name count as one: a user of the broker that may set any `user_id` can
    /// make up as many as it likes.
    fn count(&self, publisher: Option<&str>) -> Result<(), TooOften> {
        let Some(limit) = &self.publisher_limit else { return Ok(()) };
        limit.count(if self.access.is_open() { publisher } else { self.access.listed(publisher) })
    }

    /// Counts a denial. Only names that the settings hold become labels of the metric.
    fn denied(&self, publisher: Option<&str>, denied: Denied) -> Denied {
        telemetry::denied(self.access.listed(publisher), publisher.is_some(), denied.name());
        denied
    }

    /// When the request came, and when its requester stops waiting. That is the `deadline` from before the message was put off,
    /// if there is one. Otherwise the time counts from the message's `timestamp`, because the message may have waited in the
    /// queue. Without one, `expiration` counts from when the message `arrived` in this worker, and a budget from now.
    pub fn time_frame(
        &self,
        kind: MessageKind,
        envelope: &Envelope,
        arrived: Instant,
        deadline: Option<Timestamp>,
    ) -> TimeFrame {
        let budget = match kind {
            MessageKind::TokenRequest | MessageKind::TokenStore | MessageKind::TokenReport => {
                self.budgets.request
            }
            MessageKind::WorkspaceStart => self.budgets.workspace_start,
        };
        let budget = envelope.time_to_live.map_or(budget, |time_to_live| time_to_live.min(LONGEST_BUDGET));
        let received_at = self.clock.now();
        // Frameworks set `timestamp` unasked, and a login stays good while it waits. Only the publisher's own `expiration`
        // ages it.
        let ages = kind != MessageKind::TokenStore || envelope.time_to_live.is_some();
        // A publisher whose clock is ahead does not get more time.
        let published_at = envelope.published_at.filter(|_| ages).map(|at| at.plus(REST_OF_THE_SECOND));
        let came_at = match envelope.time_to_live {
            Some(_) => received_at.minus(arrived.elapsed()),
            None => received_at,
        };
        let counted_from = published_at.map_or(came_at, |at| at.min(came_at));
        let is_of_message = deadline.is_some() || envelope.time_to_live.is_some() || published_at.is_some();
        let deadline = deadline.unwrap_or_else(|| counted_from.plus(budget));
        let give_up_at = Instant::now() + deadline.since(received_at);
        TimeFrame { received_at, deadline, give_up_at, is_of_message }
    }

    async fn token_reply(&self, ask: Ask<'_>) -> TokenReply {
        match self.hand_out(&ask).await {
            Ok(grant) => TokenReply::Ok(grant),
            Err(error) => {
                audit::refused(ask.asker, Some(ask.user_id), Some(ask.host), error.code);
                let (user_id, host) = (Some(ask.user_id.to_owned()), Some(ask.host.to_owned()));
                TokenReply::Error(ErrorReply::new(Echo { user_id, host, workspace_id: None }, error))
            }
        }
    }
}
