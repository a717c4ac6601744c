//! CONSUME … REPLY, ACK: consumers, permits, settling, drain.
//!
//! The prefetch of each queue is the permit: the broker sends no more messages than may be in hand at once. Each queue has
//! a task, which consumes it and takes its messages on. Only this module publishes and acks.

mod acks;
mod consume;
mod in_hand;
mod partitions;
mod restore;
mod settle;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use self::consume::{Consumers, Drained};
use self::partitions::Partitions;
use self::restore::Restorer;
use self::settle::Settler;
use crate::admin::{Endpoint, Health};
use crate::broker::{Names, Publisher};
use crate::clock::{Clock, DatabaseClock};
use crate::database::{self, Availability, clock_sync};
use crate::events;
use crate::flags::Flags;
use crate::handle::{Budgets, Handler};
use crate::housekeeping::Housekeeper;
use crate::lifecycle::Stop;
use crate::oauth::TokenClient;
use crate::parking::{self, Parking, Spool};
use crate::providers::Providers;
use crate::refresh::{Outlets, RefreshOptions, Refresher};
use crate::settings::Settings;
use crate::store::Store;
use crate::telemetry;

/// How long a worker that is done otherwise goes on publishing events, where the broker does not take them.
const EVENTS_PATIENCE: Duration = Duration::from_secs(3);

/// What a worker's time is.
#[derive(Debug)]
pub enum TimeSource {
    /// The database's clock, which all workers follow. The machine's own one is compared with it.
    Database {
        /// The machine's.
        own: Arc<dyn Clock>,
    },
    /// This clock and no other: for a test of another day.
    Given(Arc<dyn Clock>),
}

/// A worker that runs.
#[derive(Debug)]
pub struct Worker {
    settings: Settings,
    stop: Stop,
    health: Arc<Health>,
    consumers: tokio::task::JoinHandle<Option<Drained>>,
    /// Messages in hand.
    messages: TaskTracker,
    /// Refreshes under way; they outlive the requests that started them.
    flights: TaskTracker,
    /// The task that publishes events, and what tells it that there will be no more.
    publish_events: tokio::task::JoinHandle<()>,
    drain_events: CancellationToken,
    /// Everything that ends with the hard stop: admin endpoint, flag reloading, the looks at the database.
    services: TaskTracker,
    /// Ends the publisher, which refreshes need for longer than the hard stop.
    closed: CancellationToken,
}

impl Worker {
    /// Opens the database, and starts consuming as soon as the broker is there.
    ///
    /// # Errors
    /// What makes it pointless to start: missing keys, no database, pending migrations, a clock that is far off,
    /// broken flags, a taken port. A broker that is away is none of it: it is waited for.
    pub async fn start(
        settings: Settings,
        time: TimeSource,
        metrics: Option<metrics_exporter_prometheus::PrometheusHandle>,
        stop: Stop,
    ) -> anyhow::Result<Self> {
        let keys = settings.key_ring()?;
        let db = database::open_migrated(&settings.database).await?;
        let urgent = database::open_urgent(&settings.database, &db).await?;
        let store = Store::new(db, keys).with_urgent(urgent);
        let (flags, reload_flags) = Flags::open(&settings.flags.file).await?;

        let (messages, flights, services) = (TaskTracker::new(), TaskTracker::new(), TaskTracker::new());
        let clock = time.open(&settings, &store, &services, &stop).await?;
        let (database, look_at_database) = Availability::watch(store.clone());
        services.spawn(until(stop.hard.clone(), look_at_database));

        // Shown in the broker's list of connections, and in its consumer tags.
        let instance = format!("tokenkeeper-{}", Uuid::new_v4().simple());
        let broker = Arc::new(settings.broker.clone());
        let (closed, drain_events) = (CancellationToken::new(), CancellationToken::new());
        let (publisher, keep_publishing) = Publisher::new(
            Arc::clone(&broker),
            format!("{instance} publish"),
            stop.hard.clone(),
            closed.clone(),
        );
        services.spawn(keep_publishing);
        let (events, outbox) = events::queue();
        let publish_events = tokio::spawn(outbox.publish(publisher.clone(), drain_events.clone()));
        let spool = open_spool(&settings).await;
        services.spawn(parking::pick_up(spool.clone(), store.clone(), Arc::clone(&clock), stop.hard.clone()));
        let client = TokenClient::new(
            settings.refresh.connect_timeout,
            settings.refresh.total_timeout,
            Arc::clone(&clock),
        )?;
        let refresher = Arc::new(Refresher::new(
            store.clone(),
            client,
            Arc::clone(&clock),
            RefreshOptions::new(&settings.refresh, &settings.worker),
            Outlets { parking: Parking::new(publisher.clone(), spool, stop.soft.clone()), events },
            flights.clone(),
            stop.hard.clone(),
        ));
        let housekeeper = Housekeeper {
            store: store.clone(),
            refresher: Arc::clone(&refresher),
            clock: Arc::clone(&clock),
            settings: settings.housekeeping.clone(),
        };
        let handler = Handler {
            providers: Providers::new(store.clone()),
            store: store.clone(),
            refresher,
            database: database.clone(),
            flags,
            access: settings.access.clone(),
            clock: Arc::clone(&clock),
            budgets: Budgets::from(&settings.worker),
        };

        if settings.housekeeping.enabled {
            let holder = instance.clone();
            services.spawn(until(stop.soft.clone(), async { match housekeeper.run(holder).await {} }));
        }
        services.spawn(until(stop.hard.clone(), async move {
            match reload_flags.run(telemetry::flags_reloaded).await {}
        }));

        let (partitions, share) = Partitions::new(&broker, &store, &clock, &instance);
        let health = Arc::new(Health::new(database.clone(), publisher.clone(), share));
        let endpoint = open_admin(&settings, &health).await?;
        services.spawn(endpoint.serve(Arc::clone(&health), metrics, stop.hard.clone()));

        let restorer = Arc::new(Restorer {
            store,
            clock,
            publisher: publisher.clone(),
            names: Names::new(&broker.prefix),
            soft_stop: stop.soft.clone(),
        });
        let settler =
            Arc::new(Settler { handler, publisher, database: database.clone(), stop: stop.clone() });
        let consumers = Consumers {
            settings: broker,
            prefetch: settings.worker.clone(),
            instance,
            settler,
            restorer,
            database,
            partitions,
            messages: messages.clone(),
            health: Arc::clone(&health),
            stop: stop.clone(),
        };
        let consumers = tokio::spawn(consumers.run());
        Ok(Self {
            settings,
            stop,
            health,
            consumers,
            messages,
            flights,
            publish_events,
            drain_events,
            services,
            closed,
        })
    }

