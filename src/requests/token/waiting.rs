//! Waits for a refresh: the request's own, another one in this process, or another worker's.
//!
//! A waiting request occupies the prefetch, so it needs a slot first (`bulkhead.rs`). If the host may not be called now, the
//! request does not wait.

use std::sync::Arc;

use tokio::time::{Instant, sleep_until};

use super::{Attempt, Round, SHARED_FAILURE};
use crate::contract::{ErrorBody, Warning};
use crate::domain::clock::Timestamp;
use crate::domain::decide::{Cause, clamp_notice, is_valid};
use crate::limits::bulkhead::{Resource, TooManyWaiting, Waited};
use crate::refresh::{FailedFlight, FlightOutcome, HeldBack, InFlight, NotPermitted, Order, Role};
use crate::requests::grant::Way;
use crate::requests::refusal::{
    Refusal, deadline_exceeded, flight_failed, not_permitted, panicked, refresh_timeout, token_held,
    too_many_waiting,
};
use crate::store::{Entry, FailureKind};
use crate::telemetry;

impl Attempt<'_> {
    pub(super) async fn refresh(&mut self, entry: Arc<Entry>, cause: Cause) -> Result<Round, Refusal> {
        if let Err(why) = self.handler.refresher.check(&entry, &self.provider) {
            return self.without_permit(&entry, cause, why).await;
        }
        if let Err(error) = self.take_slot_for_host() {
            return self.go_without_refresh(&entry, cause, !entry.is_in_doubt(), error).await;
        }
        let mut in_flight = self.handler.refresher.refresh(Order {
            user_id: self.ask.user_id.to_owned(),
            entry: Entry::clone(&entry),
            provider: Arc::clone(&self.provider),
            cause,
            until: self.demand.until(),
            deadline: self.ask.time.give_up_at,
        });
        let role = in_flight.role;
        let until = match role {
            Role::Started => self.ask.time.give_up_at,
            Role::Joined => self.wait_until(),
        };
        match self.wait(&mut in_flight, until).await {
            Waited::Completed(FlightOutcome::Refreshed(entry)) if role == Role::Started => {
                let warnings = self.clamp(&entry);
                self.granted(&entry, self.demand.until(), Way::refreshed(cause), warnings)
            }
            Waited::Completed(FlightOutcome::Failed(flight))
                if role == Role::Started || self.shares_failure(cause, &flight) =>
            {
                match cause {
                    // The failure is recorded by now, so the entry has changed: decide on that.
                    Cause::Opportunistic => {
                        self.failed = Some(flight);
                        Ok(Round::Again)
                    }
                    Cause::Required | Cause::Reported => Err(flight_failed(&flight).into()),
                }
            }
            Waited::Completed(FlightOutcome::StoreFailed(error)) => Err(Refusal::Store(error)),
            Waited::Completed(FlightOutcome::Panicked) => Err(panicked().into()),
            Waited::Completed(
                FlightOutcome::Refreshed(_) | FlightOutcome::Failed(_) | FlightOutcome::Moved,
            )
            | Waited::TooManyWaiting => Ok(Round::Again),
            Waited::TimedOut => self.last_look().await,
        }
    }

    /// No refresh may begin now. If it was only too frequent and not needed, that is no failure.
    async fn without_permit(&self, entry: &Entry, cause: Cause, why: NotPermitted) -> Result<Round, Refusal> {
        telemetry::refresh_not_begun(&self.provider.host, why.held_back().map(HeldBack::name));
        let certain = !entry.is_in_doubt();
        if why.is_over_limit() && self.may_serve_as_it_is(cause, certain) {
            return self.serve(entry, Way::stored(false), self.clamp(entry)).await;
        }
        self.go_without_refresh(entry, cause, certain, not_permitted(why, &self.provider)).await
    }

    /// There will be no refresh. If it was opportunistic and the provider certainly did not act, the token is still good.
    pub(super) async fn go_without_refresh(
        &self,
        entry: &Entry,
        cause: Cause,
        certain: bool,
        error: ErrorBody,
    ) -> Result<Round, Refusal> {
        if !self.may_serve_as_it_is(cause, certain) {
            return Err(error.into());
        }
        let mut warnings = self.clamp(entry);
        warnings.push(Warning::RefreshFailed);
        self.serve(entry, Way::AFTER_FAILED_REFRESH, warnings).await
    }

    fn may_serve_as_it_is(&self, cause: Cause, certain: bool) -> bool {
        match cause {
            Cause::Opportunistic => certain || !self.provider.kills_old_token(),
            Cause::Required | Cause::Reported => false,
        }
    }

    fn clamp(&self, entry: &Entry) -> Vec<Warning> {
        clamp_notice(entry.state.granted_lifetime, &self.demand).into_iter().map(Warning::from).collect()
    }

    pub(super) async fn wait_for_others(&mut self, entry: &Entry) -> Result<Round, Refusal> {
        self.take_slot_for_host()?;
        let mut watch = self.handler.refresher.watch(entry);
        if watch.role == Role::Started {
            telemetry::lease_watched(&self.provider.host);
        }
        let until = self.wait_until();
        match self.wait(&mut watch, until).await {
            Waited::Completed(FlightOutcome::StoreFailed(error)) => Err(Refusal::Store(error)),
            Waited::Completed(FlightOutcome::Panicked) => Err(panicked().into()),
            Waited::Completed(FlightOutcome::Failed(flight)) => {
                self.failed = Some(flight);
                Ok(Round::Again)
            }
            Waited::Completed(FlightOutcome::Refreshed(_) | FlightOutcome::Moved)
                if Instant::now() < until =>
            {
                Ok(Round::Again)
            }
            Waited::TooManyWaiting => Ok(Round::Again),
            Waited::Completed(_) | Waited::TimedOut => self.last_look().await,
        }
    }

    /// Waits until nobody holds the token any more, or the request's time is over.
    pub(super) async fn wait_for_reservation(
        &mut self,
        until: Timestamp,
        now: Timestamp,
    ) -> Result<Round, Refusal> {
        let remaining = until.since(now);
        let resource =
            Resource::Reservation { host: self.provider.host.clone(), user_id: self.ask.user_id.to_owned() };
        self.take_slot(resource).map_err(|TooManyWaiting| token_held(&self.provider, remaining))?;
        let Some(mut slot) = self.slot.take() else { return Ok(Round::Again) };
        let over = Instant::now() + remaining;
        match slot.wait(self.ask.time.give_up_at, sleep_until(over)).await {
            Waited::Completed(()) | Waited::TimedOut => Ok(Round::Again),
            Waited::TooManyWaiting => {
                Err(token_held(&self.provider, over.saturating_duration_since(Instant::now())).into())
            }
        }
    }

    /// Takes a slot to wait for this host. It is kept until the request is answered.
    fn take_slot_for_host(&mut self) -> Result<(), ErrorBody> {
        let host = Resource::Host(self.provider.host.clone());
        self.take_slot(host).map_err(|TooManyWaiting| too_many_waiting(&self.provider))
    }

    fn take_slot(&mut self, resource: Resource) -> Result<(), TooManyWaiting> {
        if self.slot.as_ref().is_some_and(|slot| *slot.resource() == resource) {
            return Ok(());
        }
        let Self { handler, ask, provider, .. } = self;
        let waiter = ask.waiter();
        let slot = handler.refresher.bulkhead().enter(resource, waiter, Instant::now()).inspect_err(
            |TooManyWaiting| {
                telemetry::bulkhead_refused(&provider.host, ask.asker.kind);
            },
        )?;
        self.slot = Some(slot);
        Ok(())
    }

    /// Waits for the flight. If too many wait, the slot is given back, and the next round decides what to do.
    async fn wait(&mut self, in_flight: &mut InFlight, until: Instant) -> Waited<FlightOutcome> {
        let Some(mut slot) = self.slot.take() else { return Waited::TooManyWaiting };
        let waited = slot.wait(until, in_flight.outcome()).await;
        match waited {
            Waited::TooManyWaiting => {}
            Waited::Completed(_) | Waited::TimedOut => self.slot = Some(slot),
        }
        waited
    }

    /// The wait is over: hand the token out if nobody refreshes it any more and it is valid.
    async fn last_look(&self) -> Result<Round, Refusal> {
        let entry = self.load().await?;
        let now = self.handler.clock.now();
        let usable = !entry.has_live_lease(now) && !self.may_be_dead(&entry, now).await?;
        if usable && is_valid(&entry.state, now, &self.demand) {
            let warnings = self.clamp(&entry);
            if let Round::Granted(grant) = self.serve(&entry, Way::AFTER_TIMEOUT, warnings).await? {
                return Ok(Round::Granted(grant));
            }
        }
        Err(if self.ask.time.is_over() { deadline_exceeded() } else { refresh_timeout(&self.provider) }
            .into())
    }

    /// Whether this token may be dead. It may if a refresh was interrupted. It also may if the outcome of a refresh is unknown
    /// or somebody reported the token, unless somebody holds it.
    async fn may_be_dead(&self, entry: &Entry, now: Timestamp) -> Result<bool, Refusal> {
        if let Some(failure) = self.handler.store.condemnation(entry)?
            && self.ends_old_token(entry, failure.kind).await?
        {
            return Ok(true);
        }
        let doubtful = entry.is_in_doubt() && self.provider.kills_old_token() || entry.state.reported;
        let held = entry.state.reserved_until.is_some_and(|until| until > now);
        Ok(doubtful && !held)
    }

    fn wait_until(&mut self) -> Instant {
        let wait = self.handler.refresher.options().wait;
        *self.wait_until.get_or_insert_with(|| (Instant::now() + wait).min(self.ask.time.give_up_at))
    }

    pub(super) fn shares_failure(&self, cause: Cause, flight: &FailedFlight) -> bool {
        match cause {
            Cause::Opportunistic => true,
            Cause::Required | Cause::Reported => match flight.kind {
                FailureKind::Refused | FailureKind::Interrupted | FailureKind::Misconfigured => true,
                FailureKind::Unavailable => self.ask.time.give_up_at <= flight.deadline + SHARED_FAILURE,
            },
        }
    }
}
