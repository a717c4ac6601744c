//! A flight under its lease: the provider call, and what comes of it.

use super::{AGAIN, Answer, Scene};
use crate::state::{Cause, Failure, Flight, Held, Holder, PairId, Parked, Phase, View, Worker};
use crate::statements::{Guarded, LEASE_TTL};

impl Scene<'_> {
    pub(super) fn take_lease(&mut self, view: View, cause: Cause, doubt: bool) {
        let reserved = self.state.row.reserved > 0;
        let holder = self.holder();
        match self.state.row.take_lease(self.rules, view, cause, doubt, holder) {
            Guarded::Done => {
                if reserved && cause == Cause::Opportunistic {
                    self.state.broken.lease_under_reservation = true;
                }
                let flight = Flight { view, cause, doubt, unreadable: false, left: LEASE_TTL };
                self.go(Phase::Call { flight, tried: false });
            }
            Guarded::Moved => self.go(AGAIN),
        }
    }

    pub(super) fn renew(&mut self, phase: Phase) -> Option<()> {
        let holder = self.holder();
        let (Phase::Call { flight, .. } | Phase::Asked { flight, .. }) = phase else { return None };
        let left = match self.state.row.renew_lease(self.rules, flight.view, holder) {
            Guarded::Done => LEASE_TTL,
            Guarded::Moved => 0,
        };
        let (Phase::Call { flight, .. } | Phase::Asked { flight, .. }) = &mut self.me().phase else {
            return None;
        };
        flight.left = left;
        Some(())
    }

    /// Checks the lease, and counts the call: that is when it was asked.
    pub(super) fn ask(&mut self, flight: Flight) -> Option<u8> {
        if self.rules.call_under_live_lease && flight.left == 0 {
            return None;
        }
        if flight.unreadable {
            if self.rules.unreadable_ends_flight {
                return None;
            }
            self.state.broken.spent_sent_again = true;
        }
        self.state.calls = self.state.calls.checked_sub(1)?;
        Some(u8::MAX - self.state.calls)
    }

    pub(super) fn act(&mut self, flight: Flight, asked: u8, answer: Answer) -> Option<()> {
        let Flight { view, .. } = flight;
        let until = self.me().request.until;
        let accepted = self.state.accepts(self.tokens, view.refresh_token);
        let failed =
            |doubt| Phase::Call { flight: Flight { doubt: flight.doubt || doubt, ..flight }, tried: true };
        let phase = match answer {
            Answer::Heard if accepted => {
                let pair = self.issue(flight);
                let held = Held {
                    pair,
                    generation: view.generation,
                    login: view.login,
                    from: view.refresh_token,
                    asked,
                    until,
                };
                Phase::StorePair { held, left: flight.left, parked: false }
            }
            Answer::Heard => Phase::Refused { flight },
            Answer::NotActed => failed(false),
            Answer::Lost if accepted => {
                let pair = self.issue(flight);
                self.lose(pair);
                failed(true)
            }
            Answer::Unreadable if accepted => {
                let pair = self.issue(flight);
                self.lose(pair);
                let flight = Flight { doubt: true, unreadable: true, ..flight };
                Phase::Call { flight, tried: true }
            }
            Answer::Lost | Answer::Unreadable => return None,
            Answer::Unknown => failed(true),
        };
        self.go(phase);
        Some(())
    }

    /// The provider rotates the pair, which kills the access token it replaces.
    fn issue(&mut self, flight: Flight) -> PairId {
        let row = &self.state.row;
        if flight.cause == Cause::Opportunistic
            && row.reserved > 0
            && row.generation == flight.view.generation
        {
            self.state.broken.reserved_token_killed = true;
        }
        self.state.issue(flight.view.refresh_token)
    }

    fn lose(&mut self, pair: PairId) {
        if self.state.newest() == pair && self.state.row.pair != pair {
            self.state.newest_lost = true;
        }
    }

    pub(super) fn give_up(&mut self, flight: Flight, refused: bool) {
        let holder = self.holder();
        let Flight { view, doubt, .. } = flight;
        let failure = refused.then_some(Failure { fingerprint: view.refresh_token, interrupted: doubt });
        let in_doubt = doubt && !refused;
        match self.state.row.give_up(self.rules, view, holder, in_doubt, failure) {
            // It is certain that nothing was rotated, so the stored token is still good.
            Guarded::Done
                if !doubt && flight.cause == Cause::Opportunistic && self.me().request.until > 0 =>
            {
                self.go(Phase::Reserve { view, last: false });
            }
            Guarded::Done => self.answered(),
            Guarded::Moved => self.go(AGAIN),
        }
    }

    pub(super) fn store(&mut self, held: Held, parked: bool) -> Guarded {
        let holder = if parked { Holder::Parked(held.pair) } else { self.holder() };
        let before = self.state.row.pair;
        let stored = self.state.row.store_pair(self.rules, held, holder);
        if stored == Guarded::Done && self.state.is_before(held.pair, before) {
            self.state.broken.newer_overwritten = true;
        }
        stored
    }

    pub(super) fn look_again(&mut self, held: Held, parked: bool) {
        let row = &self.state.row;
        let phase = if row.is_older_than(self.rules, held, &self.state.issued) {
            let held = Held { generation: row.generation, ..held };
            Phase::StorePair { held, left: 0, parked }
        } else if parked {
            Phase::AckParked { held, stored: false }
        } else {
            AGAIN
        };
        self.go(phase);
    }

    pub(super) fn park(&mut self, held: Held) {
        let me = self.holder();
        if self.rules.stop_parks {
            self.state.parked.push(Parked { held, delivered: false });
            self.state.parked.sort_unstable();
            if let Some(lease) = self.state.row.lease.as_mut().filter(|lease| lease.holder == me) {
                lease.holder = Holder::Parked(held.pair);
            }
        }
        self.state.queued += 1;
        self.answered();
    }

    pub(super) fn crash(&mut self, phase: Phase) -> Option<()> {
        match phase {
            Phase::Idle => return None,
            Phase::StorePair { held, parked: true, .. }
            | Phase::LookAgain { held, parked: true }
            | Phase::AckParked { held, .. } => {
                for parked in self.state.parked.iter_mut().filter(|parked| parked.held.pair == held.pair) {
                    parked.delivered = false;
                }
            }
            Phase::StorePair { held, .. } | Phase::LookAgain { held, .. } => {
                self.lose(held.pair);
                self.state.queued += 1;
            }
            Phase::Load { .. }
            | Phase::Reserve { .. }
            | Phase::TakeLease { .. }
            | Phase::Call { .. }
            | Phase::Asked { .. }
            | Phase::Refused { .. } => self.state.queued += 1,
        }
        let name = self.me().name;
        *self.me() = Worker { phase: Phase::Idle, request: super::Request::NONE, name };
        Some(())
    }
}
