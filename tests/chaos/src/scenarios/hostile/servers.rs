//! Token endpoints that no HTTP library would let anybody write.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::sleep,
};

/// How many bytes of 1xx answers one request gets. It is endless for all that a client can bear, and yet ends, so
/// that this side does not use up the machine.
const ENDLESS_BYTES: usize = 64 << 20;

const HINT: &str = "HTTP/1.1 103 Early Hints\r\n\r\n";

/// The beginning of an answer whose body will never be whole.
const DRIPPING: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4000\r\n\r\n{";

/// How a server answers, whatever it was asked.
#[derive(Clone, Copy)]
pub(super) enum Speech {
    /// Early hints (RFC 8297), and nothing after them.
    EndlessEarlyHints,
    /// A body of which a byte comes each second.
    Drip,
}

/// A server that ends, with its connections, when it is dropped.
pub(super) struct RawServer {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl RawServer {
    pub(super) async fn start(speech: Speech) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(answer(stream, speech));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, accepting })
    }

    /// What the workers are told to be its token endpoint.
    pub(super) fn url(&self) -> String {
        format!("http://{}/token", self.address)
    }
}

impl Drop for RawServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Answers one request. An error means that the client has had enough.
async fn answer(mut stream: TcpStream, speech: Speech) {
    let mut request = [0; 4096];
    if !matches!(stream.read(&mut request).await, Ok(1..)) {
        return;
    }
    match speech {
        Speech::EndlessEarlyHints => {
            let hints = HINT.repeat(2048);
            let mut left = ENDLESS_BYTES;
            while left > 0 && stream.write_all(hints.as_bytes()).await.is_ok() {
                left = left.saturating_sub(hints.len());
            }
            // It says no more, and stays.
            let _ = stream.read(&mut request).await;
        }
        Speech::Drip => {
            let mut next = DRIPPING;
            while stream.write_all(next.as_bytes()).await.is_ok() {
                next = " ";
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}
