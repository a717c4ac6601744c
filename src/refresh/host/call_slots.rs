//! How many refreshes may be in flight at a host at once.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// A slot for each refresh in flight.
#[derive(Debug, Default)]
pub(super) struct CallSlots(Mutex<Option<Limited>>);

#[derive(Debug)]
struct Limited {
    limit: usize,
    semaphore: Arc<Semaphore>,
}

impl CallSlots {
    /// Waits for one of `limit` slots. None: there was not one before `until`.
    pub(super) async fn acquire(&self, limit: usize, until: Instant) -> Option<OwnedSemaphorePermit> {
        let semaphore = self.semaphore(limit);
        timeout_at(until, semaphore.acquire_owned()).await.ok()?.ok()
    }

    /// A changed limit gets a new semaphore. Flights on the old one end as they are.
    fn semaphore(&self, limit: usize) -> Arc<Semaphore> {
        let mut limited = self.0.lock();
        match &*limited {
            Some(known) if known.limit == limit => Arc::clone(&known.semaphore),
            Some(_) | None => {
                let semaphore = Arc::new(Semaphore::new(limit));
                *limited = Some(Limited { limit, semaphore: Arc::clone(&semaphore) });
                semaphore
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_more_refreshes_are_in_flight_than_the_limit_and_a_changed_limit_takes_effect_at_once() {
        let slots = CallSlots::default();
        let soon = || Instant::now() + Duration::from_secs(1);
        let first = slots.acquire(1, soon()).await.expect("a free slot");
        assert!(slots.acquire(1, soon()).await.is_none());
        let _second = slots.acquire(2, soon()).await.expect("a slot of the new limit");
        drop(first);
        let _third = slots.acquire(2, soon()).await.expect("the last slot of the new limit");
        assert!(slots.acquire(2, soon()).await.is_none());
    }
}
