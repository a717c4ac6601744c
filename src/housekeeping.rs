//! HOUSEKEEPING: what is done about tokens that nobody asks for, by one worker at a time.
//!
//! Tokens that expired and cannot be refreshed are removed some days later; pairs whose refresh token would die unused
//! are refreshed in time, while nobody holds them. Who does it is a row in `duty`: its lease lasts until the next pass
//! is due, so there is one pass in each interval over all workers, and the next worker takes over where one died. What a
//! pass does is safe without that lease too: each removal is a guarded DELETE, each refresh an ordinary flight.

mod chore;

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use tokio::time::{Instant, sleep};

pub use self::chore::{Chore, ChoreKind, Dying};
use crate::clock::{Clock, Timestamp};
use crate::decide::Cause;
use crate::provider::{Provider, ProviderKind};
use crate::refresh::{Landing, Order, Refresher};
use crate::settings::HousekeepingSettings;
use crate::store::{Guarded, IdleEntry, Store, StoreError};
use crate::telemetry::{self, ChoreOutcome};

/// The row in `duty`.
const DUTY: &str = "housekeeping";

/// So many entries are removed between two looks at the database.
const PAGE: u64 = 100;

/// A worker that starts waits for this part of the interval, so that one that is started over and over does nothing else.
const FIRST_PASS_PART: u32 = 10;

/// Does the housekeeping.
pub struct Housekeeper {
    /// Token entries.
    pub store: Store,
    /// Flights.
    pub refresher: Arc<Refresher>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// How much of it.
    pub settings: HousekeepingSettings,
}

/// What a pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Pass {
    /// Tokens that were removed.
    pub removed: u64,
    /// Pairs that were refreshed.
    pub refreshed: u64,
    /// Pairs that could not be refreshed, or removed.
    pub failed: u64,
    /// Entries that were no longer what had been found: somebody asked for them, or refreshes them.
    pub moved: u64,
}

type Providers = HashMap<i64, Arc<Provider>>;

impl Housekeeper {
    /// A pass in each interval, where no other worker was first. `holder` is this worker's name in the lease.
    pub async fn run(self, holder: String) -> Infallible {
        let interval = self.settings.interval;
        sleep(interval / FIRST_PASS_PART).await;
        loop {
            match self.take_turn(&holder).await {
                Ok(Some(pass)) => telemetry::housekeeping_done(&pass),
                Ok(None) => telemetry::housekeeping_left_to_another(),
                Err(error) => telemetry::housekeeping_failed(&error),
            }
            sleep(interval).await;
        }
    }

    async fn take_turn(&self, holder: &str) -> Result<Option<Pass>, StoreError> {
        match self.store.take_duty(DUTY, holder, self.clock.now(), self.settings.interval).await? {
            Guarded::Done => self.pass().await.map(Some),
            Guarded::Moved => Ok(None),
        }
    }

    /// One pass, whoever has the duty.
    ///
    /// # Errors
    /// The database failed; what was done until then is done.
    pub async fn pass(&self) -> Result<Pass, StoreError> {
        let providers = self.providers().await?;
        let mut pass = Pass::default();
        let mut after = 0;
        loop {
            let page = self.expired_for_good(after).await?;
            let Some(last) = page.last() else { break };
            after = last.entry.id;
            for idle in &page {
                pass.count(self.remove(idle).await?);
            }
        }
        for (idle, _) in self.dying(&providers).await? {
            pass.count(self.refresh(idle, &providers).await);
        }
        Ok(pass)
    }

    /// What a pass would do now.
    ///
    /// # Errors
    /// The database failed.
    pub async fn due(&self) -> Result<Vec<Chore>, StoreError> {
        let providers = self.providers().await?;
        let host = |idle: &IdleEntry| providers.get(&idle.owner.provider_id).map(|found| found.host.clone());
        let mut chores = Vec::new();
        let mut after = 0;
        loop {
            let page = self.expired_for_good(after).await?;
            let Some(last) = page.last() else { break };
            after = last.entry.id;
            for idle in &page {
                if let Some(why) = self.store.unrefreshable(&idle.entry, self.clock.now())? {
                    chores.push(Chore::new(ChoreKind::Remove(why), idle, host(idle)));
                }
            }
        }
        let dying = self.dying(&providers).await?;
        chores.extend(dying.iter().map(|(idle, why)| Chore::new(ChoreKind::Refresh(*why), idle, host(idle))));
        Ok(chores)
    }

