//! The connections of the admin endpoint, of which none may keep another out.
//!
//! A connection gives a *sign of life* when it is accepted and with each complete request. Silent for too long, it is
//! closed, whatever it waits for: a request that does not come or not to its end, an answer that nobody reads. Where there
//! are too many, the one that has been silent for longest makes room, so that a probe always gets through.

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

use crate::telemetry;

/// Most connections at once: many more than there are probes and scrapers, and few of the files that a process may open.
const MAX_CONNECTIONS: usize = 64;

/// How long a connection may be silent.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// How long a connection is used, however much it has to say.
const LONGEST: Duration = Duration::from_mins(5);

/// Most bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;

/// The connections that are open.
#[derive(Debug, Default)]
pub(super) struct Connections(Vec<Seat>);

/// One connection, which ends with it.
#[derive(Debug)]
struct Seat {
    sign: SignOfLife,
    task: AbortOnDropHandle<()>,
}

/// When a connection was last heard of. Clones are of the same connection.
#[derive(Debug, Clone)]
pub(super) struct SignOfLife(Arc<Mutex<Instant>>);

impl Connections {
    /// Serves one more connection, if need be in the place of the one that has been silent for longest.
    pub(super) fn admit<F>(&mut self, serve: impl FnOnce(SignOfLife) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.0.retain(|seat| !seat.task.is_finished());
        if self.0.len() >= MAX_CONNECTIONS {
            telemetry::admin_crowded();
            self.close_most_silent();
        }
        let sign = SignOfLife(Arc::new(Mutex::new(Instant::now())));
        let task = AbortOnDropHandle::new(tokio::spawn(serve(sign.clone())));
        self.0.push(Seat { sign, task });
    }

    /// Closes the connection that has been silent for longest.
    pub(super) fn close_most_silent(&mut self) {
        let most_silent = self.0.iter().enumerate().min_by_key(|(_, seat)| seat.sign.last());
        if let Some(index) = most_silent.map(|(index, _)| index) {
            self.0.swap_remove(index);
        }
    }

    /// Waits until all have ended by themselves.
    pub(super) async fn ended(self) {
        join_all(self.0.into_iter().map(|seat| seat.task)).await;
    }
}

impl SignOfLife {
    fn give(&self) {
        *self.0.lock() = Instant::now();
    }

    fn last(&self) -> Instant {
        *self.0.lock()
    }

    /// Waits until there has been none for too long.
    async fn missing(&self) {
        loop {
            let until = self.last() + PATIENCE;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }
}

/// Answers what is asked over a connection until it is over, silent, or old, or the worker stops.
pub(super) async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    sign: SignOfLife,
    stop: CancellationToken,
) {
    let (heard, router) = (sign.clone(), TowerToHyperService::new(router));
    let answer = service_fn(move |request| {
        heard.give();
        router.call(request)
    });
    let connection = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        // The sign of life is missing by then.
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
        // How a connection ends is of no interest to anybody but its client.
        _ = connection.as_mut() => return,
        () = sign.missing() => return,
        () = last_answer => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        _ = connection => {}
        () = sign.missing() => {}
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_one_that_has_been_silent_for_longest_makes_room() {
        let mut connections = Connections::default();
        for _ in 0..MAX_CONNECTIONS {
            connections.admit(|_| pending());
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        let oldest = connections.0[0].sign.clone();
        let second = connections.0[1].sign.last();
        oldest.give();
        connections.admit(|_| pending());
        assert_eq!(connections.0.len(), MAX_CONNECTIONS);
        assert!(connections.0.iter().any(|seat| seat.sign.last() == oldest.last()), "it had spoken");
        assert!(connections.0.iter().all(|seat| seat.sign.last() != second), "it had not");
    }

    #[tokio::test(start_paused = true)]
    async fn each_sign_of_life_begins_the_wait_anew() {
        let sign = SignOfLife(Arc::new(Mutex::new(Instant::now())));
        let begin = Instant::now();
        let missing = tokio::spawn({
            let sign = sign.clone();
            async move { sign.missing().await }
        });
        sleep(PATIENCE / 2).await;
        sign.give();
        missing.await.unwrap();
        assert_eq!(begin.elapsed(), PATIENCE / 2 * 3);
    }
}
