//! CONSUME … REPLY, ACK: consumers, settling, drain.
//!
//! The prefetch of each queue is how many of its messages may be in hand at once: each takes a place, and the broker sends no
//! more. All partitions of a kind share their places, and what the broker sends beyond these waits. Each queue has a task,
//! which consumes it and takes its messages on. Only this module publishes and acks.

mod acks;
mod arrivals;
mod consume;
mod in_hand;
mod put_off;
mod quorum;
mod ready;
mod restore;
mod settle;
mod settlement;
mod subscription;
mod suspects;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use futures_util::future::{join_all, try_join_all};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use self::consume::{Common, Consumers, Drained};
use self::quorum::Quorums;
use self::ready::tell_when_ready;
use self::restore::Restorer;
use self::settle::Settler;
use self::suspects::Tier;
use crate::app::admin::{Endpoint, Health, Metrics, Readiness};
use crate::app::database::{join_workers, wait_for_store};
use crate::app::lifecycle::Stop;
use crate::app::presence::Presence;
use crate::app::refreshing::Refreshing;
use crate::app::services::Services;
use crate::broker::dead_letters::Sealer;
use crate::broker::{Aside, Names, Publisher};
use crate::domain::clock::{Clock, DatabaseClock};
use crate::domain::problem::Problem;
use crate::domain::secret::KeyRing;
use crate::flags::{Flags, FlagsEvent};
use crate::housekeeping::Housekeeper;
use crate::limits::publisher::PublisherLimit;
use crate::parking::{self, Spool};
use crate::requests::{Budgets, Handler};
use crate::settings::{Broker, Settings};
use crate::store::Store;
use crate::store::database::{Availability, clock_sync};
use crate::store::provider_cache::Providers;
use crate::telemetry;

/// How long a worker that is otherwise done tries to publish its last events. Longer than a broker's disk keeps it waiting at times.
const EVENTS_TIMEOUT: Duration = Duration::from_secs(8);

/// Where a worker gets the time from.
#[derive(Debug)]
pub enum TimeSource {
    /// The database's clock, which all workers follow. The machine's own one is compared with it.
    Database { own: Arc<dyn Clock> },
    /// This clock alone, for tests of another day.
    Given(Arc<dyn Clock>),
}

#[derive(Debug)]
pub struct Worker {
    settings: Settings,
    stop: Stop,
    health: Arc<Health>,
    /// One for each tier of messages.
    consumers: Vec<JoinHandle<Option<Drained>>>,
    /// The connection for replies that may cost the connection of their requests.
    aside: Arc<Aside>,
    messages: TaskTracker,
    refreshing: Refreshing,
    /// The tasks that end with the hard stop: admin endpoint, flag reloading, database checks.
    services: Services,
    /// Ends the publisher. Refreshes need it until after the hard stop.
    closed: CancellationToken,
    /// Why this worker had to stop: it cannot read what others store.
    unreadable: Arc<OnceLock<Problem>>,
}

impl Worker {
    /// Starts consuming as soon as database and broker are there. None: the worker was told to stop before it had a database.
    ///
    /// # Errors
    /// The worker cannot start: missing or wrong keys, an unusable database file, a clock that is far off, broken flags, or a taken
    /// port. A server that is away, or that does not let the worker do its job yet, is not an error: the worker waits for it.
    pub async fn start(
        settings: Settings,
        time: TimeSource,
        metrics: Option<metrics_exporter_prometheus::PrometheusHandle>,
        stop: Stop,
    ) -> anyhow::Result<Option<Self>> {
        let (services, closed) = (Services::default(), CancellationToken::new());
        // Boxed: it is large, and everybody who starts a worker would carry its size.
        let started = Box::pin(Self::wire(settings, time, metrics, &stop, &services, &closed)).await;
        if !matches!(started, Ok(Some(_))) {
            // The tasks that were started so far must end.
            stop.soft.cancel();
            stop.hard.cancel();
            closed.cancel();
            services.wait().await;
        }
        started
    }

