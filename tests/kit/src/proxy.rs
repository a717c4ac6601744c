//! The network between one worker and a server, when it fails.
//!
//! Faults are those of the whole network, or of one connection, which is told from others by what its client said first.

mod marker;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use url::Url;

use self::marker::Finder;
pub use self::marker::{Marker, Then};
use crate::wait::{PATIENCE, eventually, within};

/// So many of the first bytes of a client are kept. An AMQP client names its connection among them.
const GREETING: usize = 2048;

/// A TCP proxy that can cut, refuse and freeze the connections that go through it. Give its address to the one
/// worker whose network shall fail. It ends, with its connections, when it is dropped.
pub struct FaultProxy {
    address: SocketAddr,
    network: Arc<Network>,
    accepting: JoinHandle<()>,
}

impl FaultProxy {
    /// Starts one in front of `upstream` (`host:port`).
    pub async fn start(upstream: &str) -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), upstream).await
    }

    /// The same, at this address.
    pub async fn start_at(address: SocketAddr, upstream: &str) -> Self {
        let listener = TcpListener::bind(address).await.expect("a free port for the fault proxy");
        let address = listener.local_addr().expect("the address of a listener");
        let network = Arc::new(Network::new(upstream));
        let accepting = tokio::spawn(accept(listener, network.clone()));
        Self { address, network, accepting }
    }

    /// Starts one in front of the server that `url` names; `default_port` is used where the URL has none.
    pub async fn start_for_url(url: &str, default_port: u16) -> Self {
        let url = Url::parse(url).expect("the URL of a server");
        let host = url.host_str().expect("a URL with a host");
        Self::start(&format!("{host}:{}", url.port().unwrap_or(default_port))).await
    }

    /// Where the proxy listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `url` with this proxy in the place of its server.
    pub fn url(&self, url: &str) -> String {
        let mut url = Url::parse(url).expect("the URL of a server");
        let host_set = url.set_host(Some(&self.address.ip().to_string()));
        host_set.expect("a URL that can have a host");
        url.set_port(Some(self.address.port())).expect("a URL that can have a port");
        url.into()
    }

    /// From now on new connections lead there (`host:port`). Those of now are kept.
    pub fn lead_to(&self, upstream: &str) {
        upstream.clone_into(&mut self.network.upstream());
    }

    /// Ends all connections of now. New ones work.
    pub fn cut_all(&self) {
        self.network.wires().iter().for_each(|wire| wire.cut.cancel());
    }

    /// Ends the connection whose client said this when it began.
    pub async fn cut(&self, said: &str) {
        self.only(said).await.cut.cancel();
    }

    /// Leaves the connection open whose client said this, but nothing arrives over it any more, either way. New ones work.
    pub async fn silence(&self, said: &str) {
        let wire = self.only(said).await;
        wire.client_muted.cancel();
        wire.server_muted.cancel();
    }

    /// Ends those that were silenced.
    pub fn cut_silent(&self) {
        let wires = self.network.wires();
        wires.iter().filter(|wire| wire.server_muted.is_cancelled()).for_each(|wire| wire.cut.cancel());
    }

    async fn only(&self, said: &str) -> Arc<Wire> {
        eventually(&format!("one connection whose client said {said:?}"), PATIENCE, async || {
            let wires = self.network.wires();
            let mut said_so = wires.iter().filter(|wire| wire.client_said(said));
            said_so.next().filter(|_| said_so.next().is_none()).cloned()
        })
        .await
    }

    /// Closes every new connection at once. Those of now live on.
    pub fn refuse(&self) {
        self.network.mode.send_modify(|mode| mode.refusing = true);
    }

    /// Takes new connections again.
    pub fn accept(&self) {
        self.network.mode.send_modify(|mode| mode.refusing = false);
    }

    /// Holds every byte in both directions: connections stay open and nothing arrives, as with a lost route.
    pub fn freeze(&self) {
        self.network.mode.send_modify(|mode| mode.frozen = true);
    }

    /// Lets the bytes go on, those that were held first.
    pub fn thaw(&self) {
        self.network.mode.send_modify(|mode| mode.frozen = false);
    }

    /// Looks for this marker in what the server sends from now on, over connections of now and later ones.
    pub fn watch_for(&self, marker: Marker) {
        self.network.marker.send_replace(Some(Arc::new(marker)));
    }

    /// How often the marker has gone to a client so far.
    pub fn marked(&self) -> watch::Receiver<usize> {
        self.network.marked.subscribe()
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        *self.network.open.borrow()
    }

    /// Waits until `count` connections are open, or more.
    pub async fn wait_for_connections(&self, count: usize) {
        let what = format!("{count} connections through the proxy");
        let mut open = self.network.open.subscribe();
        within(&what, PATIENCE, open.wait_for(|open| *open >= count)).await.expect("the proxy is alive");
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut_all();
    }
}

/// What the connections share.
struct Network {
    /// Where new connections lead (`host:port`).
    upstream: Mutex<String>,
    mode: watch::Sender<Mode>,
    marker: watch::Sender<Option<Arc<Marker>>>,
    marked: watch::Sender<usize>,
    open: watch::Sender<usize>,
    wires: Mutex<Vec<Arc<Wire>>>,
}

/// One connection through the proxy.
#[derive(Default)]
struct Wire {
    greeting: Mutex<Vec<u8>>,
    cut: CancellationToken,
    /// What the client sends does not arrive any more.
    client_muted: CancellationToken,
    /// What the server sends does not.
    server_muted: CancellationToken,
}

