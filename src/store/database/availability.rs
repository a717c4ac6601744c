//! Whether the database is there and can be worked with: looked at now and then, and at once when a statement fails.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use sea_orm::{DatabaseBackend, DatabaseConnection};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use super::able::{self, Newer};
use super::{Fault, Link, Place, Server, Unable, find_writable};
use crate::retry::Backoff;
use crate::settings;
use crate::store::{Store, StoreError};
use crate::telemetry::{self, DatabaseAway};

/// How often the database is asked whether it takes writes.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How long a ping may take, and how long each server may take to let us in.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often failed statements lead to a closer look, at most.
const PROVE_EVERY: Duration = Duration::from_secs(1);

/// How often it is looked for while it is away, so that its return is noticed soon.
const LOOK_AGAIN: Backoff = Backoff::doubling(Duration::from_millis(100), Duration::from_secs(1));

/// Whether the database is there. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Availability {
    /// Why the database is away. None: it is there.
    away: watch::Receiver<Option<Arc<str>>>,
    suspicion: Arc<Notify>,
    link: Link,
}

impl Availability {
    /// Begins with a reachable database. Returns the task that keeps looking at it, too.
    pub fn watch(
        store: Store,
        settings: settings::Database,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (found, away) = watch::channel(None);
        let (suspicion, link) = (Arc::new(Notify::new()), store.link.clone());
        let look = Look { place: Place::new(&settings), store, settings };
        let looking = look.keep_looking(found, Arc::clone(&suspicion));
        (Self { away, suspicion, link }, looking)
    }

    /// A statement failed: look now.
    pub fn suspect(&self, error: &StoreError) {
        if error.is_of_wrong_server() {
            self.link.distrust();
        } else {
            self.suspicion.notify_one();
        }
    }

    /// Why the database is away. None: it is there.
    pub fn problem(&self) -> Option<Arc<str>> {
        self.away.borrow().clone()
    }

    pub fn is_away(&self) -> bool {
        self.away.borrow().is_some()
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

/// Why to look.
enum Cause {
    ItIsTime,
    /// A statement failed.
    Statement,
    /// A server that answers takes no writes.
    WrongServer,
}

impl Look {
    async fn keep_looking(self, found: watch::Sender<Option<Arc<str>>>, suspicion: Arc<Notify>) {
        let mut looked_at: Option<Instant> = None;
        loop {
            let mut cause = tokio::select! {
                () = self.store.link.distrusted() => Cause::WrongServer,
                () = suspicion.notified() => Cause::Statement,
                () = sleep(LOOK_EVERY) => Cause::ItIsTime,
            };
            // A row that fails again and again must not keep the database busy.
            if looked_at.is_some_and(|at| at.elapsed() < PROVE_EVERY) {
                cause = Cause::ItIsTime;
            }
            if !matches!(cause, Cause::ItIsTime) {
                looked_at = Some(Instant::now());
            }
            let Err(unable) = self.is_there(&cause).await else { continue };
            found.send_replace(Some(unable.to_string().into()));
            // Kept ones would go on leading there.
            self.renew().await;
            let mut away = DatabaseAway::begin();
            let mut delays = LOOK_AGAIN.delays();
            let mut unable = self.name(unable).await;
            loop {
                away.because(&unable.problem);
                found.send_replace(Some(unable.to_string().into()));
                delays.wait().await;
                match self.connect_anew().await {
                    Ok(_) => break,
                    Err(again) => unable = again,
                }
            }
            away.end();
            found.send_replace(None);
        }
    }

    /// Whether it takes writes, and after a failed statement also whether it can still be worked with.
    async fn is_there(&self, cause: &Cause) -> Result<(), Unable> {
        if let Cause::WrongServer = cause {
            let server = self.connect_anew().await?;
            telemetry::database_server_changed(&server.name);
            return Ok(());
        }
        self.ping().await?;
        let proved = match cause {
            Cause::Statement => self.is_able().await,
            _ => self.takes_writes().await,
        };
        match proved {
            Err(unable)
                if unable.fault.is_of_wrong_server()
                    || matches!(unable.fault, Fault::Denied | Fault::NoTable) =>
            {
                Err(unable)
            }
            // The database answers, so the statement failed for another reason.
            _ => Ok(()),
        }
    }

    async fn takes_writes(&self) -> Result<(), Unable> {
        let asked = timeout(PATIENCE, able::may_be_written(&self.store.urgent, &self.place)).await;
        asked.unwrap_or_else(|_| Err(self.place.unable(Fault::NoAnswer, "")))
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

    /// Looks for a server that takes writes, lets every pool connect there, and proves that a worker can do its job. After a
    /// failover another server takes writes, or the database's name stands for another one, which only new connections find.
    async fn connect_anew(&self) -> Result<Server, Unable> {
        let server = self.find().await?;
        self.connect_to(&server).await;
        self.is_able().await?;
        Ok(server)
    }

    /// Lets all pools open their next connections at this server, and use no older ones.
    async fn connect_to(&self, server: &Server) {
        let Store { db, urgent, grouped, .. } = &self.store;
        for pool in [db, urgent, grouped] {
            server.target.set_on(pool);
        }
        self.renew().await;
    }

    /// Ends all connections: what nobody uses at once, the others when they come back to their pool.
    async fn renew(&self) {
        let Store { db, urgent, grouped, link, .. } = &self.store;
        link.renew();
        join_all([db, urgent, grouped].map(close_idle)).await;
    }

    async fn find(&self) -> Result<Server, Unable> {
        let servers = u32::try_from(self.settings.url.servers().len()).unwrap_or(u32::MAX);
        find_writable(&self.settings, PATIENCE.saturating_mul(servers)).await
    }

    /// A pool does not say why it has no connection. A connection of its own does.
    async fn name(&self, unable: Unable) -> Unable {
        match unable.fault {
            // Of a file of TLS that is gone the pool says that nothing listens.
            Fault::NoAnswer | Fault::Unreachable | Fault::NothingListens => {
                self.find().await.err().unwrap_or(unable)
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
            let pool = db.get_postgres_connection_pool();
            let idle = std::iter::from_fn(|| pool.try_acquire()).map(|idle| timeout(PATIENCE, idle.close()));
            join_all(idle.collect::<Vec<_>>()).await;
        }
        DatabaseBackend::MySql => {
            let pool = db.get_mysql_connection_pool();
            let idle = std::iter::from_fn(|| pool.try_acquire()).map(|idle| timeout(PATIENCE, idle.close()));
            join_all(idle.collect::<Vec<_>>()).await;
        }
        // A closed file is opened again in any case.
        _ => {}
    }
}
