//! One token for one requester: load, decide, act, until it is handed out or refused.

mod waiting;

use std::future::Future;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use super::grant::{Grant, Way, refused};
use super::refusal::{
    Refusal, database_away, deadline_exceeded, flight_failed, forbidden, internal_message, refused_before,
};
use super::{Handler, TimeFrame};
use crate::contract::{ErrorBody, ErrorCode, TokenGrant, Warning};
use crate::domain::clock::Timestamp;
use crate::domain::decide::{Decision, Demand, Notice, Policy, TokenState, decide};
use crate::domain::provider::Provider;
use crate::domain::sealed_box::PublicKey;
use crate::journal::StillBehind;
use crate::limits::bulkhead::{Queue, WaitSlot, Waiter};
use crate::refresh::FailedFlight;
use crate::retry::Backoff;
use crate::store::{Claim, Entry, FailureKind, Found, Guarded, StoreError};
use crate::telemetry::audit::Asker;
use crate::telemetry::{self, Opportunism, Statement};

/// How a request is tried again while the database is away.
const DATABASE_AGAIN: Backoff = Backoff::doubling(Duration::from_millis(50), Duration::from_secs(2));

/// How much longer than its time a request is worked on. A request that waited to its end looks once more at a database that
/// answers, and the requester is still told within a quarter of a second.
const LAST_LOOK: Duration = Duration::from_millis(100);

/// A request takes a joined flight's failure for its own if its time ends at most this much later than the flight's. So
/// requests of about the same time fail together, instead of trying one after the other.
const SHARED_FAILURE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy)]
pub(super) struct Ask<'a> {
    pub(super) user_id: &'a str,
    pub(super) host: &'a str,
    pub(super) lifetime: Duration,
    /// The reply's token is sealed to this key.
    pub(super) seal_to: Option<&'a PublicKey>,
    pub(super) time: TimeFrame,
    pub(super) asker: Asker<'a>,
    pub(super) queue: Queue,
}

impl Ask<'_> {
    fn waiter(&self) -> Waiter<'_> {
        Waiter { queue: self.queue, publisher: self.asker.publisher, user_id: Some(self.user_id) }
    }

    fn demand(&self) -> Demand {
        Demand { received_at: self.time.received_at, lifetime: self.lifetime, deadline: self.time.deadline }
    }
}

impl Handler {
    /// Hands out a token, and counts the result. Only known hosts are counted, because a label must not come from a publisher.
    pub(super) async fn hand_out(&self, ask: &Ask<'_>) -> Result<TokenGrant, ErrorBody> {
        let provider = self.in_time(ask.time, || self.provider_for(ask)).await?;
        if !self.journal.opened_by(ask.time.give_up_at).await {
            return Err(database_away());
        }
        let granted = self.in_time(ask.time, || self.try_hand_out(ask, Arc::clone(&provider))).await;
        match granted {
            Ok(grant) => {
                telemetry::token_requested(&provider.host, grant.result, grant.opportunism);
                grant.audit(ask);
                Ok(grant.reply)
            }
            Err(error) => {
                telemetry::token_requested(&provider.host, refused(&error), Opportunism::False);
                Err(error)
            }
        }
    }

