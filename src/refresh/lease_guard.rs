//! The lease as its holder knows it: renewed by a heartbeat, and checked before each provider call.

use std::convert::Infallible;
use std::sync::atomic::{AtomicI64, Ordering};

use tokio::time::{Instant, interval_at, timeout};

use super::flight::{Flight, FlightContext};
use crate::domain::clock::Timestamp;
use crate::store::{Guarded, StoreError};
use crate::telemetry::{self, Statement};

/// Until when a flight may count on its lease.
///
/// A process can be frozen (SIGSTOP, a paused machine) for longer than its lease lives, and not notice. So it checks this
/// before each provider call (invariant 2).
#[derive(Debug)]
pub(super) struct LeaseGuard(AtomicI64);

impl LeaseGuard {
    pub(super) const fn until(until: Timestamp) -> Self {
        Self(AtomicI64::new(until.as_millis()))
    }

    /// Whether the lease is still this flight's, as far as it can know.
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

impl FlightContext {
    /// The heartbeat: renews the lease at each third of its life, so that it survives two lost beats.
    pub(super) async fn keep_lease(&self, flight: &Flight, lease_guard: &LeaseGuard) -> Infallible {
        let period = self.options.lease_ttl / 3;
        let mut beats = interval_at(Instant::now() + period, period);
        loop {
            beats.tick().await;
            Box::pin(self.renew_lease(flight, lease_guard)).await;
        }
    }

    pub(super) async fn renew_lease(&self, flight: &Flight, lease_guard: &LeaseGuard) {
        let (entry, holder) = (&flight.order.entry, &flight.holder);
        let ttl = self.options.lease_ttl;
        // Read before the statement is sent: the lease counts from then, however long the answer takes.
        let now = self.clock.now();
        let renewal = timeout(ttl / 3, self.store.renew_lease(entry, holder, now, ttl)).await;
        match renewal.unwrap_or(Err(StoreError::NoAnswer)) {
            Ok(Guarded::Done) => lease_guard.renewed(now.plus(ttl)),
            // Somebody stored a newer pair or took the lease over, or it ran out. A call in flight goes on, and its pair is
            // stored if it is the newer one. No other call begins.
            Ok(Guarded::Moved) => {
                lease_guard.lost();
                telemetry::lost_compare_and_set(Statement::RenewLease);
            }
            Err(error) => telemetry::lease_not_kept(&error),
        }
    }

    /// Gives the lease back after the pair has changed: the flight is over.
    pub(super) async fn release(&self, flight: &Flight) {
        match self.store.release(flight.order.entry.id, &flight.holder).await {
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
        let lease_guard = LeaseGuard::until(at(100));
        assert!(lease_guard.holds(at(99)) && !lease_guard.holds(at(100)));
        lease_guard.renewed(at(200));
        assert!(lease_guard.holds(at(199)));
        lease_guard.lost();
        assert!(!lease_guard.holds(at(0)));
    }
}