    /// What the admin endpoint knows.
    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// Waits for the soft stop, then finishes: what is in hand is answered, or at the hard stop given back.
    pub async fn join(self) -> anyhow::Result<()> {
        let drained = self.consumers.await.context("the consumers ended unexpectedly")?;
        self.messages.close();
        self.messages.wait().await;
        self.flights.close();
        // A provider call that is under way may have rotated a pair: it gets the time it needs to be stored, even
        // after the hard stop.
        let patience = self.settings.refresh.total_timeout + Duration::from_secs(1);
        let finished = async {
            tokio::select! {
                () = self.flights.wait() => true,
                late = async {
                    self.stop.hard.cancelled().await;
                    timeout(patience, self.flights.wait()).await.is_ok()
                } => late,
            }
        };
        if !finished.await {
            tracing::error!(refreshes = self.flights.len(), "stopping with refreshes under way");
        }
        self.drain_events.cancel();
        let mut publish_events = self.publish_events;
        if timeout(EVENTS_PATIENCE, &mut publish_events).await.is_err() {
            // Ends them: each one is counted as lost.
            self.stop.hard.cancel();
            publish_events.await.context("the task that publishes events ended unexpectedly")?;
        }
        if let Some(drained) = &drained {
            drained.close().await;
        }
        self.stop.hard.cancel();
        self.closed.cancel();
        self.services.close();
        self.services.wait().await;
        tracing::info!("stopped");
        Ok(())
    }
}

/// Opens the port of the admin endpoint.
async fn open_admin(settings: &Settings, health: &Health) -> anyhow::Result<Endpoint> {
    let endpoint = Endpoint::open(&settings.admin).await?;
    let address = endpoint.address()?;
    health.set_address(address);
    tracing::info!(%address, "admin endpoint is up");
    Ok(endpoint)
}

impl TimeSource {
    /// The clock that is told by it, kept right for as long as the worker runs.
    async fn open(
        self,
        settings: &Settings,
        store: &Store,
        services: &TaskTracker,
        stop: &Stop,
    ) -> anyhow::Result<Arc<dyn Clock>> {
        match self {
            Self::Given(clock) => Ok(clock),
            Self::Database { own } => {
                let clock = Arc::new(DatabaseClock::new(own));
                clock_sync::set(&clock, store, settings.database.max_clock_offset).await?;
                services.spawn(until(stop.hard.clone(), clock_sync::keep(Arc::clone(&clock), store.clone())));
                Ok(clock)
            }
        }
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

/// Runs a service until it is told to end.
async fn until(stop: CancellationToken, service: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = service => {}
    }
}
