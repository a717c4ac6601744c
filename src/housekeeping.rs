//! HOUSEKEEPING: care for tokens that nobody requests, by one worker at a time.
//!
//! Expired tokens that cannot be refreshed are removed some days later. Pairs whose refresh token would expire unused are
//! refreshed in time, while nobody holds them. A row in `duty` has the lease for this. The lease lasts until the next
//! pass is due, so all workers together do one pass in each interval. If a worker dies, the next one takes over. A pass
//! is safe without the lease too: each removal is a guarded DELETE, each refresh an ordinary flight.

mod alone;
mod chore;
mod look;

use std::convert::Infallible;
use std::sync::Arc;

use tokio::time::{Instant, sleep, timeout_at};

pub use self::alone::{Passed, pass_alone};
pub use self::chore::{Chore, ChoreKind, Dying};
pub use self::look::due;
use self::look::{Look, Providers};
use crate::domain::clock::Clock;
use crate::domain::decide::Cause;
use crate::refresh::{FlightOutcome, Order, Refresher};
use crate::settings::HousekeepingSettings;
use crate::store::{Entry, Guarded, Store, StoreError};
use crate::telemetry::{self, ChoreOutcome};

const DUTY: &str = "housekeeping";

/// A starting worker first waits for the interval divided by this. A worker in a crash loop does no housekeeping.
const FIRST_PASS_PART: u32 = 10;

pub struct Housekeeper {
    pub store: Store,
    pub refresher: Arc<Refresher>,
    pub clock: Arc<dyn Clock>,
    pub settings: HousekeepingSettings,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Pass {
    pub removed: u64,
    pub refreshed: u64,
    pub failed: u64,
    /// Entries that changed meanwhile: they were requested or are being refreshed.
    pub moved: u64,
}

impl Housekeeper {
    /// Does a pass in each interval, unless another worker did it. `holder` is this worker's name in the lease.
    pub async fn run(self, holder: String) -> Infallible {
        let interval = self.settings.interval;
        sleep(interval / FIRST_PASS_PART).await;
        loop {
            match self.take_turn(&holder).await {
                Ok(Some(Pass { removed, refreshed, failed, moved })) => {
                    telemetry::housekeeping_done(removed, refreshed, failed, moved);
                }
                Ok(None) => telemetry::housekeeping_left_to_another(),
                Err(error) => telemetry::housekeeping_failed(&error),
            }
            sleep(interval).await;
        }
    }

    async fn take_turn(&self, holder: &str) -> Result<Option<Pass>, StoreError> {
        match self.store.take_duty(DUTY, holder, self.clock.now(), self.settings.interval).await? {
            Guarded::Done => {
                let mut done = Pass::default();
                self.pass(&mut done).await?;
                Ok(Some(done))
            }
            Guarded::Moved => Ok(None),
        }
    }

    /// Does one pass, whoever has the lease, and counts in `done` what is done, also if it does not come to its end.
    pub async fn pass(&self, done: &mut Pass) -> Result<(), StoreError> {
        let look = self.look();
        let providers = look.providers().await?;
        self.store.remove_silent_workers().await?;
        let mut after = 0;
        loop {
            let page = look.expired_for_good(after).await?;
            let Some(last) = page.last() else { break };
            after = last.id;
            for entry in &page {
                done.count(self.remove(entry).await?);
            }
        }
        for (entry, _) in look.dying(&providers).await? {
            done.count(self.refresh(entry, &providers).await);
        }
        Ok(())
    }

    fn look(&self) -> Look<'_> {
        Look { store: &self.store, settings: &self.settings, now: self.clock.now() }
    }

    async fn remove(&self, entry: &Entry) -> Result<ChoreOutcome, StoreError> {
        let look = self.look();
        match self.store.unrefreshable(entry, look.now) {
            Ok(Some(_)) => {}
            // The recorded failure belongs to an earlier refresh token.
            Ok(None) => return Ok(ChoreOutcome::Moved),
            // One unreadable row must not block the others.
            Err(error) => {
                telemetry::housekeeping_failed(&error);
                return Ok(ChoreOutcome::Failed);
            }
        }
        Ok(match self.store.remove_expired(entry, look.cutoff(), look.now).await? {
            Guarded::Done => ChoreOutcome::Removed,
            Guarded::Moved => ChoreOutcome::Moved,
        })
    }

    async fn refresh(&self, entry: Entry, providers: &Providers) -> ChoreOutcome {
        let Some(provider) = providers.get(&entry.provider_id) else { return ChoreOutcome::Failed };
        let deadline = Instant::now() + self.refresher.options().opportunistic_budget;
        let mut in_flight = self.refresher.refresh(Order {
            user_id: entry.user_id.clone(),
            entry,
            provider: Arc::clone(provider),
            cause: Cause::Opportunistic,
            // Nobody reserves the new token either.
            until: self.clock.now(),
            deadline,
        });
        match timeout_at(deadline + self.refresher.options().wait, in_flight.outcome()).await {
            Ok(FlightOutcome::Refreshed(_)) => ChoreOutcome::Refreshed,
            Ok(FlightOutcome::Moved) => ChoreOutcome::Moved,
            Ok(FlightOutcome::Failed(_) | FlightOutcome::StoreFailed(_) | FlightOutcome::Panicked)
            | Err(_) => ChoreOutcome::Failed,
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
