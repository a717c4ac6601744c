//! A worker's store: waits for its database, whatever keeps it from working there.

use std::time::Duration;

use super::admin::Readiness;
use super::lifecycle::Stop;
use super::presence::Presence;
use super::refreshing::store_over;
use crate::domain::secret::KeyRing;
use crate::retry::Backoff;
use crate::settings::Settings;
use crate::store::database::{self, Fault, Place, Unable};
use crate::store::{Store, StoreError};
use crate::telemetry::DatabaseAway;

const LOOK_AGAIN: Backoff = Backoff::doubling(Duration::from_millis(100), Duration::from_secs(2));

/// Opens the store as soon as a worker can do its job on the database. None: the worker was told to stop before.
///
/// A server is waited for, whatever is wrong there: it may start later than the worker, or be migrated later, and a missing
/// right or a wrong password may be mended there. A file is on this machine, where nobody but an operator mends anything.
///
/// # Errors
/// What waiting does not mend: a wrong URL, or a file that cannot be used.
pub async fn wait_for_store(
    settings: &Settings,
    keys: &KeyRing,
    readiness: &Readiness,
    stop: &Stop,
) -> anyhow::Result<Option<Store>> {
    let is_file = Place::new(&settings.database).is_file();
    let mut away: Option<DatabaseAway> = None;
    let mut delays = LOOK_AGAIN.delays();
    loop {
        let opened = tokio::select! {
            opened = open(settings, keys) => opened,
            () = stop.soft.cancelled() => return Ok(None),
        };
        let unable = match opened {
            Ok(store) => {
                if let Some(away) = away {
                    away.end();
                }
                return Ok(Some(store));
            }
            Err(unable) => unable,
        };
        if unable.fault == Fault::Url || (is_file && unable.fault != Fault::Locked) {
            return Err(unable.into());
        }
        away.get_or_insert_with(DatabaseAway::begin).because(&unable.problem);
        readiness.waits_for(format!("database: {unable}"));
        tokio::select! {
            () = delays.wait() => {}
            () = stop.soft.cancelled() => return Ok(None),
        }
    }
}

/// Joins the workers. A database that goes away meanwhile is waited for. None: the worker was told to stop before.
///
/// # Errors
/// A [`Problem`](crate::domain::problem::Problem) with the encryption keys.
pub async fn join_workers(
    store: &Store,
    instance: &str,
    readiness: &Readiness,
    stop: &Stop,
) -> anyhow::Result<Option<Presence>> {
    let mut delays = LOOK_AGAIN.delays();
    loop {
        let joined = tokio::select! {
            joined = Presence::begin(store, instance.to_owned(), "worker") => joined,
            () = stop.soft.cancelled() => return Ok(None),
        };
        match joined {
            Ok(presence) => return Ok(Some(presence)),
            Err(error) if error.downcast_ref().is_some_and(StoreError::is_transient) => {
                readiness.waits_for(format!("database: {error:#}"));
                delays.wait().await;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn open(settings: &Settings, keys: &KeyRing) -> Result<Store, Unable> {
    let opened = database::open_able(&settings.database).await?;
    store_over(settings, keys, opened).await
}