impl Wire {
    fn hear_client(&self, bytes: &[u8]) {
        let mut greeting = self.greeting.lock().expect("what the client said");
        let room = GREETING - greeting.len();
        greeting.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn client_said(&self, text: &str) -> bool {
        let greeting = self.greeting.lock().expect("what the client said");
        greeting.windows(text.len()).any(|window| window == text.as_bytes())
    }
}

#[derive(Clone, Copy, Default)]
struct Mode {
    refusing: bool,
    frozen: bool,
}

impl Network {
    fn new(upstream: &str) -> Self {
        Self {
            upstream: Mutex::new(upstream.to_owned()),
            mode: watch::Sender::default(),
            marker: watch::Sender::default(),
            marked: watch::Sender::default(),
            open: watch::Sender::default(),
            wires: Mutex::default(),
        }
    }

    fn upstream(&self) -> MutexGuard<'_, String> {
        self.upstream.lock().expect("where the proxy leads")
    }

    fn wires(&self) -> MutexGuard<'_, Vec<Arc<Wire>>> {
        self.wires.lock().expect("the proxy's connections")
    }
}

async fn accept(listener: TcpListener, network: Arc<Network>) {
    loop {
        let (client, _) = listener.accept().await.expect("accept a connection");
        if network.mode.borrow().refusing {
            close_hard(&client);
            continue;
        }
        let wire = Arc::<Wire>::default();
        network.wires().push(Arc::clone(&wire));
        let (network, upstream) = (network.clone(), network.upstream().clone());
        tokio::spawn(async move {
            connect(client, &upstream, &network, &wire).await;
            network.wires().retain(|other| !Arc::ptr_eq(other, &wire));
        });
    }
}

async fn connect(client: TcpStream, upstream: &str, network: &Network, wire: &Wire) {
    let Ok(server) = TcpStream::connect(upstream).await else {
        close_hard(&client);
        return;
    };
    let _open = Open::count(&network.open);
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    let watching = Watching { network, finder: None, wire };
    let both_ways = async {
        tokio::join!(
            pump(client_reads, server_writes, network.mode.subscribe(), Side::Client(wire)),
            pump(server_reads, client_writes, network.mode.subscribe(), Side::Server(watching)),
        )
    };
    tokio::select! {
        () = wire.cut.cancelled() => {}
        _ = both_ways => {}
    }
}

/// Carries bytes one way until the sender ends or the network fails.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
    mut side: Side<'_>,
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if mode.wait_for(|mode| !mode.frozen).await.is_err() {
            break;
        }
        let bytes = &buffer[..count];
        let (muted, found) = match &mut side {
            Side::Client(wire) => {
                wire.hear_client(bytes);
                (&wire.client_muted, None)
            }
            Side::Server(watching) => (&watching.wire.server_muted, watching.look(bytes)),
        };
        if muted.is_cancelled() {
            continue;
        }
        if to.write_all(bytes).await.is_err() {
            break;
        }
        if let (Some(found), Side::Server(watching)) = (found, &side) {
            watching.passed_on(found);
        }
    }
    // The other way may still have bytes to carry; an error here means that it has not.
    let _ = to.shutdown().await;
}

/// Who sends what is carried one way.
enum Side<'a> {
    Client(&'a Wire),
    Server(Watching<'a>),
}

/// Looks for the marker in what goes to one client.
struct Watching<'a> {
    network: &'a Network,
    /// Of the marker that is looked for now.
    finder: Option<(Arc<Marker>, Finder)>,
    wire: &'a Wire,
}

/// Markers in bytes that are on their way to the client.
#[derive(Clone, Copy)]
struct Found {
    times: usize,
    then: Then,
}

impl Watching<'_> {
    /// Looks at bytes that the client has not been sent yet.
    fn look(&mut self, bytes: &[u8]) -> Option<Found> {
        {
            let marker = self.network.marker.borrow();
            let marker = marker.as_ref()?;
            if self.finder.as_ref().is_none_or(|(of, _)| !Arc::ptr_eq(of, marker)) {
                self.finder = Some((Arc::clone(marker), Finder::of(marker)));
            }
        }
        let (marker, finder) = self.finder.as_mut()?;
        let found = Found { times: finder.count_in(bytes), then: marker.then };
        if found.times == 0 {
            return None;
        }
        match found.then {
            Then::Mute => self.wire.client_muted.cancel(),
            Then::Freeze => self.network.mode.send_modify(|mode| mode.frozen = true),
            Then::Cut => {}
        }
        Some(found)
    }

    /// The client has the marker before its connection ends for it, and before anybody hears of it.
    fn passed_on(&self, found: Found) {
        self.network.marked.send_modify(|marked| *marked += found.times);
        match found.then {
            Then::Mute | Then::Freeze => {}
            Then::Cut => self.wire.cut.cancel(),
        }
    }
}

/// Ends a connection with a reset, which no client takes for a regular end.
fn close_hard(stream: &TcpStream) {
    // Where the option is not taken the stream is dropped all the same.
    let _ = stream.set_zero_linger();
}

/// Counts a connection as open until it is dropped.
struct Open<'a>(&'a watch::Sender<usize>);

impl<'a> Open<'a> {
    fn count(open: &'a watch::Sender<usize>) -> Self {
        open.send_modify(|open| *open += 1);
        Self(open)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

#[cfg(test)]
mod tests;
