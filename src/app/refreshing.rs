//! What a refresh needs, put together once: for a worker, and for the `housekeeping` command.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::lifecycle::Stop;
use crate::broker::{Publisher, events};
use crate::domain::clock::Clock;
use crate::domain::secret::KeyRing;
use crate::oauth::TokenClient;
use crate::parking::{Parking, Spool};
use crate::refresh::{Outlets, RefreshOptions, Refresher};
use crate::settings::Settings;
use crate::store::Store;
use crate::store::database;
use crate::telemetry;

/// A refresher, and what keeps the pairs and events that it brings from being lost.
pub struct Refreshing {
    /// Refreshes tokens.
    pub refresher: Arc<Refresher>,
    /// Publishes what the database does not take.
    pub publisher: Publisher,
    /// Takes what the broker does not take either.
    pub spool: Spool,
    /// Refreshes under way. They outlive the requests that started them.
    pub flights: TaskTracker,
    publish_events: JoinHandle<()>,
    no_more_events: CancellationToken,
}

impl fmt::Debug for Refreshing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refreshing").field("flights", &self.flights.len()).finish_non_exhaustive()
    }
}

/// The tokens, with connections of their own for what must not wait behind requests.
///
/// # Errors
/// No database, or migrations that are pending.
pub async fn open_store(settings: &Settings, keys: &KeyRing) -> anyhow::Result<Store> {
    let db = database::open_migrated(&settings.database).await?;
    let urgent = database::open_urgent(&settings.database, &db).await?;
    let grouped = database::open_grouped(&settings.database, &db).await?;
    Ok(Store::new(db, keys.clone()).with_urgent(urgent).with_grouped(grouped))
}

impl Refreshing {
    /// Puts the parts together. `name` is what the broker calls the publishing connection; whoever gets the future keeps it
    /// running, and that connection up, until `closed` fires.
    ///
    /// # Errors
    /// The HTTP client cannot be set up.
    pub async fn open(
        settings: &Settings,
        keys: &Arc<KeyRing>,
        store: &Store,
        clock: &Arc<dyn Clock>,
        name: String,
        stop: &Stop,
        closed: &CancellationToken,
    ) -> anyhow::Result<(Self, impl Future<Output = ()> + Send + 'static)> {
        let broker = Arc::new(settings.broker.clone());
        let (publisher, keep_publishing) =
            Publisher::new(broker, Arc::clone(keys), name, stop.hard.clone(), closed.clone());
        let (events, outbox) = events::queue();
        let (flights, no_more_events) = (TaskTracker::new(), CancellationToken::new());
        let publish_events = tokio::spawn(outbox.publish(publisher.clone(), no_more_events.clone()));
        let spool = open_spool(settings).await;
        let client = TokenClient::new(
            settings.refresh.connect_timeout,
            settings.refresh.total_timeout,
            Arc::clone(clock),
        )?;
        let parking = Parking::new(publisher.clone(), spool.clone(), stop.soft.clone());
        let refresher = Arc::new(Refresher::new(
            store.clone(),
            client,
            Arc::clone(clock),
            RefreshOptions::new(&settings.refresh, &settings.worker),
            Outlets { parking, events },
            flights.clone(),
            stop.hard.clone(),
        ));
        let refreshing = Self { refresher, publisher, spool, flights, publish_events, no_more_events };
        Ok((refreshing, keep_publishing))
    }

    /// Publishes the events that are left, once nothing refreshes any more. Those that the broker does not take within
    /// `patience` are counted as lost.
    ///
    /// # Errors
    /// The task that publishes them panicked.
    pub async fn publish_last_events(self, patience: Duration, stop: &Stop) -> anyhow::Result<()> {
        self.no_more_events.cancel();
        let mut publish_events = self.publish_events;
        let published = if let Ok(published) = timeout(patience, &mut publish_events).await {
            published
        } else {
            stop.hard.cancel();
            publish_events.await
        };
        published.context("the task that publishes events ended unexpectedly")
    }
}

/// The spool folder. That it cannot be written to is said while there is time to mend it.
async fn open_spool(settings: &Settings) -> Spool {
    let spool = Spool::new(&settings.worker.spool_dir);
    if let Err(error) = spool.check().await {
        telemetry::spool_unusable(spool.folder(), &error);
    }
    spool
}
