//! A request: what is stored is looked at, decided on, and handed out where it can be.

use super::{AGAIN, Scene};
use crate::state::{Cause, PairId, Phase, Request, View, Worker};
use crate::statements::Guarded;

impl Scene<'_> {
    fn view(&self) -> View {
        let row = &self.state.row;
        View {
            generation: row.generation,
            pair: row.pair,
            login: self.state.issued[usize::from(row.pair)].login,
            refresh_token: self.state.refresh_token(self.tokens, row.pair),
        }
    }

    pub(super) fn take(&mut self, until: u8, too_short: bool) -> Option<()> {
        self.state.queued = self.state.queued.checked_sub(1)?;
        let too_short = too_short.then_some(self.state.row.generation);
        *self.me() = Worker { phase: AGAIN, request: Request { until, too_short }, ..*self.me() };
        Some(())
    }

    /// `Store::claim` where it reserves: the decision cannot be another one than to serve.
    pub(super) fn claim(&mut self, request: Request, heard: bool) -> Option<()> {
        if request.too_short == Some(self.state.row.generation) {
            return None;
        }
        let (view, was_reserved) = (self.view(), self.state.row.reserved > 0);
        match self.state.row.claim(self.rules, request.until) {
            Guarded::Done if heard => self.hand_out(view, request.until, was_reserved),
            Guarded::Done => self.go(AGAIN),
            Guarded::Moved => return None,
        }
        Some(())
    }

    /// Whoever loaded it found it plainly held; here it may have been anything, for the guard alone is to tell. Where it
    /// has moved, it is as if nothing had been known.
    pub(super) fn serve_known(&mut self, request: Request, stale: bool) -> Option<()> {
        let (mut view, was_reserved) = (self.view(), self.state.row.reserved > 0);
        if stale {
            view.generation = view.generation.checked_sub(1)?;
        } else if request.too_short == Some(view.generation) {
            return None;
        }
        match self.state.row.reserve_known(self.rules, view.generation, request.until) {
            Guarded::Done => self.hand_out(view, request.until, was_reserved),
            Guarded::Moved => return None,
        }
        Some(())
    }

    /// `Store::claim` where it reserves nothing, and `decide`.
    pub(super) fn load(&mut self, request: Request, refresh: bool) -> Option<()> {
        let view = self.view();
        let row = &self.state.row;
        if row.has_live_lease() {
            self.go(Phase::Load { waited: true });
            return refresh.then_some(());
        }
        let condemned = row.failure.filter(|failure| failure.fingerprint == view.refresh_token);
        let too_short = request.too_short == Some(row.generation);
        let doubt = row.attempt.is_some();
        match condemned {
            Some(failure) if failure.interrupted || too_short => {
                self.answered();
                return refresh.then_some(());
            }
            Some(_) => {
                self.serve(view, request, false);
                return refresh.then_some(());
            }
            None => {}
        }
        let reserved = row.reserved > 0;
        if too_short {
            self.go(Phase::TakeLease { view, cause: Cause::Required, doubt });
            return refresh.then_some(());
        }
        if reserved {
            self.serve(view, request, false);
            return refresh.then_some(());
        }
        let heeded = doubt && self.rules.load_heeds_doubt;
        if refresh {
            self.go(Phase::TakeLease { view, cause: Cause::Opportunistic, doubt });
        } else {
            self.serve(view, request, false);
        }
        (refresh || !heeded).then_some(())
    }

    pub(super) fn last_look(&mut self, request: Request) {
        let view = self.view();
        let row = &self.state.row;
        let condemned = row.failure.is_some_and(|failure| failure.fingerprint == view.refresh_token);
        let doubtful = row.is_doubtful() || condemned;
        if row.has_live_lease()
            || request.too_short == Some(row.generation)
            || (self.rules.last_look_heeds_doubt && doubtful)
        {
            self.answered();
        } else {
            self.serve(view, request, true);
        }
    }

    /// No write where the reservation reaches far enough already.
    fn serve(&mut self, view: View, request: Request, last: bool) {
        if self.state.row.reserved >= request.until {
            self.hand_out(view, request.until, self.state.row.reserved > 0);
        } else {
            self.go(Phase::Reserve { view, last });
        }
    }

    pub(super) fn reserve(&mut self, view: View, request: Request, last: bool) {
        let was_reserved = self.state.row.reserved > 0;
        match self.state.row.reserve(self.rules, view, request.until) {
            Guarded::Done => self.hand_out(view, request.until, was_reserved),
            Guarded::Moved if last => self.answered(),
            Guarded::Moved => self.go(AGAIN),
        }
    }

    fn hand_out(&mut self, view: View, until: u8, was_reserved: bool) {
        let row = &self.state.row;
        let interrupted = row
            .failure
            .is_some_and(|failure| failure.interrupted && failure.fingerprint == view.refresh_token);
        if row.generation == view.generation && (interrupted || row.attempt.is_some() && !was_reserved) {
            self.state.broken.doubtful_handed_out = true;
        }
        self.reply(view.generation, view.pair, until);
        self.answered();
    }

    /// What a reply says must be what the row says.
    pub(super) fn reply(&mut self, generation: u8, pair: PairId, until: u8) {
        let row = &self.state.row;
        if row.generation != generation || row.pair != pair || row.reserved < until {
            self.state.broken.reply_untrue = true;
        }
    }
}
