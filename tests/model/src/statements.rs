//! The statements, each atomic, with the names they have in `src/store/`: whether its guard held, and what it set.

use crate::rules::{Rules, SameLine};
use crate::state::{Cause, Failure, Held, Holder, Issued, Lease, PairId, Refreshed, Row, View};

/// How long a lease lives without a heartbeat, in ticks.
pub(crate) const LEASE_TTL: u8 = 1;

/// Whether a guarded UPDATE took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guarded {
    /// It did.
    Done,
    /// The world has moved.
    Moved,
}

impl Guarded {
    const fn from_rows(matches: bool) -> Self {
        if matches { Self::Done } else { Self::Moved }
    }
}

impl Row {
    /// Whether somebody refreshes it now.
    pub(crate) fn has_live_lease(&self) -> bool {
        self.lease.is_some_and(|lease| lease.left > 0)
    }

    fn is_led_by(&self, holder: Holder) -> bool {
        self.lease.is_some_and(|lease| lease.holder == holder)
    }

    /// Whether the access token may be dead: a refresh was attempted, and nobody knows how it ended, or it is known
    /// that it was interrupted. While the token is reserved, an open attempt does not count.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.attempt.is_some() && self.reserved == 0
            || self.failure.is_some_and(|failure| failure.interrupted)
    }

    /// Whether a refresh failed in a way that condemns this refresh token.
    pub(crate) fn is_condemned(&self, refresh_token: PairId) -> bool {
        self.failure.is_some_and(|failure| failure.fingerprint == refresh_token)
    }

    /// `Store::reserve`.
    pub(crate) fn reserve(&mut self, rules: &Rules, view: View, until: u8) -> Guarded {
        let matches = (!rules.reserve_same_generation || self.generation == view.generation)
            && (!rules.reserve_no_live_lease || !self.has_live_lease())
            && (!rules.reserve_not_in_doubt || !self.is_doubtful());
        if matches {
            self.reserved = self.reserved.max(until);
        }
        Guarded::from_rows(matches)
    }

    /// What `Store::claim` reserves while it loads. Its caller asks for a time at which the token is valid.
    pub(crate) fn claim(&mut self, rules: &Rules, until: u8) -> Guarded {
        let matches = (!rules.claim_no_live_lease || !self.has_live_lease())
            && (!rules.claim_not_in_doubt || self.attempt.is_none())
            && (!rules.claim_none_failed || self.failure.is_none())
            && self.reserved < until;
        if matches {
            self.reserved = until;
        }
        Guarded::from_rows(matches)
    }

    /// `Store::reserve_known`: of a pair that was loaded at some time.
    pub(crate) fn reserve_known(&mut self, rules: &Rules, generation: u8, until: u8) -> Guarded {
        let matches = (!rules.known_same_generation || self.generation == generation)
            && (!rules.known_no_live_lease || !self.has_live_lease())
            && (!rules.known_not_in_doubt || self.attempt.is_none())
            && (!rules.known_none_failed || self.failure.is_none());
        if matches {
            self.reserved = self.reserved.max(until);
        }
        Guarded::from_rows(matches)
    }

    /// `Store::take_lease`.
    pub(crate) fn take_lease(
        &mut self,
        rules: &Rules,
        view: View,
        cause: Cause,
        doubt: bool,
        holder: Holder,
    ) -> Guarded {
        let free = match cause {
            Cause::Opportunistic => !rules.lease_no_live_reservation || self.reserved == 0,
            Cause::Required => true,
        };
        let matches = free
            && (!rules.lease_same_generation || self.generation == view.generation)
            && (!rules.lease_no_live_lease || !self.has_live_lease())
            && (!rules.lease_same_doubt || self.attempt.is_some() == doubt)
            && (!rules.lease_not_condemned || !self.is_condemned(view.refresh_token));
        if matches {
            self.lease = Some(Lease { holder, left: LEASE_TTL });
            if rules.lease_records_attempt {
                self.attempt = Some(view.refresh_token);
            }
        }
        Guarded::from_rows(matches)
    }

    /// `Store::renew_lease`.
    pub(crate) fn renew_lease(&mut self, rules: &Rules, view: View, holder: Holder) -> Guarded {
        let matches = self.generation == view.generation
            && (!rules.renew_own_lease || self.is_led_by(holder))
            && (!rules.renew_live_lease || self.has_live_lease());
        if let Some(lease) = self.lease.as_mut().filter(|_| matches) {
            lease.left = LEASE_TTL;
        }
        Guarded::from_rows(matches)
    }

    /// `Store::store_pair`.
    pub(crate) fn store_pair(&mut self, rules: &Rules, held: Held, holder: Holder) -> Guarded {
        let matches = !rules.store_same_generation || self.generation == held.generation;
        if matches {
            if self.is_led_by(holder) || !rules.store_spares_others_lease {
                self.lease = None;
                self.attempt = None;
            }
            self.generation = held.generation + 1;
            self.pair = held.pair;
            self.reserved = held.until;
            self.failure = None;
            self.refreshed = Some(Refreshed { from: held.from, asked: held.asked });
        }
        Guarded::from_rows(matches)
    }

    /// Whether a pair that found the generation moved is newer than the one that is there.
    pub(crate) fn is_older_than(&self, rules: &Rules, held: Held, issued: &[Issued]) -> bool {
        if !rules.store_compares {
            return true;
        }
        rules.store_over_older
            && self.refreshed.is_some_and(|refreshed| {
                let same_line = match rules.same_line {
                    SameLine::RefreshToken => refreshed.from == held.from,
                    SameLine::Login => issued[usize::from(self.pair)].login == held.login,
                };
                same_line && refreshed.asked < held.asked
            })
    }

    /// `Store::give_up`, or `give_up_in_doubt`.
    pub(crate) fn give_up(
        &mut self,
        rules: &Rules,
        view: View,
        holder: Holder,
        in_doubt: bool,
        failure: Option<Failure>,
    ) -> Guarded {
        let matches = (!rules.give_up_same_generation || self.generation == view.generation)
            && (!rules.give_up_own_lease || self.is_led_by(holder));
        if matches {
            self.lease = None;
            if !in_doubt || !rules.give_up_keeps_doubt {
                self.attempt = None;
            }
            self.failure = failure;
        }
        Guarded::from_rows(matches)
    }

    /// What `Store::put_login` sets. It tries again until its guard holds, so here it always does.
    pub(crate) fn put_login(&mut self, pair: u8) {
        *self = Self {
            generation: self.generation + 1,
            pair,
            reserved: 0,
            lease: None,
            attempt: None,
            failure: None,
            refreshed: None,
        };
    }
}