    /// Puts the parts together, in the order of their dependencies.
    async fn wire(
        settings: Settings,
        time: TimeSource,
        metrics: Option<metrics_exporter_prometheus::PrometheusHandle>,
        stop: &Stop,
        services: &Services,
        closed: &CancellationToken,
    ) -> anyhow::Result<Option<Self>> {
        let keys = Arc::new(settings.key_ring()?);
        let (flags, reload_flags) = Flags::open(&settings.flags.file).await?;
        let readiness = Arc::new(Readiness::default());
        let metrics = metrics.map(|handle| Arc::new(Metrics::new(handle)));
        let address = serve_admin(&settings, &readiness, metrics.clone(), services, stop).await?;
        let Some(store) = wait_for_store(&settings, &keys, &readiness, stop).await? else { return Ok(None) };
        // Shown in the broker's list of connections, in its consumer tags, and among the workers.
        let instance = format!("tokenkeeper-{}", Uuid::new_v4().simple());
        let Some(presence) = join_workers(&store, &instance, &readiness, stop).await? else {
            return Ok(None);
        };
        let unreadable = keep_presence(presence, settings.worker.grace_period, services, stop, closed);

        let messages = TaskTracker::new();
        let clock = time.open(&settings, &store, services, stop).await?;
        let (database, look_at_database) = Availability::watch(store.clone(), settings.database.clone());
        services.spawn_until("looking at the database", stop.hard.clone(), look_at_database);

        let broker = Arc::new(settings.broker.clone());
        let name = format!("{instance} publish");
        let (refreshing, tasks) =
            Refreshing::open(&settings, &keys, &store, &clock, (&instance, name), stop, closed)?;
        services.spawn("the publishing connection", tasks.keep_publishing);
        services.spawn_until("the journal", stop.hard.clone(), tasks.keep_journal);
        let (publisher, spool) = (refreshing.publisher.clone(), refreshing.spool.clone());
        seal_dead_letters(&broker, &keys, &publisher, services, stop);
        watch_spool(&spool, &store, &clock, services, stop);
        let handler = Handler {
            providers: Providers::new(store.clone()),
            store: store.clone(),
            refresher: Arc::clone(&refreshing.refresher),
            journal: refreshing.journal.clone(),
            database: database.clone(),
            flags,
            access: settings.access.clone(),
            publisher_limit: PublisherLimit::new(settings.limits, &settings.access),
            keys: Arc::clone(&keys),
            clock: Arc::clone(&clock),
            budgets: Budgets::from(&settings.worker),
        };

        keep_house(&settings, &handler, &instance, services, stop);
        let reload = reload_flags.run(|event| telemetry::flags_reloaded(*event == FlagsEvent::InForce));
        services.spawn_until("feature flags", stop.hard.clone(), async move { match reload.await {} });

        let health =
            Health::new(database.clone(), publisher.clone(), services.clone(), spool, broker.partitions)
                .with_journal(refreshing.journal.clone());
        let health = Arc::new(health);
        health.set_address(address);
        readiness.has_started(&health);
        if let Some(metrics) = metrics {
            metrics.has_started(Arc::clone(&refreshing.refresher), store.clone(), database.clone());
        }
        let tell = tell_when_ready(settings.clone(), Arc::clone(&health), store.clone());
        services.spawn_until("telling when it is ready", stop.soft.clone(), tell);
        look_at_quorum(&broker, &instance, &health, &publisher, services, stop);

        let restorer = Arc::new(Restorer {
            store,
            clock,
            publisher: publisher.clone(),
            names: Names::new(&broker.prefix),
            soft_stop: stop.soft.clone(),
        });
        let settler = Arc::new(Settler {
            handler,
            publisher,
            database: database.clone(),
            keys,
            prefix: broker.prefix.clone(),
            retry_limit: (!broker.retry_delay.is_zero()).then_some(broker.retry_limit),
            stop: stop.clone(),
        });
        let aside = Arc::new(Aside::new(Arc::clone(&broker), format!("{instance} reply")));
        let common = Common {
            settings: broker,
            prefetch: settings.worker.clone(),
            instance,
            settler,
            restorer,
            database,
            aside: Arc::clone(&aside),
            journal: refreshing.journal.clone(),
            troubles: refreshing.publisher.troubles().clone(),
            messages: messages.clone(),
            health: Arc::clone(&health),
            stop: stop.clone(),
        };
        let consumers =
            Tier::ALL.map(|tier| tokio::spawn(Consumers { tier, common: common.clone() }.run())).into();
        let (services, closed, stop) = (services.clone(), closed.clone(), stop.clone());
        Ok(Some(Self {
            settings,
            stop,
            health,
            consumers,
            aside,
            messages,
            refreshing,
            services,
            closed,
            unreadable,
        }))
    }

    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// Waits for the soft stop, then finishes: messages in hand are answered, or given back at the hard stop.
    pub async fn join(self) -> anyhow::Result<()> {
        let drained = try_join_all(self.consumers).await.context("the consumers ended unexpectedly")?;
        self.messages.close();
        self.messages.wait().await;
        let flights = &self.refreshing.flights;
        flights.close();
        // A provider call under way may have rotated a pair. It gets the time to end and store the pair, even after the hard
        // stop.
        let call_timeout = self.settings.refresh.total_timeout + Duration::from_secs(1);
        let finished = async {
            tokio::select! {
                () = flights.wait() => true,
                late = async {
                    self.stop.hard.cancelled().await;
                    timeout(call_timeout, flights.wait()).await.is_ok()
                } => late,
            }
        };
        if !finished.await {
            tracing::error!(refreshes = flights.len(), "stopping with refreshes under way");
        }
        self.refreshing.publish_last_events(EVENTS_TIMEOUT, &self.stop).await?;
        join_all(drained.iter().flatten().map(Drained::close)).await;
        self.aside.close().await;
        self.stop.hard.cancel();
        self.closed.cancel();
        self.services.wait().await;
        tracing::info!("stopped");
        self.unreadable.get().map_or(Ok(()), |problem| Err(problem.clone().into()))
    }
}

