//! The connections of a small HTTP endpoint: the admin endpoint, the pages of a login. None may keep others out.
//!
//! A connection is *active* when it is accepted and with each complete request. If it is idle for too long, it is closed,
//! whatever it waits for: a request that does not come or is incomplete, or a client that does not read. If there are too
//! many connections, the one that has been idle longest is closed, so that a probe always gets through.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures_util::future::join_all;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Far more than there are probes and scrapers, and only a few of the files that a process may open.
const MAX_CONNECTIONS: usize = 64;

/// How long a connection may be idle, unless its answers take longer.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The longest life of a connection, however active it is.
const LONGEST: Duration = Duration::from_mins(5);

/// In bytes.
const MAX_HEAD: usize = 16 * 1024;

#[derive(Debug)]
pub struct Connections {
    open: Vec<Connection>,
    /// Called whenever there are too many.
    crowded: fn(),
}

/// Dropping it closes the connection.
#[derive(Debug)]
struct Connection {
    last_active: LastActive,
    task: AbortOnDropHandle<()>,
}

/// When a connection was last active. Clones share it.
#[derive(Debug, Clone)]
pub struct LastActive(Arc<Mutex<Instant>>);

impl Connections {
    pub const fn new(crowded: fn()) -> Self {
        Self { open: Vec::new(), crowded }
    }

    /// Serves one more connection. If there are too many, it closes the one that has been idle longest.
    pub fn admit<F>(&mut self, serve: impl FnOnce(LastActive) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.open.retain(|connection| !connection.task.is_finished());
        if self.open.len() >= MAX_CONNECTIONS {
            (self.crowded)();
            self.close_longest_idle();
        }
        let last_active = LastActive(Arc::new(Mutex::new(Instant::now())));
        let task = AbortOnDropHandle::new(tokio::spawn(serve(last_active.clone())));
        self.open.push(Connection { last_active, task });
    }

    pub fn close_longest_idle(&mut self) {
        let longest_idle =
            self.open.iter().enumerate().min_by_key(|(_, connection)| connection.last_active.get());
        if let Some(index) = longest_idle.map(|(index, _)| index) {
            self.open.swap_remove(index);
        }
    }

    pub async fn ended(self) {
        join_all(self.open.into_iter().map(|connection| connection.task)).await;
    }
}

impl LastActive {
    fn touch(&self) {
        *self.0.lock() = Instant::now();
    }

    fn get(&self) -> Instant {
        *self.0.lock()
    }

    async fn idle_for(&self, patience: Duration) {
        loop {
            let until = self.get() + patience;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }
}

/// Serves a connection until it ends, is idle or too old, or until the process stops.
pub async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    last_active: LastActive,
    patience: Duration,
    stop: CancellationToken,
) {
    let (heard, router) = (last_active.clone(), TowerToHyperService::new(router));
    let answer = service_fn(move |request| {
        heard.touch();
        router.call(request)
    });
    let connection = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        // `idle_for` covers it.
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(stream), answer);
    let mut connection = std::pin::pin!(connection);
    let last_answer = async {
        tokio::select! {
            () = stop.cancelled() => {}
            () = sleep(LONGEST) => {}
        }
    };
    tokio::select! {
        // An error matters only to the client.
        _ = connection.as_mut() => return,
        () = last_active.idle_for(patience) => return,
        () = last_answer => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        _ = connection => {}
        () = last_active.idle_for(patience) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_connection_makes_room_for_a_new_one() {
        let mut connections = Connections::new(|| {});
        for _ in 0..MAX_CONNECTIONS {
            connections.admit(|_| pending());
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        let oldest = connections.open[0].last_active.clone();
        let second = connections.open[1].last_active.get();
        oldest.touch();
        connections.admit(|_| pending());
        assert_eq!(connections.open.len(), MAX_CONNECTIONS);
        assert!(
            connections.open.iter().any(|connection| connection.last_active.get() == oldest.get()),
            "it was active"
        );
        assert!(
            connections.open.iter().all(|connection| connection.last_active.get() != second),
            "it was idle longest"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn activity_restarts_the_idle_timeout() {
        let last_active = LastActive(Arc::new(Mutex::new(Instant::now())));
        let begin = Instant::now();
        let idle = tokio::spawn({
            let last_active = last_active.clone();
            async move { last_active.idle_for(PATIENCE).await }
        });
        sleep(PATIENCE / 2).await;
        last_active.touch();
        idle.await.unwrap();
        assert_eq!(begin.elapsed(), PATIENCE / 2 * 3);
    }
}
