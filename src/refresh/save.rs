//! Saves a pair that the provider issued: it is stored, or parked if the process must stop first (invariant 4).

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::FlightOutcome;
use super::flight::{Flight, FlightContext};
use crate::retry::{Backoff, retry_forever, retry_until};
use crate::store::{NewPair, StoreError};
use crate::telemetry;
use crate::telemetry::audit::{self, Refreshed};

/// The waits between tries to store a pair while the database is away.
const STORE_AGAIN: Backoff = Backoff::doubling(Duration::from_millis(50), Duration::from_secs(2));

/// How long one try to store a pair may take. If it took effect all the same, the next try notices.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);

impl FlightContext {
    /// Stores a new pair, and never drops it. While the database is away it tries again for as long as the process lives, and
    /// the heartbeat keeps others away. Once the process is told to stop, the pair is parked. A pair that the database refuses
    /// is parked at once.
    pub(super) async fn save_pair(&self, flight: &Flight, pair: NewPair, started: Instant) -> FlightOutcome {
        let save_once = |delay| self.save_once(flight, &pair, started, delay);
        match retry_until(self.parking.due(), STORE_AGAIN, save_once).await {
            Ok(outcome) => outcome,
            // From now on each try that fails parks the pair.
            Err(()) => Box::pin(retry_forever(STORE_AGAIN, save_once)).await,
        }
    }

    /// One try. None: it failed, and the next one begins after `delay`.
    async fn save_once(
        &self,
        flight: &Flight,
        pair: &NewPair,
        started: Instant,
        delay: Duration,
    ) -> Option<FlightOutcome> {
        let Flight { order, holder, .. } = flight;
        let host = &order.provider.host;
        let stored = self.store.store_refreshed(&order.entry, pair, holder, self.clock.now());
        let stored = timeout(STORE_TIMEOUT, stored).await;
        let error = match stored.unwrap_or_else(|_| Err(StoreError::NoAnswer.into())) {
            Ok(Some(entry)) => {
                telemetry::refreshed(host, started.elapsed());
                let refreshed = Refreshed { generation: entry.generation, ..order.audited() };
                audit::refreshed(refreshed, "stored", entry.state.reserved_until);
                return Some(FlightOutcome::Refreshed(entry));
            }
            Ok(None) => {
                telemetry::refreshed_pair_superseded(host);
                Box::pin(self.release(flight)).await;
                return Some(FlightOutcome::Moved);
            }
            Err(error) => error,
        };
        telemetry::pair_not_stored(host, &error, delay);
        if !self.parking.is_due() && error.is_transient() {
            return None;
        }
        let parked = self.store.seal_parked(host, &order.entry, pair, holder);
        match Box::pin(self.parking.park(&parked)).await {
            Ok(()) => {
                audit::refreshed(order.audited(), "parked", None);
                Some(FlightOutcome::StoreFailed(error))
            }
            Err(error) => {
                telemetry::pair_not_parked(host, &error);
                None
            }
        }
    }
}
