//! A pass outside a worker. It refreshes, so it needs everything that keeps a rotated pair from being lost.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::{Housekeeper, Pass};
use crate::app::lifecycle::Stop;
use crate::app::presence::Presence;
use crate::app::refreshing::{Refreshing, open_store};
use crate::domain::clock::{Clock, DatabaseClock};
use crate::domain::problem::Problem;
use crate::domain::secret::KeyRing;
use crate::journal::Gate;
use crate::settings::Settings;
use crate::store::Store;
use crate::store::database::clock_sync;

/// How far a pass came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    ToTheEnd(Pass),
    /// It was stopped. A refresh that was under way is not counted, but finished.
    Stopped(Pass),
}

/// Does one pass and waits for its refreshes.
pub async fn pass_alone(settings: &Settings, own: Arc<dyn Clock>, stop: &Stop) -> anyhow::Result<Passed> {
    let keys = Arc::new(settings.key_ring()?);
    let store = open_store(settings, &keys).await?;
    let clock = Arc::new(DatabaseClock::new(own));
    clock_sync::set(&clock, &store, settings.database.max_clock_offset).await?;

    let mut presence = Presence::of_command(&store, "housekeeping").await?;
    let mut pass = pin!(pass_with(settings, &keys, store, clock, stop));
    let passed = tokio::select! {
        passed = &mut pass => passed,
        problem = presence.keep() => {
            // A pair that the provider has issued is stored or parked first.
            stop.soft.cancel();
            pass.await.and(Err(problem.into()))
        }
    };
    presence.end().await;
    passed
}

async fn pass_with(
    settings: &Settings,
    keys: &Arc<KeyRing>,
    store: Store,
    clock: Arc<dyn Clock>,
    stop: &Stop,
) -> anyhow::Result<Passed> {
    let closed = CancellationToken::new();
    let name = "tokenkeeper housekeeping".to_owned();
    let instance = format!("{name}-{}", Uuid::new_v4().simple());
    let (refreshing, tasks) =
        Refreshing::open(settings, keys, &store, &clock, (&instance, name), stop, &closed)?;
    let publishing = tokio::spawn(tasks.keep_publishing);
    let following = AbortOnDropHandle::new(tokio::spawn(tasks.keep_journal));
    let refresher = Arc::clone(&refreshing.refresher);
    let housekeeper = Housekeeper { store, refresher, clock, settings: settings.housekeeping.clone() };

    let mut done = Pass::default();
    let passing = async {
        let patience = settings.broker.connect_timeout + settings.broker.operation_timeout;
        if !refreshing.journal.opened_by(Instant::now() + patience).await
            && refreshing.journal.gate() == (Gate::Reading { records: 0 })
        {
            return Err(no_journal(patience).into());
        }
        refreshing.journal.opened().await;
        Ok::<(), anyhow::Error>(housekeeper.pass(&mut done).await?)
    };
    let is_whole = tokio::select! {
        passed = passing => passed.map(|()| true),
        () = stop.soft.cancelled() => Ok(false),
    };
    // A pair that the provider has issued is stored or parked before the process ends.
    refreshing.flights.close();
    refreshing.flights.wait().await;
    let told = refreshing.publish_last_events(settings.broker.operation_timeout, stop).await;
    drop(following);
    closed.cancel();
    told?;
    publishing.await.context("the task of the broker connection ended unexpectedly")?;
    Ok(if is_whole? { Passed::ToTheEnd(done) } else { Passed::Stopped(done) })
}

/// Without the journal nobody knows whether the database went back, and a refresh could send a spent token.
fn no_journal(patience: Duration) -> Problem {
    Problem::new(
        "nothing is refreshed before the journal of pairs is read",
        format!("the broker did not give it within {} s", patience.as_secs()),
        "tokenkeeper doctor",
    )
}
