//! Services: tasks that a worker needs beside messages and refreshes. If one panics, that is logged and the worker is not
//! ready any more.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::telemetry::{self, Panicking};

/// Clones share the services.
#[derive(Debug, Clone, Default)]
pub struct Services {
    tasks: TaskTracker,
    ended: Arc<Mutex<Vec<&'static str>>>,
}

impl Services {
    /// Runs a service until it ends. `name` identifies it in `/readyz`.
    pub fn spawn(&self, name: &'static str, service: impl Future<Output = ()> + Send + 'static) {
        let ended = Arc::clone(&self.ended);
        self.tasks.spawn(async move {
            if AssertUnwindSafe(service).catch_unwind().await.is_err() {
                telemetry::panicked(Panicking::Service);
                telemetry::service_ended(name);
                ended.lock().push(name);
            }
        });
    }

    /// Runs a service until `stop`.
    pub fn spawn_until(
        &self,
        name: &'static str,
        stop: CancellationToken,
        service: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn(name, async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = service => {}
            }
        });
    }

    /// The services that panicked.
    pub fn ended(&self) -> Vec<&'static str> {
        self.ended.lock().clone()
    }

    /// Waits until all have ended. Stop them first.
    pub async fn wait(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_service_that_panics_is_named_and_the_others_continue() {
        let services = Services::default();
        let stop = CancellationToken::new();
        services.spawn("clock", async { panic!("a bug") });
        services.spawn("parking", async {});
        services.spawn_until("flags", stop.clone(), std::future::pending());
        while services.ended().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(services.ended(), ["clock"]);
        stop.cancel();
        services.wait().await;
        assert_eq!(services.ended(), ["clock"], "services that end normally are not listed");
    }
}
