//! The story of one request: authorise, load, decide, act, outcome.
//!
//! Nothing here publishes or acks: [`Handler::handle`] takes what came in and gives back an [`Outcome`] for
//! `worker.rs` to settle.

mod admission;
mod grant;
mod outcome;
mod refusal;
mod report;
mod store_pair;
mod time_frame;
mod token;
mod workspace_start;

use std::sync::Arc;

use tokio::time::Instant;

pub use self::admission::Admission;
pub use self::outcome::Outcome;
pub use self::store_pair::Login;
use self::store_pair::Seal;
pub use self::time_frame::{Budgets, LATE_REPLY, TimeFrame};
use self::token::Ask;
pub use self::workspace_start::no_clone_url;
use crate::contract::{
    Echo, Envelope, ErrorReply, InvalidRequest, LifetimeSecs, MessageKind, Request, TokenReply,
};
use crate::domain::clock::{Clock, Timestamp};
use crate::domain::secret::KeyRing;
use crate::flags::Flags;
use crate::journal::Journal;
use crate::limits::bulkhead::Queue;
use crate::limits::publisher::PublisherLimit;
use crate::refresh::Refresher;
use crate::settings::Access;
use crate::store::Store;
use crate::store::database::Availability;
use crate::store::provider_cache::Providers;
use crate::telemetry::audit::{self, Asker};

/// Handles requests: everything between a delivery and its outcome.
pub struct Handler {
    pub store: Store,
    pub providers: Providers,
    pub refresher: Arc<Refresher>,
    pub journal: Journal,
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

impl Handler {
    pub async fn handle(&self, incoming: Incoming<'_>) -> Outcome {
        let Incoming { kind, request, envelope, time, queue } = incoming;
        let request_id = envelope.request_id();
        let asker = Asker { kind, publisher: envelope.publisher.as_deref(), request_id };
        let request = match self.admission().accept(kind, request, envelope, time) {
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

    fn admission(&self) -> Admission<'_> {
        Admission { access: &self.access, publisher_limit: self.publisher_limit.as_ref() }
    }

    /// The time of a message, as [`TimeFrame::of`] has it.
    pub fn time_frame(
        &self,
        kind: MessageKind,
        envelope: &Envelope,
        arrived: Instant,
        deadline: Option<Timestamp>,
    ) -> TimeFrame {
        TimeFrame::of(kind, envelope, arrived, deadline, self.clock.now(), self.budgets)
    }

    async fn token_reply(&self, ask: Ask<'_>) -> TokenReply {
        match self.hand_out(&ask).await {
            Ok(grant) => TokenReply::Ok(grant),
            Err(error) => {
                audit::refused(ask.asker, Some(ask.user_id), Some(ask.host), error.code);
                TokenReply::Error(ErrorReply::new(Echo::of_user(ask.user_id, ask.host), error))
            }
        }
    }
}
