//! The network between a worker and the broker, told apart by connection: a worker has two.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokenkeeper_testkit::wait::{PATIENCE, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use url::Url;

/// One of the two connections of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    /// Deliveries, replies and acks.
    Consume,
    /// Dead letters, parked pairs and events.
    Publish,
}

impl Link {
    /// The label in `/metrics`, and the last word of the connection's name at the broker.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Consume => "consume",
            Self::Publish => "publish",
        }
    }
}

/// A TCP proxy before the broker that knows which connection is which. It ends, with its connections, when it is
/// dropped.
pub(crate) struct BrokerLinks {
    address: SocketAddr,
    wires: Wires,
    accepting: JoinHandle<()>,
}

type Wires = Arc<Mutex<Vec<Arc<Wire>>>>;

/// One connection through the proxy.
#[derive(Default)]
struct Wire {
    /// Known as soon as the worker has said it.
    link: OnceLock<Link>,
    cut: CancellationToken,
    silent: CancellationToken,
}

impl BrokerLinks {
    /// Starts one before the broker at `url`.
    pub(crate) async fn start(url: &str) -> Self {
        let broker = Url::parse(url).expect("the broker's URL");
        let upstream =
            format!("{}:{}", broker.host_str().expect("it has a host"), broker.port().unwrap_or(5672));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("the address of a listener");
        let wires = Wires::default();
        let accepting = tokio::spawn(accept(listener, upstream, Arc::clone(&wires)));
        Self { address, wires, accepting }
    }

    /// `url` with this proxy in the place of its server.
    pub(crate) fn url(&self, url: &str) -> String {
        let mut url = Url::parse(url).expect("the broker's URL");
        url.set_host(Some(&self.address.ip().to_string())).expect("it can have a host");
        url.set_port(Some(self.address.port())).expect("it can have a port");
        url.into()
    }

    /// Ends this connection.
    pub(crate) async fn cut(&self, link: Link) {
        self.only(link).await.cut.cancel();
    }

    /// Leaves this connection open, but nothing arrives over it any more, either way. New ones work.
    pub(crate) async fn silence(&self, link: Link) {
        self.only(link).await.silent.cancel();
    }

    /// Ends those that were silenced.
    pub(crate) fn cut_silent(&self) {
        self.wires().iter().filter(|wire| wire.silent.is_cancelled()).for_each(|wire| wire.cut.cancel());
    }

    /// How many connections are open.
    pub(crate) fn open(&self) -> usize {
        self.wires().len()
    }

    async fn only(&self, link: Link) -> Arc<Wire> {
        eventually(&format!("one connection to {}", link.name()), PATIENCE, async || {
            let mut of_link: Vec<_> =
                self.wires().into_iter().filter(|wire| wire.link.get() == Some(&link)).collect();
            of_link.pop().filter(|_| of_link.is_empty())
        })
        .await
    }

    fn wires(&self) -> Vec<Arc<Wire>> {
        self.wires.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for BrokerLinks {
    fn drop(&mut self) {
        self.accepting.abort();
        for wire in self.wires() {
            wire.cut.cancel();
        }
    }
}

async fn accept(listener: TcpListener, upstream: String, wires: Wires) {
    loop {
        let (worker, _) = listener.accept().await.expect("accept a connection");
        let broker = TcpStream::connect(&upstream).await.expect("reach the broker");
        let wire = Arc::<Wire>::default();
        wires.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&wire));
        let wires = Arc::clone(&wires);
        tokio::spawn(async move {
            carry(worker, broker, &wire).await;
            wires.lock().unwrap_or_else(PoisonError::into_inner).retain(|other| !Arc::ptr_eq(other, &wire));
        });
    }
}

async fn carry(worker: TcpStream, broker: TcpStream, wire: &Wire) {
    let (worker_reads, worker_writes) = worker.into_split();
    let (broker_reads, broker_writes) = broker.into_split();
    let mut greeting = Vec::new();
    tokio::select! {
        () = wire.cut.cancelled() => {}
        () = pump(worker_reads, broker_writes, wire, |bytes| read_name(&mut greeting, bytes, &wire.link)) => {}
        () = pump(broker_reads, worker_writes, wire, |_| ()) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, wire: &Wire, mut look: impl FnMut(&[u8])) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        look(&buffer[..count]);
        if wire.silent.is_cancelled() {
            continue;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
}

/// The name that the operator sees in the broker's list of connections stands in the worker's first frame.
fn read_name(greeting: &mut Vec<u8>, bytes: &[u8], link: &OnceLock<Link>) {
    if link.get().is_some() {
        return;
    }
    greeting.extend_from_slice(bytes);
    let text = String::from_utf8_lossy(greeting);
    let named =
        [Link::Consume, Link::Publish].into_iter().find(|link| text.contains(&format!(" {}", link.name())));
    if let Some(named) = named {
        // Nobody else sets it.
        let _ = link.set(named);
    }
}