    /// The limit of a request: answers when its time is over, whatever `attempt` waits for. Runs `attempt` again while the
    /// database is away.
    ///
    /// What the request has begun goes on without it: a flight, or a statement that it shares with others.
    pub(super) async fn in_time<T, F>(
        &self,
        time: TimeFrame,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, ErrorBody>
    where
        F: Future<Output = Result<T, Refusal>>,
    {
        let attempts = async {
            let mut delays = DATABASE_AGAIN.delays();
            loop {
                let error = match attempt().await {
                    Ok(value) => return Ok(value),
                    // Its refreshes wait for the database, and not for the host.
                    Err(Refusal::Answer(error)) if error.code.is_of_host() && self.database.is_away() => {
                        self.database.there().await;
                        continue;
                    }
                    Err(Refusal::Answer(error)) => return Err(error),
                    Err(Refusal::Store(error)) => error,
                };
                if error.is_of_contents() {
                    telemetry::row_unusable(&error);
                } else {
                    telemetry::store_failed(&error);
                    self.database.suspect(&error);
                }
                if !error.is_transient() {
                    return Err(ErrorBody::new(ErrorCode::Internal, internal_message(&error)));
                }
                if !delays.wait_before(time.give_up_at).await {
                    sleep_until(time.give_up_at).await;
                    return Err(database_away());
                }
                // No crowd asks a database that is away: its return is noticed for all of them.
                self.database.there().await;
            }
        };
        // Everything else that an attempt waits for ends with the time of the request.
        timeout_at(time.give_up_at + LAST_LOOK, attempts).await.unwrap_or_else(|_| {
            telemetry::store_failed(&StoreError::NoAnswer);
            self.database.suspect(&StoreError::NoAnswer);
            Err(database_away())
        })
    }

    pub(super) async fn provider_for(&self, ask: &Ask<'_>) -> Result<Arc<Provider>, Refusal> {
        self.allowed_provider(ask.asker, ask.host).await
    }

    /// The provider of a host, if the publisher may ask for it. Access rules name a provider's own host, not its other hosts.
    pub(super) async fn allowed_provider(
        &self,
        asker: Asker<'_>,
        host: &str,
    ) -> Result<Arc<Provider>, Refusal> {
        let provider = self.providers.find(host).await?;
        let own_host = provider.as_ref().map_or(host, |provider| &provider.host);
        if let Err(denied) = self.access.admits_host(asker.publisher, asker.kind, own_host) {
            return Err(forbidden(self.admission().denied(asker.publisher, denied)).into());
        }
        provider.ok_or_else(|| Refusal::unknown_host(host))
    }

    pub(super) async fn try_hand_out(
        &self,
        ask: &Ask<'_>,
        provider: Arc<Provider>,
    ) -> Result<Grant, Refusal> {
        // The flag is read only if the provider needs it.
        let flag =
            provider.opportunistic_refresh && self.flags.opportunistic_token_refresh(ask.user_id).await;
        let policy = Policy::new(&provider, flag);
        Attempt {
            handler: self,
            ask,
            demand: ask.demand(),
            provider,
            policy,
            slot: None,
            wait_until: None,
            failed: None,
            brought_up: false,
        }
        .run()
        .await
    }
}

/// A request in its rounds of load, decide and act, with what it remembers between two rounds.
struct Attempt<'a> {
    handler: &'a Handler,
    ask: &'a Ask<'a>,
    demand: Demand,
    provider: Arc<Provider>,
    policy: Policy,
    /// Its slot to wait for a host or a reservation, taken at the first wait.
    slot: Option<WaitSlot>,
    /// Until when it waits for refreshes that it did not start. Set at the first one.
    wait_until: Option<Instant>,
    /// The flight that failed while it waited.
    failed: Option<Arc<FailedFlight>>,
    /// Whether its row was brought up to the journal.
    brought_up: bool,
}

enum Round {
    Granted(Grant),
    /// The row has changed: load and decide again.
    Again,
}

