//! Whether the database is there: looked at now and then, and at once when a statement fails.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::retry::Backoff;
use crate::store::{Store, StoreError};
use crate::telemetry;

/// How often the database is pinged.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How long a ping may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often it is pinged while it is away, so that its return is noticed soon.
const LOOK_AGAIN: Backoff = Backoff::doubling(Duration::from_millis(100), Duration::from_secs(1));

/// Whether the database is there. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Availability {
    /// Why the database is away. None: it is there.
    away: watch::Receiver<Option<Arc<str>>>,
    suspicion: Arc<Notify>,
}

impl Availability {
    /// Begins with a reachable database. Returns the task that keeps pinging it, too.
    pub fn watch(store: Store) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (found, away) = watch::channel(None);
        let suspicion = Arc::new(Notify::new());
        let looking = look(store, found, Arc::clone(&suspicion));
        (Self { away, suspicion }, looking)
    }

    /// A statement failed: ping now.
    pub fn suspect(&self) {
        self.suspicion.notify_one();
    }

    /// Why the database is away. None: it is there.
    pub fn problem(&self) -> Option<Arc<str>> {
        self.away.borrow().clone()
    }

    pub async fn lost(&self) {
        self.wait_until(Option::is_some).await;
    }

    pub async fn there(&self) {
        self.wait_until(Option::is_none).await;
    }

    async fn wait_until(&self, state: impl Fn(&Option<Arc<str>>) -> bool) {
        if self.away.clone().wait_for(state).await.is_err() {
            // Nobody looks any more: the process is about to end, and so is whoever waits here.
            std::future::pending::<()>().await;
        }
    }
}

async fn look(store: Store, found: watch::Sender<Option<Arc<str>>>, suspicion: Arc<Notify>) {
    loop {
        drop(timeout(LOOK_EVERY, suspicion.notified()).await);
        let Err(error) = ping(&store).await else { continue };
        telemetry::database_lost(&error);
        found.send_replace(Some(error.to_string().into()));
        let mut delays = LOOK_AGAIN.delays();
        delays.wait().await;
        while ping(&store).await.is_err() {
            delays.wait().await;
        }
        telemetry::database_back();
        found.send_replace(None);
    }
}

async fn ping(store: &Store) -> Result<(), StoreError> {
    timeout(PATIENCE, store.ping()).await.unwrap_or(Err(StoreError::NoAnswer))
}
