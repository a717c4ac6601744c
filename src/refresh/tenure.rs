//! The lease as the flight that holds it sees it: kept alive by a heartbeat, and looked at before each provider call.

use std::convert::Infallible;
use std::sync::atomic::{AtomicI64, Ordering};

use tokio::time::{Instant, interval_at, timeout};

use super::flight::Crew;
use crate::domain::clock::Timestamp;
use crate::store::{Entry, Guarded, StoreError};
use crate::telemetry::{self, Statement};

/// Until when a flight may count on its lease.
///
/// A process can be frozen (SIGSTOP, a paused machine) for longer than its lease lives, and then go on as if nothing
/// had happened. So whoever is about to call the provider looks here first (invariant 2).
#[derive(Debug)]
pub(super) struct Tenure(AtomicI64);

impl Tenure {
    pub(super) const fn until(until: Timestamp) -> Self {
        Self(AtomicI64::new(until.as_millis()))
    }

    /// Whether the lease is this flight's, as far as it can know.
    pub(super) fn holds(&self, now: Timestamp) -> bool {
        now.as_millis() < self.0.load(Ordering::Relaxed)
    }

    fn renewed(&self, until: Timestamp) {
        self.0.store(until.as_millis(), Ordering::Relaxed);
    }

    fn lost(&self) {
        self.0.store(i64::MIN, Ordering::Relaxed);
    }
}

impl Crew {
    /// The heartbeat: renews the lease at a third of its life, so that two lost beats do not cost it.
    pub(super) async fn keep_lease(&self, entry: &Entry, holder: &str, tenure: &Tenure) -> Infallible {
        let period = self.options.lease_ttl / 3;
        let mut beats = interval_at(Instant::now() + period, period);
        loop {
            beats.tick().await;
            Box::pin(self.renew_lease(entry, holder, tenure)).await;
        }
    }

    /// One beat.
    pub(super) async fn renew_lease(&self, entry: &Entry, holder: &str, tenure: &Tenure) {
        let ttl = self.options.lease_ttl;
        // Read before the statement is sent: the lease lives from then on, however long the answer takes.
        let now = self.clock.now();
        let renewal = timeout(ttl / 3, self.store.renew_lease(entry, holder, now, ttl)).await;
        match renewal.unwrap_or(Err(StoreError::NoAnswer)) {
            Ok(Guarded::Done) => tenure.renewed(now.plus(ttl)),
            // Somebody stored a newer pair or took the lease over, or it ran out. A call that is under way goes on all
            // the same: what comes of it is stored if it is the newer pair. But no other call begins.
            Ok(Guarded::Moved) => {
                tenure.lost();
                telemetry::lost_compare_and_set(Statement::RenewLease);
            }
            Err(error) => telemetry::lease_not_kept(&error),
        }
    }
}

impl Crew {
    /// Gives the lease back where the pair is another one by now: its flight has nothing more to do.
    pub(super) async fn release(&self, entry: &Entry, holder: &str) {
        match self.store.release(entry.id, holder).await {
            // Gone already, or another flight's.
            Ok(Guarded::Done | Guarded::Moved) => {}
            Err(error) => telemetry::lease_not_kept(&error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_held_until_it_is_over_or_lost_and_again_once_it_is_renewed() {
        let at = Timestamp::from_millis;
        let tenure = Tenure::until(at(100));
        assert!(tenure.holds(at(99)) && !tenure.holds(at(100)));
        tenure.renewed(at(200));
        assert!(tenure.holds(at(199)));
        tenure.lost();
        assert!(!tenure.holds(at(0)));
    }
}
