//! `/metrics`. Some gauges change with time or by what others do, so they are computed when somebody asks.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
#[cfg(target_os = "linux")]
use metrics_process::Collector;
use tokio::sync::Mutex;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{Instant, timeout};

use crate::domain::escape;
use crate::refresh::Refresher;
use crate::store::database::Availability;
use crate::store::{Standing, Store, StoreError};
use crate::telemetry;

/// The database is asked at most once in this time.
const DATABASE_EVERY: Duration = Duration::from_secs(30);
/// How long a scrape waits for the database.
const DATABASE_WITHIN: Duration = Duration::from_secs(1);

/// What `/metrics` shows.
pub struct Metrics {
    handle: PrometheusHandle,
    process: Collector,
    started: OnceLock<Started>,
    /// Locked while metrics are rendered: a client that asks all the time must not slow down the worker.
    looked_at: Mutex<LookedAt>,
}

/// What a worker has once it has a database.
struct Started {
    refresher: Arc<Refresher>,
    store: Store,
    database: Availability,
}

/// What the database was asked for.
#[derive(Debug, Default)]
struct LookedAt {
    last: Option<Instant>,
    /// The providers that there were.
    hosts: BTreeSet<String>,
}

impl Metrics {
    pub fn new(handle: PrometheusHandle) -> Self {
        let process = Collector::default();
        process.describe();
        Self { handle, process, started: OnceLock::new(), looked_at: Mutex::default() }
    }

    /// From here on there are circuits and a database to look at.
    pub fn has_started(&self, refresher: Arc<Refresher>, store: Store, database: Availability) {
        // It starts once.
        let _ = self.started.set(Started { refresher, store, database });
    }

    /// Everything in Prometheus' text format.
    pub(super) async fn render(&self) -> Result<String, JoinError> {
        let mut looked_at = self.looked_at.lock().await;
        if let Some(Started { refresher, store, database }) = self.started.get() {
            look_at_database(store, database, &mut looked_at).await;
            refresher.note_circuits();
        }
        let (handle, process) = (self.handle.clone(), self.process.clone());
        // It reads files and builds a long text.
        let rendered = spawn_blocking(move || {
            process.collect();
            rendered(&handle)
        });
        rendered.await
    }

    /// Drains histograms. Otherwise the recorder keeps every sample.
    pub(super) fn keep_up(&self) {
        self.handle.run_upkeep();
    }
}

/// Without an answer the gauges stay as they are.
async fn look_at_database(store: &Store, database: &Availability, looked_at: &mut LookedAt) {
    let now = Instant::now();
    let is_due = looked_at.last.is_none_or(|last| now >= last + DATABASE_EVERY);
    if !is_due || database.problem().is_some() {
        return;
    }
    looked_at.last = Some(now);
    let standings = timeout(DATABASE_WITHIN, store.standings()).await;
    let standings = match standings.unwrap_or(Err(StoreError::NoAnswer)) {
        Ok(standings) => standings,
        Err(error) => return telemetry::providers_not_looked_at(&error),
    };
    let hosts = standings.iter().map(|standing| standing.host.clone()).collect();
    for removed in std::mem::replace(&mut looked_at.hosts, hosts).difference(&looked_at.hosts) {
        telemetry::provider_is(removed, false, 0);
    }
    for Standing { host, is_refusing, must_log_in } in &standings {
        telemetry::provider_is(host, *is_refusing, *must_log_in);
    }
}

/// Elsewhere there are no metrics `process_*` (see Cargo.toml).
#[cfg(not(target_os = "linux"))]
#[derive(Debug, Default, Clone)]
struct Collector;

#[cfg(not(target_os = "linux"))]
impl Collector {
    fn describe(&self) {}

    fn collect(&self) {}
}

/// The exposition format escapes only line breaks and quotes. Hosts in labels come from the database.
fn rendered(metrics: &PrometheusHandle) -> String {
    escape::lines_without_escapes(&metrics.render()).into_owned()
}
