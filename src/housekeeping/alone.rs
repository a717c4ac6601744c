//! A pass outside of a worker. It refreshes, so it needs all that keeps a rotated pair from being lost.

use std::sync::Arc;

use anyhow::Context;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Housekeeper, Pass};
use crate::app::lifecycle::Stop;
use crate::broker::Publisher;
use crate::broker::events;
use crate::domain::clock::{Clock, DatabaseClock};
use crate::domain::secret::KeyRing;
use crate::oauth::TokenClient;
use crate::parking::{Parking, Spool};
use crate::refresh::{Outlets, RefreshOptions, Refresher};
use crate::settings::Settings;
use crate::store::Store;
use crate::store::database::{self, clock_sync};

/// Does one pass and waits for the refreshes it began. None: it was told to stop before the end.
///
/// # Errors
/// Missing keys, no database, a clock that is far off; or the database failed in between.
pub async fn pass_alone(
    settings: &Settings,
    own: Arc<dyn Clock>,
    stop: &Stop,
) -> anyhow::Result<Option<Pass>> {
    let keys = Arc::new(settings.key_ring()?);
    let db = database::open_migrated(&settings.database).await?;
    let urgent = database::open_urgent(&settings.database, &db).await?;
    let store = Store::new(db, KeyRing::clone(&keys)).with_urgent(urgent);
    let clock = Arc::new(DatabaseClock::new(own));
    clock_sync::set(&clock, &store, settings.database.max_clock_offset).await?;

    let (flights, closed, drained) = (TaskTracker::new(), CancellationToken::new(), CancellationToken::new());
    let (publisher, keep_publishing) = Publisher::new(
        Arc::new(settings.broker.clone()),
        keys,
        "tokenkeeper housekeeping".to_owned(),
        stop.hard.clone(),
        closed.clone(),
    );
    let publishing = tokio::spawn(keep_publishing);
    let (events, outbox) = events::queue();
    let publish_events = tokio::spawn(outbox.publish(publisher.clone(), drained.clone()));
    let spool = Spool::new(&settings.worker.spool_dir);
    let client = TokenClient::new(
        settings.refresh.connect_timeout,
        settings.refresh.total_timeout,
        Arc::clone(&clock) as Arc<dyn Clock>,
    )?;
    let refresher = Refresher::new(
        store.clone(),
        client,
        Arc::clone(&clock) as Arc<dyn Clock>,
        RefreshOptions::new(&settings.refresh, &settings.worker),
        Outlets { parking: Parking::new(publisher, spool, stop.soft.clone()), events },
        flights.clone(),
        stop.hard.clone(),
    );
    let housekeeper =
        Housekeeper { store, refresher: Arc::new(refresher), clock, settings: settings.housekeeping.clone() };

    let passed = tokio::select! {
        passed = housekeeper.pass() => Some(passed),
        () = stop.soft.cancelled() => None,
    };
    // A pair that the provider has issued is stored or parked before the process ends.
    flights.close();
    flights.wait().await;
    drained.cancel();
    // Where there is no broker the events are lost, as a worker's would be.
    let told = timeout(settings.broker.operation_timeout, publish_events).await;
    closed.cancel();
    if let Ok(told) = told {
        told.context("the task that publishes events ended unexpectedly")?;
    }
    publishing.await.context("the task that keeps the broker's connection ended unexpectedly")?;
    Ok(passed.transpose()?)
}