    /// A provider that cannot be read is left alone, with all its tokens: the worker's log says so at each request.
    async fn providers(&self) -> Result<Providers, StoreError> {
        let records = self.store.provider_records().await?;
        let resolved = records.into_iter().filter_map(|(id, record)| record.resolve(id).ok());
        Ok(resolved.map(|provider| (provider.id, Arc::new(provider))).collect())
    }

    fn cutoff(&self, now: Timestamp) -> Timestamp {
        let kept = i64::try_from(self.settings.remove_after.as_millis()).unwrap_or(i64::MAX);
        Timestamp::from_millis(now.as_millis().saturating_sub(kept))
    }

    async fn expired_for_good(&self, after: i64) -> Result<Vec<IdleEntry>, StoreError> {
        let now = self.clock.now();
        self.store.expired_for_good(self.cutoff(now), now, after, PAGE).await
    }

    async fn remove(&self, idle: &IdleEntry) -> Result<ChoreOutcome, StoreError> {
        let now = self.clock.now();
        match self.store.unrefreshable(&idle.entry, now) {
            Ok(Some(_)) => {}
            // The failure is an earlier refresh token's.
            Ok(None) => return Ok(ChoreOutcome::Moved),
            // One row that cannot be read must not keep the others.
            Err(error) => {
                telemetry::housekeeping_failed(&error);
                return Ok(ChoreOutcome::Failed);
            }
        }
        Ok(match self.store.remove_expired(&idle.entry, self.cutoff(now), now).await? {
            Guarded::Done => ChoreOutcome::Removed,
            Guarded::Moved => ChoreOutcome::Moved,
        })
    }

    /// As many as a pass refreshes, those with a date of their own first.
    async fn dying(&self, providers: &Providers) -> Result<Vec<(IdleEntry, Dying)>, StoreError> {
        let now = self.clock.now();
        let batch = usize::from(self.settings.refresh_batch);
        let found = self.store.dying(now, u64::from(self.settings.refresh_batch)).await?;
        let mut dying: Vec<_> = found.into_iter().map(|idle| (idle, Dying::Expires)).collect();
        for kind in ProviderKind::ALL {
            let Some(idle_lifetime) = kind.profile().refresh_token_idle_lifetime else { continue };
            let of_kind = providers.values().filter(|provider| provider.kind == kind);
            let ids: Vec<i64> = of_kind.map(|provider| provider.id).collect();
            let room = u64::try_from(batch.saturating_sub(dying.len())).unwrap_or(0);
            let found = self.store.idle_for_long(&ids, idle_lifetime, now, room).await?;
            dying.extend(found.into_iter().map(|idle| (idle, Dying::Unused)));
        }
        Ok(dying)
    }

    async fn refresh(&self, idle: IdleEntry, providers: &Providers) -> ChoreOutcome {
        let Some(provider) = providers.get(&idle.owner.provider_id) else { return ChoreOutcome::Failed };
        let deadline = Instant::now() + self.refresher.options().opportunistic_budget;
        let boarding = self.refresher.refresh(Order {
            entry: idle.entry,
            provider: Arc::clone(provider),
            cause: Cause::Opportunistic,
            // Nobody holds it afterwards either.
            until: self.clock.now(),
            deadline,
        });
        match boarding.landing(deadline + self.refresher.options().wait).await {
            Some(Landing::Refreshed(_)) => ChoreOutcome::Refreshed,
            Some(Landing::Moved) => ChoreOutcome::Moved,
            Some(Landing::Failed(_) | Landing::StoreFailed(_)) | None => ChoreOutcome::Failed,
        }
    }
}

impl Pass {
    fn count(&mut self, outcome: ChoreOutcome) {
        telemetry::chore_done(outcome);
        *match outcome {
            ChoreOutcome::Removed => &mut self.removed,
            ChoreOutcome::Refreshed => &mut self.refreshed,
            ChoreOutcome::Failed => &mut self.failed,
            ChoreOutcome::Moved => &mut self.moved,
        } += 1;
    }
}
