//! The parts of a refresh, for a worker and for the `housekeeping` command.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::future::BoxFuture;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::lifecycle::Stop;
use crate::broker::{Publisher, events};
use crate::domain::clock::Clock;
use crate::domain::secret::KeyRing;
use crate::journal::{Follower, Journal};
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
    /// Keeps a copy of every pair, in case that the database goes back.
    pub journal: Journal,
    /// Running refreshes. They outlive the requests that started them.
    pub flights: TaskTracker,
    publish_events: JoinHandle<()>,
    no_more_events: CancellationToken,
}

/// What must run beside the refresher.
#[allow(missing_debug_implementations, reason = "futures")]
pub struct Tasks {
    /// Keeps the publishing connection up, until `closed` fires.
    pub keep_publishing: BoxFuture<'static, ()>,
    /// Follows the journal until the hard stop.
    pub keep_journal: BoxFuture<'static, ()>,
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
    /// `name` is the broker's name for the publishing connection, and `instance` this process's. The caller must run the returned
    /// tasks.
    pub fn open(
        settings: &Settings,
        keys: &Arc<KeyRing>,
        store: &Store,
        clock: &Arc<dyn Clock>,
        (instance, name): (&str, String),
        stop: &Stop,
        closed: &CancellationToken,
    ) -> anyhow::Result<(Self, Tasks)> {
        let broker = Arc::new(settings.broker.clone());
        let (publisher, keep_publishing) =
            Publisher::new(Arc::clone(&broker), Arc::clone(keys), name, stop.hard.clone(), closed.clone());
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
        let (journal, append_late) = if broker.journal_max_age.is_zero() {
            (Journal::none(), None)
        } else {
            let (journal, late) =
                Journal::new(Arc::clone(&broker), instance.to_owned(), store.clone(), publisher.clone());
            (journal, Some(late))
        };
        let follower = Follower::new(&journal, Arc::clone(clock));
        let parking = Parking::new(publisher.clone(), spool.clone(), stop.soft.clone());
        let refresher = Arc::new(Refresher::new(
            store.clone(),
            client,
            Arc::clone(clock),
            RefreshOptions::new(&settings.refresh, &settings.worker),
            Outlets { parking, journal: journal.clone(), events },
            flights.clone(),
            stop.hard.clone(),
        ));
        let refreshing =
            Self { refresher, publisher, spool, journal, flights, publish_events, no_more_events };
        let hard_stop = stop.hard.clone();
        let keep_journal = async move {
            if let (Some(append_late), Some(follower)) = (append_late, follower) {
                tokio::select! {
                    () = append_late => {}
                    () = follower.run(hard_stop.clone()) => {}
                }
            }
        };
        Ok((
            refreshing,
            Tasks { keep_publishing: Box::pin(keep_publishing), keep_journal: Box::pin(keep_journal) },
        ))
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
