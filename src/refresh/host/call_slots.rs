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
