//! CONSUME … REPLY, ACK: consumers, permits, settling, drain.
//!
//! The prefetch of each queue is the permit: a message is taken in hand as a task of its own, and the broker
//! sends no more of them than may be in hand at once. Only this module publishes and acks.

mod consume;
mod settle;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use self::consume::{Consumers, Drained};
use self::settle::Settler;
use crate::admin::{self, Health};
use crate::broker::{Publisher, within};
use crate::clock::Clock;
use crate::database;
use crate::flags::Flags;
use crate::handle::{Budgets, Handler};
use crate::housekeeping::Housekeeper;
use crate::lifecycle::Stop;
use crate::oauth::TokenClient;
use crate::providers::Providers;
use crate::refresh::{RefreshOptions, Refresher};
use crate::settings::Settings;
use crate::store::Store;
use crate::telemetry;

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
    /// Everything that ends with the hard stop: publisher, admin endpoint, flag reloading.
    services: TaskTracker,
}

impl Worker {
    /// Opens the database, and starts consuming as soon as the broker is there.
    ///
    /// # Errors
    /// What makes it pointless to start: missing keys, no database, pending migrations, broken flags, a taken
    /// port. A broker that is away is none of it: it is waited for.
    pub async fn start(
        settings: Settings,
        clock: Arc<dyn Clock>,
        metrics: Option<metrics_exporter_prometheus::PrometheusHandle>,
        stop: Stop,
    ) -> anyhow::Result<Self> {
        let keys = settings.key_ring()?;
        let db = database::open_migrated(&settings.database).await?;
        let store = Store::new(db, keys);
        let (flags, reload_flags) = Flags::open(&settings.flags.file).await?;

        let (messages, flights, services) = (TaskTracker::new(), TaskTracker::new(), TaskTracker::new());
        let client = TokenClient::new(
            settings.refresh.connect_timeout,
            settings.refresh.total_timeout,
            Arc::clone(&clock),
        )?;
        let refresher = Arc::new(Refresher::new(
            store.clone(),
            client,
            Arc::clone(&clock),
            RefreshOptions::from(&settings.refresh),
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
            flags,
            access: settings.access.clone(),
            clock,
            budgets: Budgets {
                request: settings.worker.request_budget,
                workspace_start: settings.worker.workspace_start_budget,
            },
        };

        // Shown in the broker's list of connections, and in its consumer tags.
        let instance = format!("tokenkeeper-{}", Uuid::new_v4().simple());
        if settings.housekeeping.enabled {
            let keep_house = housekeeper.run(instance.clone());
            services.spawn(until(stop.soft.clone(), async move { match keep_house.await {} }));
        }
        let broker = Arc::new(settings.broker.clone());
        let (publisher, keep_publishing) =
            Publisher::new(Arc::clone(&broker), format!("{instance} publish"), stop.hard.clone());
        services.spawn(keep_publishing);
        services.spawn(until(stop.hard.clone(), async move {
            let never = reload_flags.run(telemetry::flags_reloaded).await;
            match never {}
        }));

        let health = Arc::new(Health::new(store, publisher.clone()));
        let listener = TcpListener::bind(settings.admin.listen)
            .await
            .with_context(|| format!("cannot listen on {} (setting admin.listen)", settings.admin.listen))?;
        let address = listener.local_addr()?;
        health.set_address(address);
        services.spawn(admin::serve(listener, Arc::clone(&health), metrics, stop.hard.clone()));
        tracing::info!(%address, "admin endpoint is up");

        let settler = Arc::new(Settler { handler, publisher, hard_stop: stop.hard.clone() });
        let consumers = Consumers {
            settings: broker,
            prefetch: settings.worker.clone(),
            instance,
            settler,
            messages: messages.clone(),
            health: Arc::clone(&health),
            soft_stop: stop.soft.clone(),
        };
        let consumers = tokio::spawn(consumers.run());
        Ok(Self { settings, stop, health, consumers, messages, flights, services })
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
        if let Some(drained) = &drained {
            let close = drained.connection.close(200, "the worker stops".into());
            drop(
                within(self.settings.broker.operation_timeout, || "close the connection".into(), close).await,
            );
        }
        self.stop.hard.cancel();
        self.services.close();
        self.services.wait().await;
        tracing::info!("stopped");
        Ok(())
    }
}

/// Runs a service until it is told to end.
async fn until(stop: tokio_util::sync::CancellationToken, service: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = service => {}
    }
}
