//! Whether the database is there and can be worked with: looked at now and then, and at once when a statement fails.

use std::sync::Arc;
use std::time::Duration;

use sea_orm::{DatabaseBackend, DatabaseConnection};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::able::{self, Newer};
use super::{Fault, Place, Unable, knock};
use crate::retry::Backoff;
use crate::settings;
use crate::store::Store;
use crate::telemetry::DatabaseAway;

/// How often the database is pinged.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How long a ping may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often failed statements lead to a closer look, at most.
const PROVE_EVERY: Duration = Duration::from_secs(1);

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
    /// Begins with a reachable database. Returns the task that keeps looking at it, too.
    pub fn watch(
        store: Store,
        settings: settings::Database,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (found, away) = watch::channel(None);
        let suspicion = Arc::new(Notify::new());
        let look = Look { place: Place::new(&settings), store, settings };
        let looking = look.keep_looking(found, Arc::clone(&suspicion));
        (Self { away, suspicion }, looking)
    }

    /// A statement failed: look now.
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

struct Look {
    store: Store,
    settings: settings::Database,
    place: Place,
}

impl Look {
    async fn keep_looking(self, found: watch::Sender<Option<Arc<str>>>, suspicion: Arc<Notify>) {
        let mut proved_at: Option<Instant> = None;
        loop {
            let suspected = timeout(LOOK_EVERY, suspicion.notified()).await.is_ok();
            // A row that fails again and again must not keep the database busy.
            let prove = suspected && proved_at.is_none_or(|at| at.elapsed() >= PROVE_EVERY);
            if prove {
                proved_at = Some(Instant::now());
            }
            let Err(unable) = self.is_there(prove).await else { continue };
            found.send_replace(Some(unable.to_string().into()));
            let mut away = DatabaseAway::begin();
            let mut delays = LOOK_AGAIN.delays();
            let mut unable = self.name(unable).await;
            loop {
                away.because(&unable.problem);
                found.send_replace(Some(unable.to_string().into()));
                delays.wait().await;
                match self.is_able().await {
                    Ok(()) => break,
                    Err(again) => unable = self.name(again).await,
                }
                if unable.fault == Fault::ReadOnly {
                    self.renew_connections().await;
                }
            }
            away.end();
            found.send_replace(None);
        }
    }

    /// Whether it answers, and after a failed statement also whether it can still be worked with.
    async fn is_there(&self, prove: bool) -> Result<(), Unable> {
        self.ping().await?;
        if !prove {
            return Ok(());
        }
        match self.is_able().await {
            Err(unable) if matches!(unable.fault, Fault::ReadOnly | Fault::Denied | Fault::NoTable) => {
                Err(unable)
            }
            // The database answers, so the statement failed for another reason.
            _ => Ok(()),
        }
    }

    /// What a worker proves at its start.
    async fn is_able(&self) -> Result<(), Unable> {
        self.ping().await?;
        // Some twenty statements, on a server that may be cold.
        let limit = PATIENCE.max(self.settings.acquire_timeout);
        let proved = timeout(limit, able::prove(&self.store.urgent, &self.place, Newer::Fine)).await;
        proved.unwrap_or_else(|_| Err(self.place.unable(Fault::NoAnswer, "")))
    }

    async fn ping(&self) -> Result<(), Unable> {
        match timeout(PATIENCE, self.store.urgent.ping()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(able::failed(&self.place, &error)),
            Err(_) => Err(self.place.unable(Fault::NoAnswer, "")),
        }
    }

    /// After a failover the name of the database may stand for another server, which only new connections find.
    async fn renew_connections(&self) {
        let Store { db, urgent, grouped, .. } = &self.store;
        for pool in [db, urgent, grouped] {
            close_idle(pool).await;
        }
    }

    /// A pool does not say why it has no connection. A connection of its own does.
    async fn name(&self, unable: Unable) -> Unable {
        match unable.fault {
            // Of a file of TLS that is gone the pool says that nothing listens.
            Fault::NoAnswer | Fault::Unreachable | Fault::NothingListens => {
                knock(&self.settings, PATIENCE).await.err().unwrap_or(unable)
            }
            _ => unable,
        }
    }
}

/// Closes the connections that nobody uses.
async fn close_idle(db: &DatabaseConnection) {
    // One that does not close well is gone, too.
    match db.get_database_backend() {
        DatabaseBackend::Postgres => {
            while let Some(idle) = db.get_postgres_connection_pool().try_acquire() {
                drop(idle.close().await);
            }
        }
        DatabaseBackend::MySql => {
            while let Some(idle) = db.get_mysql_connection_pool().try_acquire() {
                drop(idle.close().await);
            }
        }
        _ => {}
    }
}
