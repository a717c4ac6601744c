//! Waits for a refresh: the request's own, another one in this process, or another worker's.
//!
//! A waiting request occupies the prefetch, so it needs a seat first (`bulkhead.rs`). If the host cannot be asked now, it does
//! not wait.

use std::sync::Arc;

use tokio::time::{Instant, sleep_until};

use super::{Attempt, Round, SHARED_FATE};
use crate::contract::{ErrorBody, Warning};
use crate::domain::clock::Timestamp;
use crate::domain::decide::{Cause, clamp_notice, is_valid};
use crate::limits::bulkhead::{Crowded, Thing, Waited};
use crate::refresh::{FailedFlight, FlightOutcome, HeldBack, InFlight, NoEntry, Order, Role};
use crate::requests::grant::Way;
use crate::requests::refusal::{
    Refusal, crowded, deadline_exceeded, flight_failed, left_alone, panicked, refresh_timeout, token_held,
};
use crate::store::{Entry, FailureKind};
use crate::telemetry;

impl Attempt<'_> {
    pub(super) async fn refresh(&mut self, entry: Arc<Entry>, cause: Cause) -> Result<Round, Refusal> {
        if let Err(no_entry) = self.handler.refresher.look(&entry, &self.provider) {
            return self.leave_alone(&entry, cause, no_entry).await;
        }
        if let Err(error) = self.take_seat_for_host() {
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
            Role::Joined => self.patience_until(),
        };
        match self.wait(&mut in_flight, until).await {
            Waited::Came(FlightOutcome::Refreshed(entry)) if role == Role::Started => {
                let warnings = self.clamp(&entry);
                self.granted(&entry, self.demand.until(), Way::refreshed(cause), warnings)
            }
            Waited::Came(FlightOutcome::Failed(flight))
                if role == Role::Started || self.shares_fate(cause, &flight) =>
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
            Waited::Came(FlightOutcome::StoreFailed(error)) => Err(Refusal::Store(error)),
            Waited::Came(FlightOutcome::Panicked) => Err(panicked().into()),
            Waited::Came(FlightOutcome::Refreshed(_) | FlightOutcome::Failed(_) | FlightOutcome::Moved)
            | Waited::Crowded => Ok(Round::Again),
            Waited::TimedOut => self.last_look().await,
        }
    }

    /// No refresh may begin now. If it was only too frequent and not needed, that is no failure.
    async fn leave_alone(&self, entry: &Entry, cause: Cause, no_entry: NoEntry) -> Result<Round, Refusal> {
        telemetry::refresh_not_begun(&self.provider.host, no_entry.held_back().map(HeldBack::name));
        let certain = !entry.is_in_doubt();
        if no_entry.is_over_limit() && self.may_serve_as_it_is(cause, certain) {
            return self.serve(entry, Way::stored(false), self.clamp(entry)).await;
        }
        self.go_without_refresh(entry, cause, certain, left_alone(no_entry, &self.provider)).await
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
        self.take_seat_for_host()?;
        let mut watch = self.handler.refresher.watch(entry);
        if watch.role == Role::Started {
            telemetry::lease_watched(&self.provider.host);
        }
        let until = self.patience_until();
        match self.wait(&mut watch, until).await {
            Waited::Came(FlightOutcome::StoreFailed(error)) => Err(Refusal::Store(error)),
            Waited::Came(FlightOutcome::Panicked) => Err(panicked().into()),
            Waited::Came(FlightOutcome::Failed(flight)) => {
                self.failed = Some(flight);
                Ok(Round::Again)
            }
            Waited::Came(FlightOutcome::Refreshed(_) | FlightOutcome::Moved) if Instant::now() < until => {
                Ok(Round::Again)
            }
            Waited::Crowded => Ok(Round::Again),
            Waited::Came(_) | Waited::TimedOut => self.last_look().await,
        }
    }

    /// Waits until nobody holds the token any more, or the request's time is over.
    pub(super) async fn wait_for_reservation(
        &mut self,
        until: Timestamp,
        now: Timestamp,
    ) -> Result<Round, Refusal> {
        let remaining = until.since(now);
        let thing =
            Thing::Reservation { host: self.provider.host.clone(), user_id: self.ask.user_id.to_owned() };
        self.take_seat(thing).map_err(|Crowded| token_held(&self.provider, remaining))?;
        let Some(mut seat) = self.seat.take() else { return Ok(Round::Again) };
        let over = Instant::now() + remaining;
        match seat.wait(self.ask.time.give_up_at, sleep_until(over)).await {
            Waited::Came(()) | Waited::TimedOut => Ok(Round::Again),
            Waited::Crowded => {
                Err(token_held(&self.provider, over.saturating_duration_since(Instant::now())).into())
            }
        }
    }

    /// A seat among those who wait for this host, kept until the request is answered.
    fn take_seat_for_host(&mut self) -> Result<(), ErrorBody> {
        let host = Thing::Host(self.provider.host.clone());
        self.take_seat(host).map_err(|Crowded| crowded(&self.provider))
    }

    fn take_seat(&mut self, thing: Thing) -> Result<(), Crowded> {
        if self.seat.as_ref().is_some_and(|seat| *seat.thing() == thing) {
            return Ok(());
        }
        let Self { handler, ask, provider, .. } = self;
        let waiter = ask.waiter();
        let seat =
            handler.refresher.bulkhead().enter(thing, waiter, Instant::now()).inspect_err(|Crowded| {
                telemetry::crowded_out(&provider.host, ask.kind);
            })?;
        self.seat = Some(seat);
        Ok(())
    }

    /// Waits in the seat. If the seat is taken away for others, the next round tells what that means.
    async fn wait(&mut self, in_flight: &mut InFlight, until: Instant) -> Waited<FlightOutcome> {
        let Some(mut seat) = self.seat.take() else { return Waited::Crowded };
        let waited = seat.wait(until, in_flight.outcome()).await;
        match waited {
            Waited::Crowded => {}
            Waited::Came(_) | Waited::TimedOut => self.seat = Some(seat),
        }
        waited
    }

    /// The wait is over: hand the token out if nobody refreshes it any more and it is valid.
    async fn last_look(&self) -> Result<Round, Refusal> {
        let entry = self.load().await?;
        let now = self.handler.clock.now();
        let usable = !entry.has_live_lease(now) && !self.may_be_dead(&entry, now)?;
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
    fn may_be_dead(&self, entry: &Entry, now: Timestamp) -> Result<bool, Refusal> {
        let condemned = self.handler.store.condemnation(entry)?;
        let doubtful = entry.is_in_doubt() && self.provider.kills_old_token() || entry.state.reported;
        let held = entry.state.reserved_until.is_some_and(|until| until > now);
        Ok(condemned.is_some_and(|failure| self.ends_old_token(failure.kind)) || doubtful && !held)
    }

    fn patience_until(&mut self) -> Instant {
        let wait = self.handler.refresher.options().wait;
        *self.patience_until.get_or_insert_with(|| (Instant::now() + wait).min(self.ask.time.give_up_at))
    }

    pub(super) fn shares_fate(&self, cause: Cause, flight: &FailedFlight) -> bool {
        match cause {
            Cause::Opportunistic => true,
            Cause::Required | Cause::Reported => match flight.kind {
                FailureKind::Refused | FailureKind::Interrupted | FailureKind::Misconfigured => true,
                FailureKind::Unavailable => self.ask.time.give_up_at <= flight.deadline + SHARED_FATE,
            },
        }
    }
}
