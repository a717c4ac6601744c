//! A pair that the provider issued is kept: stored, or parked where the process must stop first (invariant 4).

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::flight::Crew;
use super::{Landing, Order};
use crate::retry::Backoff;
use crate::store::{NewPair, StoreError};
use crate::telemetry;

/// How often a pair is tried to be stored while the database is away.
const STORE_AGAIN: Backoff = Backoff {
    initial_interval: Duration::from_millis(50),
    max_interval: Duration::from_secs(2),
    multiplier: 2.0,
    jitter: 0.5,
};

/// How long one try to store a pair may take, before the next one. It may have taken effect all the same; the next
/// one then finds that out.
const STORE_PATIENCE: Duration = Duration::from_secs(5);

impl Crew {
    /// Stores a new pair. It is never dropped: where the database does not take it, it is tried again for as long as
    /// the process lives, while the heartbeat keeps others away. Once the process is told to stop it is parked, and at once
    /// where the database refuses it: to write it again would change nothing.
    pub(super) async fn keep_pair(
        &self,
        order: &Order,
        holder: &str,
        pair: NewPair,
        started: Instant,
    ) -> Landing {
        let host = &order.provider.host;
        let mut delays = STORE_AGAIN.delays();
        loop {
            let stored = self.store.store_refreshed(&order.entry, &pair, holder, self.clock.now());
            let error = match timeout(STORE_PATIENCE, stored)
                .await
                .unwrap_or_else(|_| Err(StoreError::NoAnswer.into()))
            {
                Ok(Some(entry)) => {
                    telemetry::refreshed(host, started.elapsed());
                    return Landing::Refreshed(entry);
                }
                Ok(None) => {
                    telemetry::refreshed_pair_superseded(host);
                    Box::pin(self.release(&order.entry, holder)).await;
                    return Landing::Moved;
                }
                Err(error) => error,
            };
            let delay = delays.next_delay();
            telemetry::pair_not_stored(host, &error, delay);
            if self.parking.is_due() || !error.is_transient() {
                let parked = self.store.seal_parked(host, &order.entry, &pair, holder);
                match Box::pin(self.parking.park(&parked)).await {
                    Ok(()) => return Landing::StoreFailed(error),
                    Err(error) => telemetry::pair_not_parked(host, &error),
                }
                sleep(delay).await;
            } else {
                tokio::select! {
                    () = sleep(delay) => {}
                    () = self.parking.due() => {}
                }
            }
        }
    }
}