impl TimeSource {
    /// A clock, which is kept right for as long as the worker runs.
    async fn open(
        self,
        settings: &Settings,
        store: &Store,
        services: &Services,
        stop: &Stop,
    ) -> anyhow::Result<Arc<dyn Clock>> {
        match self {
            Self::Given(clock) => Ok(clock),
            Self::Database { own } => {
                let clock = Arc::new(DatabaseClock::new(own));
                clock_sync::set(&clock, store, settings.database.max_clock_offset).await?;
                let keep = clock_sync::keep(Arc::clone(&clock), store.clone());
                services.spawn_until("the clock", stop.hard.clone(), keep);
                Ok(clock)
            }
        }
    }
}

/// Checks the spool folder, and stores what an earlier worker left there.
fn watch_spool(spool: &Spool, store: &Store, clock: &Arc<dyn Clock>, services: &Services, stop: &Stop) {
    services.spawn_until("checking the spool folder", stop.hard.clone(), spool.clone().keep_checking());
    let pick_up = parking::pick_up(spool.clone(), store.clone(), Arc::clone(clock), stop.hard.clone());
    services.spawn("the spool folder", pick_up);
}

fn look_at_quorum(
    broker: &Arc<Broker>,
    instance: &str,
    health: &Arc<Health>,
    publisher: &Publisher,
    services: &Services,
    stop: &Stop,
) {
    let quorums = Quorums {
        settings: Arc::clone(broker),
        name: format!("{instance} quorum"),
        health: Arc::clone(health),
        troubles: publisher.troubles().clone(),
    };
    let look = async move { match quorums.keep_looking().await {} };
    services.spawn_until("looking at the quorum of the queues", stop.soft.clone(), look);
}

/// Opens the admin endpoint, and serves it until the hard stop.
async fn serve_admin(
    settings: &Settings,
    readiness: &Arc<Readiness>,
    metrics: Option<Arc<Metrics>>,
    services: &Services,
    stop: &Stop,
) -> anyhow::Result<SocketAddr> {
    let endpoint = Endpoint::open(&settings.admin).await?;
    let address = endpoint.address()?;
    tracing::info!(%address, "admin endpoint is up");
    let serve = endpoint.serve(Arc::clone(readiness), metrics, stop.hard.clone());
    services.spawn("the admin endpoint", serve);
    Ok(address)
}

/// Keeps the worker's row until `closed`. If the worker cannot read what others store, stops it and returns why.
fn keep_presence(
    mut presence: Presence,
    grace_period: Duration,
    services: &Services,
    stop: &Stop,
    closed: &CancellationToken,
) -> Arc<OnceLock<Problem>> {
    let unreadable = Arc::<OnceLock<Problem>>::default();
    let (found, stop, closed) = (Arc::clone(&unreadable), stop.clone(), closed.clone());
    services.spawn("telling that this worker lives", async move {
        let problem = tokio::select! {
            () = closed.cancelled() => None,
            problem = presence.keep() => Some(problem),
        };
        if let Some(problem) = problem {
            telemetry::keys_unusable(&problem);
            drop(found.set(problem));
            stop.soft.cancel();
            if timeout(grace_period, closed.cancelled()).await.is_err() {
                stop.hard.cancel();
                closed.cancelled().await;
            }
        }
        presence.end().await;
    });
    unreadable
}

/// Seals the dead letters that the broker itself makes.
fn seal_dead_letters(
    broker: &Arc<Broker>,
    keys: &Arc<KeyRing>,
    publisher: &Publisher,
    services: &Services,
    stop: &Stop,
) {
    let (settings, keys, publisher) = (Arc::clone(broker), Arc::clone(keys), publisher.clone());
    let sealer = Sealer { settings, keys, publisher };
    let seal = async move { match sealer.run().await {} };
    services.spawn_until("sealing dead letters", stop.soft.clone(), seal);
}

/// Starts housekeeping if it is enabled. `instance` is the worker's name.
fn keep_house(settings: &Settings, handler: &Handler, instance: &str, services: &Services, stop: &Stop) {
    if !settings.housekeeping.enabled {
        return;
    }
    let housekeeper = Housekeeper {
        store: handler.store.clone(),
        refresher: Arc::clone(&handler.refresher),
        clock: Arc::clone(&handler.clock),
        settings: settings.housekeeping.clone(),
    };
    let holder = instance.to_owned();
    let run = async move { match housekeeper.run(holder).await {} };
    services.spawn_until("housekeeping", stop.soft.clone(), run);
}
