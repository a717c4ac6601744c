//! The line that a worker logs when it is ready for the first time.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::app::admin::Health;
use crate::broker::Feed;
use crate::settings::Settings;
use crate::store::{Store, StoreError};
use crate::telemetry::{self, Ready};

const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Waits until the worker is ready, and says what it works with.
pub(super) async fn tell_when_ready(settings: Settings, health: Arc<Health>, store: Store) {
    while !health.problems().is_empty() {
        sleep(LOOK_EVERY).await;
    }
    let providers = counted(store.standings().await.map(|standings| standings.len()));
    let workers = store.workers().await;
    let workers = counted(workers.map(|known| known.iter().filter(|it| it.is_living_worker()).count()));
    let queues = Feed::ALL.into_iter().chain(Feed::partitions(settings.broker.partitions)).count();
    telemetry::ready(&Ready {
        // `mysql` is MariaDB too.
        database: settings.database.display_url().split(':').next().unwrap_or_default(),
        prefix: &settings.broker.prefix,
        queues,
        partitions: settings.broker.partitions,
        prefetch: settings.worker.prefetch_token_requests,
        providers,
        workers,
    });
}

fn counted(count: Result<usize, StoreError>) -> Option<usize> {
    count.inspect_err(|error| telemetry::store_failed(error)).ok()
}
