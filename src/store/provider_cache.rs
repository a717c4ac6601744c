//! The providers a worker knows, kept for a moment: they change once in a month and are asked for by every message.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::time::Instant;

use crate::domain::provider::Provider;
use crate::store::{Store, StoreError};

/// How long a cached provider is used. `provider apply` takes effect within this time, in every worker.
const FRESH_FOR: Duration = Duration::from_secs(1);

/// Finds providers by host.
#[derive(Debug)]
pub struct Providers {
    store: Store,
    known: RwLock<HashMap<String, Known>>,
}

#[derive(Debug)]
struct Known {
    provider: Arc<Provider>,
    loaded_at: Instant,
}

impl Providers {
    pub fn new(store: Store) -> Self {
        Self { store, known: RwLock::default() }
    }

    /// The provider of a host, if there is one. Unknown hosts are not cached, so that a new provider is found at once.
    pub async fn find(&self, host: &str) -> Result<Option<Arc<Provider>>, StoreError> {
        if let Some(provider) = self.believed(host) {
            return Ok(Some(provider));
        }
        let provider = Box::pin(self.store.provider(host)).await?.map(Arc::new);
        let mut known = self.known.write();
        match &provider {
            Some(provider) => {
                let entry = Known { provider: Arc::clone(provider), loaded_at: Instant::now() };
                known.insert(host.to_owned(), entry);
            }
            None => drop(known.remove(host)),
        }
        Ok(provider)
    }

    /// The cached provider, if it may be used. If it is too old, the first caller must load it again, and the others use the old
    /// one meanwhile: one query a second, not one a message.
    fn believed(&self, host: &str) -> Option<Arc<Provider>> {
        {
            let known = self.known.read();
            let entry = known.get(host)?;
            if entry.loaded_at.elapsed() < FRESH_FOR {
                return Some(Arc::clone(&entry.provider));
            }
        }
        let mut known = self.known.write();
        let entry = known.get_mut(host)?;
        if entry.loaded_at.elapsed() < FRESH_FOR {
            return Some(Arc::clone(&entry.provider));
        }
        entry.loaded_at = Instant::now();
        None
    }
}
