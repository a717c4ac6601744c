//! Connections to token endpoints, and the pool of idle ones.
//!
//! Only HTTP/1.1. An exchange has a connection for itself, so `budget` can limit its cost, and the server can only
//! answer one request. With HTTP/2 a server could send endless frames of its own to all exchanges at once. It could also
//! end them by a GOAWAY that does not say which ones it acted on.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::ext::on_informational;
use hyper::rt::{Read, Write};
use hyper::{Request, Response};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use url::Origin;

use super::budget::Allowance;
use crate::domain::network::Reach;

/// A request with its whole body.
pub(super) type Message = Request<Full<Bytes>>;

/// How long an idle connection is kept: less than common servers keep it (Apache: 5 s). If the server closes a
/// connection while we send, the outcome of the refresh is unknown.
const IDLE_CONNECTION: Duration = Duration::from_secs(4);

/// The most idle connections for one server. With the default settings, no more are in use at once.
const MAX_IDLE: usize = 32;

/// Enough for the connection's task to run once.
const READY_WITHIN: Duration = Duration::from_millis(100);

/// The most header fields of an answer. `hyper` allocates room for all of them for each answer, interim ones included.
const MAX_HEADERS: usize = 256;

/// The most interim answers (1xx) before an answer. Each is short, but costs as much as a full answer.
const MAX_INTERIM_ANSWERS: usize = 64;

/// An open connection. Dropping it closes it at once.
#[derive(Debug)]
pub(super) struct Connection {
    requests: SendRequest<Full<Bytes>>,
    allowance: Allowance,
    _task: AbortOnDropHandle<()>,
}

impl Connection {
    /// Starts HTTP over a stream that `allowance` limits.
    pub(super) async fn open(
        stream: impl Read + Write + Unpin + Send + 'static,
        allowance: Allowance,
    ) -> hyper::Result<Self> {
        #[expect(clippy::disallowed_methods, reason = "the one home of HTTP clients")]
        let mut http = http1::Builder::new();
        let (requests, connection) = http.max_headers(MAX_HEADERS).handshake(stream).await?;
        let task = tokio::spawn(async move {
            // Whoever waits for an answer sees the error too.
            let _ = connection.await;
        });
        Ok(Self { requests, allowance, _task: AbortOnDropHandle::new(task) })
    }

    /// Sends a request. If the error returns the request, nothing of it was sent.
    pub(super) async fn send(
        &mut self,
        mut message: Message,
    ) -> Result<Response<Incoming>, TrySendError<Message>> {
        self.allowance.renew();
        let (allowance, interim_answers) = (self.allowance.clone(), AtomicUsize::new(0));
        on_informational(&mut message, move |_| {
            if interim_answers.fetch_add(1, Ordering::Relaxed) >= MAX_INTERIM_ANSWERS {
                allowance.end();
            }
        });
        self.requests.try_send_request(message).await
    }

    async fn is_ready(&mut self) -> bool {
        matches!(timeout(READY_WITHIN, self.requests.ready()).await, Ok(Ok(())))
    }
}

/// Whose connections may be used for each other: of one server, and made under the same rule.
pub(super) type Line = (Origin, Reach);

/// Idle connections. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Pool(Arc<Mutex<Idle>>);

#[derive(Debug, Default)]
struct Idle {
    /// The most recently used is last.
    connections: HashMap<Line, Vec<(Instant, Connection)>>,
    /// Whether a task is running that closes old connections.
    swept: bool,
}

impl Pool {
    /// The most recently used connection that is still open, so that the others grow old.
    pub(super) async fn take(&self, line: &Line) -> Option<Connection> {
        loop {
            let mut connection = self.pop(line)?;
            if connection.is_ready().await {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection for the next exchange.
    pub(super) fn put(&self, line: Line, connection: Connection) {
        if connection.requests.is_closed() {
            return;
        }
        let mut idle = self.idle();
        let connections = idle.connections.entry(line).or_default();
        if connections.len() < MAX_IDLE {
            connections.push((Instant::now(), connection));
        }
        if !idle.swept {
            idle.swept = true;
            tokio::spawn(self.clone().sweep());
        }
    }

    fn pop(&self, line: &Line) -> Option<Connection> {
        let mut idle = self.idle();
        let (since, connection) = idle.connections.get_mut(line)?.pop()?;
        (since.elapsed() < IDLE_CONNECTION).then_some(connection)
    }

    /// Closes old connections until none is left.
    async fn sweep(self) {
        while {
            sleep(IDLE_CONNECTION).await;
            self.idle().close_old()
        } {}
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.0.lock()
    }
}

impl Idle {
    /// Returns whether connections are left.
    fn close_old(&mut self) -> bool {
        self.connections.retain(|_, connections| {
            connections.retain(|(since, connection)| {
                since.elapsed() < IDLE_CONNECTION && !connection.requests.is_closed()
            });
            !connections.is_empty()
        });
        self.swept = !self.connections.is_empty();
        self.swept
    }
}

#[cfg(test)]
mod tests {
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, DuplexStream, duplex};
    use url::Url;

    use super::super::budget::Budgeted;
    use super::*;

    fn line() -> Line {
        (Url::parse("https://git.example.org/token").unwrap().origin(), Reach::Public)
    }

    /// A connection and the server's end of it.
    async fn connection() -> (Connection, DuplexStream) {
        let (ours, theirs) = duplex(1024);
        let (stream, allowance) = Budgeted::new(ours);
        (Connection::open(TokioIo::new(stream), allowance).await.unwrap(), theirs)
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_closed_after_four_seconds() {
        let (pool, (connection, mut server)) = (Pool::default(), connection().await);
        pool.put(line(), connection);
        sleep(IDLE_CONNECTION / 2).await;
        let connection = pool.take(&line()).await.expect("it is still good");
        assert!(pool.take(&line()).await.is_none(), "it was taken");
        pool.put(line(), connection);
        let put = Instant::now();
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0, "it is closed although nobody takes it");
        assert!(put.elapsed() >= IDLE_CONNECTION && put.elapsed() <= 2 * IDLE_CONNECTION);
        assert!(pool.take(&line()).await.is_none());
        assert!(pool.idle().connections.is_empty() && !pool.idle().swept);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_closed_by_the_server_is_not_reused() {
        let (pool, (connection, server)) = (Pool::default(), connection().await);
        pool.put(line(), connection);
        drop(server);
        assert!(pool.take(&line()).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_idle_connections_is_limited() {
        let pool = Pool::default();
        let mut servers = Vec::new();
        for _ in 0..=MAX_IDLE {
            let (connection, server) = connection().await;
            pool.put(line(), connection);
            servers.push(server);
        }
        assert_eq!(pool.idle().connections[&line()].len(), MAX_IDLE);
    }
}
