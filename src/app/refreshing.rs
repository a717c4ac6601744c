//! The parts of a refresh, for a worker and for the `housekeeping` command.

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
use crate::store::database::{self, Opened, Unable};

/// A refresher, and what keeps its pairs and events from being lost.
pub struct Refreshing {
    pub refresher: Arc<Refresher>,
    /// Parks pairs that the database does not accept.
    pub publisher: Publisher,
    /// Keeps pairs that the broker does not accept either.
    pub spool: Spool,
    /// Running refreshes. They outlive the requests that started them.
    pub flights: TaskTracker,
    publish_events: JoinHandle<()>,
    no_more_events: CancellationToken,
}

impl fmt::Debug for Refreshing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refreshing").field("flights", &self.flights.len()).finish_non_exhaustive()
    }
}

/// The store. Fails without a database, if it is read-only, or if migrations are pending.
pub async fn open_store(settings: &Settings, keys: &KeyRing) -> Result<Store, Unable> {
    let opened = database::open_to_write(&settings.database).await?;
    store_over(settings, keys, opened).await
}

/// The store over a database, with separate connections for statements that must not wait behind requests.
pub(super) async fn store_over(settings: &Settings, keys: &KeyRing, opened: Opened) -> Result<Store, Unable> {
    let urgent = database::open_urgent(&settings.database, &opened).await?;
    let grouped = database::open_grouped(&settings.database, &opened).await?;
    let Opened { db, link } = opened;
    Ok(Store::new(db, keys.clone()).with_urgent(urgent).with_grouped(grouped).with_link(link))
}

impl Refreshing {
    /// `name` is the broker's name for the publishing connection. The caller must run the returned future, which keeps
    /// that connection up until `closed` fires.
    pub fn open(
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
        let spool = Spool::new(&settings.worker.spool_dir);
        let client = TokenClient::with_tls(
            settings.refresh.connect_timeout,
            settings.refresh.total_timeout,
            Arc::clone(clock),
            &settings.refresh.tls,
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

    /// Publishes the remaining events after the last refresh. Events that the broker does not accept within `patience`
    /// count as lost.
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
