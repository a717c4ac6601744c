//! Finds out what there is to do.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::{Chore, ChoreKind, Dying};
use crate::domain::clock::Timestamp;
use crate::domain::provider::Provider;
use crate::settings::HousekeepingSettings;
use crate::store::{Entry, Store, StoreError};

/// Entries that are read at once.
const PAGE: u64 = 100;

/// By row id.
pub(super) type Providers = HashMap<i64, Arc<Provider>>;

/// What a pass would do now.
pub async fn due(
    store: &Store,
    now: Timestamp,
    settings: &HousekeepingSettings,
) -> Result<Vec<Chore>, StoreError> {
    Look { store, settings, now }.due().await
}

pub(super) struct Look<'a> {
    pub(super) store: &'a Store,
    pub(super) settings: &'a HousekeepingSettings,
    pub(super) now: Timestamp,
}

impl Look<'_> {
    async fn due(&self) -> Result<Vec<Chore>, StoreError> {
        let providers = self.providers().await?;
        let host = |entry: &Entry| providers.get(&entry.provider_id).map(|found| found.host.clone());
        let mut chores = Vec::new();
        let mut after = 0;
        loop {
            let page = self.expired_for_good(after).await?;
            let Some(last) = page.last() else { break };
            after = last.id;
            for entry in &page {
                if let Some(why) = self.store.unrefreshable(entry, self.now)? {
                    chores.push(Chore::new(ChoreKind::Remove(why), entry, host(entry)));
                }
            }
        }
        let dying = self.dying(&providers).await?;
        chores.extend(
            dying.iter().map(|(entry, why)| Chore::new(ChoreKind::Refresh(*why), entry, host(entry))),
        );
        Ok(chores)
    }

    pub(super) async fn providers(&self) -> Result<Providers, StoreError> {
        let providers = self.store.usable_providers().await?;
        Ok(providers.into_iter().map(|provider| (provider.id, Arc::new(provider))).collect())
    }

    pub(super) fn cutoff(&self) -> Timestamp {
        let kept = i64::try_from(self.settings.remove_after.as_millis()).unwrap_or(i64::MAX);
        Timestamp::from_millis(self.now.as_millis().saturating_sub(kept))
    }

    pub(super) async fn expired_for_good(&self, after: i64) -> Result<Vec<Entry>, StoreError> {
        self.store.expired_for_good(self.cutoff(), self.now, after, PAGE).await
    }

    /// At most one batch. Refresh tokens with an expiry date come first.
    pub(super) async fn dying(&self, providers: &Providers) -> Result<Vec<(Entry, Dying)>, StoreError> {
        let now = self.now;
        let batch = usize::from(self.settings.refresh_batch);
        let found = self.store.dying(now, u64::from(self.settings.refresh_batch)).await?;
        let mut dying: Vec<_> = found.into_iter().map(|entry| (entry, Dying::Expires)).collect();
        let mut by_idle_lifetime: BTreeMap<Duration, Vec<i64>> = BTreeMap::new();
        for provider in providers.values() {
            if let Some(idle_lifetime) = provider.refresh_token_idle_lifetime {
                by_idle_lifetime.entry(idle_lifetime).or_default().push(provider.id);
            }
        }
        for (idle_lifetime, ids) in by_idle_lifetime {
            let room = u64::try_from(batch.saturating_sub(dying.len())).unwrap_or(0);
            let found = self.store.idle_for_long(&ids, idle_lifetime, now, room).await?;
            dying.extend(found.into_iter().map(|entry| (entry, Dying::Unused)));
        }
        Ok(dying)
    }
}
