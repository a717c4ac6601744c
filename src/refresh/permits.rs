//! How many refreshes may be in flight at a host at once.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::domain::provider::Provider;

/// One semaphore a host.
#[derive(Debug, Default)]
pub(super) struct HostPermits(Mutex<HashMap<String, HostLimit>>);

#[derive(Debug)]
struct HostLimit {
    limit: usize,
    semaphore: Arc<Semaphore>,
}

impl HostPermits {
    /// Waits for a permit of this provider's host; none when there is not one before `until`.
    pub(super) async fn acquire(&self, provider: &Provider, until: Instant) -> Option<OwnedSemaphorePermit> {
        let semaphore = self.semaphore(provider);
        timeout_at(until, semaphore.acquire_owned()).await.ok()?.ok()
    }

    /// A changed limit gets a new semaphore; flights on the old one end as they are.
    fn semaphore(&self, provider: &Provider) -> Arc<Semaphore> {
        let limit = provider.max_concurrent_refreshes;
        let mut hosts = self.0.lock();
        match hosts.get(&provider.host) {
            Some(host) if host.limit == limit => Arc::clone(&host.semaphore),
            _ => {
                let semaphore = Arc::new(Semaphore::new(limit));
                let host = HostLimit { limit, semaphore: Arc::clone(&semaphore) };
                hosts.insert(provider.host.clone(), host);
                semaphore
            }
        }
    }
}
