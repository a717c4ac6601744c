//! Connections to token endpoints: one that is open, and those that wait for their next exchange.
//!
//! HTTP/1.1 alone. An exchange has a connection for itself, so what it may cost is bounded beneath it (`budget`), and
//! a server that is told nothing else than one request can only answer it. HTTP/2 would let it send frames of its own
//! without end, to everybody's exchanges at once, and end them by a GOAWAY that leaves open which ones it has acted on.

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

/// A whole request, which the server gets in one piece.
pub(super) type Message = Request<Full<Bytes>>;

/// How long an unused connection is kept: shorter than any common server keeps it (Apache: 5 s). A connection
/// that the server closes in the moment we use it leaves open whether the refresh was done.
const IDLE_CONNECTION: Duration = Duration::from_secs(4);

/// Most unused connections that are kept for one server; more are not in use at once with the default settings.
const IDLE_FOR_EACH: usize = 32;

/// How long a connection may take until it is ready for its next request, which is a turn of its task.
const READY_WITHIN: Duration = Duration::from_millis(100);

/// Most header lines of an answer. `hyper` makes room for all of them for each answer, interim ones included.
const MAX_HEADERS: usize = 256;

/// Most interim answers (1xx) before an answer. Each is short, and costs as much as a whole one.
const MAX_INTERIM_ANSWERS: usize = 64;

/// An open connection. Dropped, it is closed, whatever is under way.
#[derive(Debug)]
pub(super) struct Connection {
    requests: SendRequest<Full<Bytes>>,
    allowance: Allowance,
    _task: AbortOnDropHandle<()>,
}

impl Connection {
    /// Speaks HTTP over a stream, whose bytes `allowance` is for.
    pub(super) async fn open(
        stream: impl Read + Write + Unpin + Send + 'static,
        allowance: Allowance,
    ) -> hyper::Result<Self> {
        #[expect(clippy::disallowed_methods, reason = "the one home of HTTP clients")]
        let mut http = http1::Builder::new();
        let (requests, connection) = http.max_headers(MAX_HEADERS).handshake(stream).await?;
        let task = tokio::spawn(async move {
            // Its end is told to whoever waits for an answer; without one it is of no interest.
            let _ = connection.await;
        });
        Ok(Self { requests, allowance, _task: AbortOnDropHandle::new(task) })
    }

    /// Sends a request. An error that has the request in it is certain: nothing of it was sent.
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

/// Connections without an exchange, by server. Clones are the same pool.
#[derive(Debug, Clone, Default)]
pub(super) struct Pool(Arc<Mutex<Idle>>);

#[derive(Debug, Default)]
struct Idle {
    /// The latest is the last.
    connections: HashMap<Origin, Vec<(Instant, Connection)>>,
    /// Whether a task closes those that nobody takes.
    swept: bool,
}

impl Pool {
    /// A connection that is still good, as far as anybody can know. The latest, so that the others get old.
    pub(super) async fn take(&self, origin: &Origin) -> Option<Connection> {
        loop {
            let mut connection = self.pop(origin)?;
            if connection.is_ready().await {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection whose exchange is over for the next one.
    pub(super) fn put(&self, origin: Origin, connection: Connection) {
        if connection.requests.is_closed() {
            return;
        }
        let mut idle = self.idle();
        let connections = idle.connections.entry(origin).or_default();
        if connections.len() < IDLE_FOR_EACH {
            connections.push((Instant::now(), connection));
        }
        if !idle.swept {
            idle.swept = true;
            tokio::spawn(self.clone().sweep());
        }
    }

    fn pop(&self, origin: &Origin) -> Option<Connection> {
        let mut idle = self.idle();
        let (since, connection) = idle.connections.get_mut(origin)?.pop()?;
        (since.elapsed() < IDLE_CONNECTION).then_some(connection)
    }

    /// Closes connections that nobody took, until there are none.
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
    /// Whether there are connections left.
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

    fn origin() -> Origin {
        Url::parse("https://git.example.org/token").unwrap().origin()
    }

    /// A connection, and its server's end.
    async fn connection() -> (Connection, DuplexStream) {
        let (ours, theirs) = duplex(1024);
        let (stream, allowance) = Budgeted::new(ours);
        (Connection::open(TokioIo::new(stream), allowance).await.unwrap(), theirs)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_waits_four_seconds_for_its_next_exchange() {
        let (pool, (connection, mut server)) = (Pool::default(), connection().await);
        pool.put(origin(), connection);
        sleep(IDLE_CONNECTION / 2).await;
        let connection = pool.take(&origin()).await.expect("it is still good");
        assert!(pool.take(&origin()).await.is_none(), "it was taken");
        pool.put(origin(), connection);
        let put = Instant::now();
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0, "it is closed though nobody asks for it");
        assert!(put.elapsed() >= IDLE_CONNECTION && put.elapsed() <= 2 * IDLE_CONNECTION);
        assert!(pool.take(&origin()).await.is_none());
        assert!(pool.idle().connections.is_empty() && !pool.idle().swept);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_the_server_has_closed_is_not_used_again() {
        let (pool, (connection, server)) = (Pool::default(), connection().await);
        pool.put(origin(), connection);
        drop(server);
        assert!(pool.take(&origin()).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_a_few_connections_wait() {
        let pool = Pool::default();
        let mut servers = Vec::new();
        for _ in 0..=IDLE_FOR_EACH {
            let (connection, server) = connection().await;
            pool.put(origin(), connection);
            servers.push(server);
        }
        assert_eq!(pool.idle().connections[&origin()].len(), IDLE_FOR_EACH);
    }
}