impl Attempt<'_> {
    /// Tries the cache first, then goes round by round.
    async fn run(mut self) -> Result<Grant, Refusal> {
        if !self.ask.time.is_over()
            && let Round::Granted(grant) = self.serve_known().await?
        {
            return Ok(grant);
        }
        // Boxed: every message would carry its size, and most of them end before.
        Box::pin(self.rounds()).await
    }

    /// Goes round by round. A round that does not end the request was overtaken by somebody else's progress.
    async fn rounds(&mut self) -> Result<Grant, Refusal> {
        loop {
            if self.ask.time.is_over() {
                return Err(deadline_exceeded().into());
            }
            match self.round().await? {
                Round::Granted(grant) => return Ok(grant),
                Round::Again => {}
            }
        }
    }

    /// Serves a cached entry, if the decision is to serve it and the row has not changed. Most requests need nothing else.
    async fn serve_known(&self) -> Result<Round, Refusal> {
        let Handler { store, clock, .. } = self.handler;
        let (user_id, provider_id, now) = (self.ask.user_id, self.provider.id, clock.now());
        let Some(known) = store.known(user_id, provider_id, now) else { return Ok(Round::Again) };
        if self.handler.journal.is_ahead_of(&self.provider.host, &known.entry) {
            return Ok(Round::Again);
        }
        let decision = decide(Some(&known.state()), now, &self.demand, &self.policy);
        let Decision::Serve { reserved, notices } = decision else { return Ok(Round::Again) };
        let until = self.demand.until().max(known.reserved_until());
        match store.reserve_known(&known, until, now).await? {
            Guarded::Done => {
                let granted = self.granted(&known.entry, until, Way::stored(reserved), warnings(notices));
                // The row may have been mended since it was loaded.
                granted.or_else(|_| {
                    known.forget();
                    Ok(Round::Again)
                })
            }
            Guarded::Moved => Ok(Round::Again),
        }
    }

    /// Waits and refreshes are boxed: every message would carry the size of its largest step, and few need that.
    async fn round(&mut self) -> Result<Round, Refusal> {
        if !self.handler.journal.opened_by(self.ask.time.give_up_at).await {
            return Err(database_away().into());
        }
        let entry = self.load().await?;
        if self.handler.journal.is_ahead_of(&self.provider.host, &entry) {
            return Box::pin(self.bring_up(&entry)).await;
        }
        let now = self.handler.clock.now();
        if entry.has_live_lease(now) {
            telemetry::lease_waited(&self.provider.host);
            return Box::pin(self.wait_for_others(&entry)).await;
        }
        let condemned = self.handler.store.condemnation(&entry)?;
        if let Some(failure) = condemned
            && self.ends_old_token(&entry, failure.kind).await?
        {
            return Err(refused_before(failure, &self.provider).into());
        }
        let state = as_held(&entry, self.handler.journal.unsure_until(now));
        match decide(Some(&state), now, &self.demand, &self.policy) {
            Decision::Serve { reserved, notices } => {
                self.serve(&entry, Way::stored(reserved), warnings(notices)).await
            }
            Decision::Refresh(cause) => match (condemned, &self.failed) {
                (Some(failure), _) => {
                    let error = refused_before(failure, &self.provider);
                    Box::pin(self.go_without_refresh(&entry, cause, !entry.is_in_doubt(), error)).await
                }
                (None, Some(flight)) if self.shares_failure(cause, flight) => {
                    let certain = flight.certain && !entry.is_in_doubt();
                    Box::pin(self.go_without_refresh(&entry, cause, certain, flight_failed(flight))).await
                }
                (None, _) => Box::pin(self.refresh(entry, cause)).await,
            },
            Decision::WaitForReservation(until) => Box::pin(self.wait_for_reservation(until, now)).await,
            Decision::TokenNotFound => Err(self.token_not_found().into()),
            Decision::NotRefreshable => Err(self.not_refreshable(&entry).into()),
        }
    }

    /// The row is behind the journal: a worker died before it stored the pair, the database went back, or somebody put an old row
    /// back. Nothing of it is handed out.
    async fn bring_up(&mut self, entry: &Entry) -> Result<Round, Refusal> {
        let (host, user_id) = (&self.provider.host, self.ask.user_id);
        let what = || StoreError::Changed {
            what: format!("token_entry {}, which is behind the journal,", entry.id),
        };
        if mem::replace(&mut self.brought_up, true) {
            return Err(Refusal::Store(what().into()));
        }
        if entry.has_live_lease(self.handler.clock.now()) {
            // Its pair is on the way to the row.
            self.brought_up = false;
            return self.wait_for_others(entry).await;
        }
        match self.handler.journal.bring_up(host, user_id, self.provider.id).await {
            Ok(()) => Ok(Round::Again),
            Err(StillBehind) => Err(Refusal::Store(what().into())),
        }
    }

    /// The entry, already reserved if every decision would reserve it.
    async fn load(&self) -> Result<Arc<Entry>, Refusal> {
        let now = self.handler.clock.now();
        let claim = Claim {
            user_id: self.ask.user_id.to_owned(),
            provider_id: self.provider.id,
            until: Some(self.demand.until()),
            only_if_held_beyond: self.policy.opportunistic.then(|| self.policy.reservations_stand_from(now)),
            now,
        };
        let error = match self.handler.store.claim(claim).await? {
            Found::Entry(entry) => return Ok(entry),
            Found::NoUser => {
                ErrorBody::new(ErrorCode::UserNotFound, "the user has no identity at any provider")
            }
            Found::NoIdentity => ErrorBody::new(
                ErrorCode::IdentityNotFound,
                format!("the user has no identity at {}", self.provider.host),
            ),
            Found::NoToken => self.token_not_found(),
        };
        Err(error.into())
    }

    /// Reserves, then hands out. Nothing is written if the reservation reaches far enough.
    async fn serve(&self, entry: &Entry, way: Way, warnings: Vec<Warning>) -> Result<Round, Refusal> {
        let until = self.demand.until();
        let reserved_until = match entry.state.reserved_until {
            Some(reserved) if reserved >= until => reserved,
            _ => match self.handler.store.reserve(entry, until, self.handler.clock.now()).await? {
                Guarded::Done => until,
                Guarded::Moved => {
                    telemetry::lost_compare_and_set(Statement::Reserve);
                    return Ok(Round::Again);
                }
            },
        };
        self.granted(entry, reserved_until, way, warnings)
    }

    fn granted(
        &self,
        entry: &Entry,
        reserved_until: Timestamp,
        way: Way,
        warnings: Vec<Warning>,
    ) -> Result<Round, Refusal> {
        let Self { handler, ask, provider, .. } = self;
        handler.grant(ask, provider, entry, reserved_until, way, warnings).map(Round::Granted)
    }

    /// Whether a failure of this kind says that the stored access token is dead as well.
    ///
    /// Where a refresh ends the old token, a refused refresh token was most likely spent: by a refresh that the database lost. The
    /// token that is stored with it ended then. Where nobody was ever refreshed with the provider's present settings, the
    /// refusal may speak of the settings.
    async fn ends_old_token(&self, entry: &Entry, kind: FailureKind) -> Result<bool, StoreError> {
        let Self { handler, provider, .. } = self;
        match kind {
            _ if !provider.kills_old_token() => Ok(false),
            FailureKind::Interrupted => Ok(true),
            FailureKind::Refused => {
                Ok(entry.was_refreshed_by(provider) || handler.store.has_refreshed_anybody(provider).await?)
            }
            FailureKind::Misconfigured | FailureKind::Unavailable => Ok(false),
        }
    }

    fn token_not_found(&self) -> ErrorBody {
        let message = format!("the identity at {} has no token", self.provider.host);
        ErrorBody::new(ErrorCode::TokenNotFound, message)
    }

    fn not_refreshable(&self, entry: &Entry) -> ErrorBody {
        let why = if entry.state.reported {
            "was reported as rejected by its host".to_owned()
        } else {
            format!("does not live until {}", self.demand.until())
        };
        let host = &self.provider.host;
        let message =
            format!("the token {why}, and there is no refresh token; the user must log in at {host} again");
        ErrorBody::new(ErrorCode::NotRefreshable, message)
    }
}

/// What to decide on: while reservations may be unknown, every token counts as reserved.
fn as_held(entry: &Entry, unsure_until: Option<Timestamp>) -> TokenState {
    TokenState { reserved_until: entry.state.reserved_until.max(unsure_until), ..entry.state }
}

fn warnings(notices: Vec<Notice>) -> Vec<Warning> {
    notices.into_iter().map(Warning::from).collect()
}
