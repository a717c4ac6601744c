//! One connection to the broker, by the first of its nodes that takes it.
//!
//! Each node, and each address of its name, has its share of the time: a frozen one keeps nobody from the others.

use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use lapin::runtime::default_runtime;
use lapin::tcp::RustlsConnector;
use lapin::uri::AMQPUri;
use lapin::{AsyncTcpStream, Connection, ConnectionProperties};
use parking_lot::Mutex;
use secrecy::ExposeSecret;
use tokio::net::lookup_host;
use tokio::time::{Instant, timeout};

use super::nodes::{MEMORY, Place};
use super::{BrokerError, Diagnosis, Login, within};
use crate::settings::{Broker, ConnectionUrl};
use crate::telemetry;
use crate::tls::{CaFile, LinkTls};

/// How long a stopping worker waits until a connection is closed. After that the other end is gone, and a broken connection
/// gives everything back as well.
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);

/// Connects under a name that the operator sees in the broker's list of connections. Whoever connects again under the same name
/// has lost the connection before, and is led to another node first.
///
/// # Errors
/// [`BrokerError::Connect`] with the cause in plain words, and without the URL's password.
pub async fn connect(settings: &Broker, name: &str) -> Result<Connection, BrokerError> {
    let mut nodes = Vec::new();
    for url in settings.nodes.urls() {
        nodes.push(Node::of(settings, url)?);
    }
    MEMORY.connects(name);
    nodes.sort_by_cached_key(|node| MEMORY.last_failure(&node.place));
    let (mut time, mut failures) = (Time::new(settings.connect_timeout), Vec::new());
    let count = nodes.len();
    for (tried, node) in nodes.into_iter().enumerate() {
        // Boxed: the handshakes are large, and every command that connects would carry their size.
        let connecting = Box::pin(node.connect(settings, name, time.share(count - tried)));
        match time.spend(connecting).await {
            Ok(connection) => return Ok(connection),
            Err(diagnosis) => {
                if count > 1 {
                    telemetry::broker_node_failed(&diagnosis.problem(&node.login));
                }
                MEMORY.failed(node.place);
                failures.push((diagnosis, node.login));
            }
        }
    }
    Err(all_failed(settings, failures))
}

/// Where one of several fails in a way that an operator must mend, that is told. Where all fail alike, all are named.
fn all_failed(settings: &Broker, mut failures: Vec<(Diagnosis, Login)>) -> BrokerError {
    let are_alike = failures.len() > 1 && failures.windows(2).all(|pair| pair[0].0 == pair[1].0);
    failures.sort_by_key(|(diagnosis, _)| !diagnosis.is_refusal());
    let (diagnosis, login) =
        failures.into_iter().next().unwrap_or_else(|| (Diagnosis::NotRunning, Login::of(settings)));
    let login = if are_alike { Login::of(settings) } else { login };
    BrokerError::Connect { diagnosis: diagnosis.into(), login: login.into() }
}

/// What is left of the time for several tries.
struct Time(Duration);

impl Time {
    const fn new(limit: Duration) -> Self {
        Self(limit)
    }

    /// For one of so many tries that may still come.
    fn share(&self, tries: usize) -> Duration {
        self.0 / u32::try_from(tries).unwrap_or(u32::MAX).max(1)
    }

    async fn spend<T>(&mut self, work: impl Future<Output = T>) -> T {
        let begin = Instant::now();
        let done = work.await;
        self.0 = self.0.saturating_sub(begin.elapsed());
        done
    }
}

/// A node of the settings.
struct Node {
    uri: AMQPUri,
    login: Login,
    place: Place,
}

impl Node {
    fn of(settings: &Broker, url: &ConnectionUrl) -> Result<Self, BrokerError> {
        let mut uri: AMQPUri = url
            .expose_secret()
            .parse()
            .map_err(|reason| BrokerError::Url { url: url.redacted().to_owned(), reason })?;
        // With the minute that the broker proposes, a dead connection would look alive for that long.
        let heartbeat = u16::try_from(settings.heartbeat.as_secs()).unwrap_or(u16::MAX);
        uri.query.heartbeat.get_or_insert(heartbeat);
        let login = Login::at(settings, &uri);
        let place = Place::Node(login.address().to_owned());
        Ok(Self { uri, login, place })
    }

    /// Connects to the first of its addresses that takes it.
    async fn connect(&self, settings: &Broker, name: &str, limit: Duration) -> Result<Connection, Diagnosis> {
        let tls = match &settings.tls {
            LinkTls::Verified(tls) => {
                // The files are read each time: the next connection shows a renewed certificate.
                let config = tls.config(CaFile::Replaces).map_err(Diagnosis::of_tls)?;
                let name = tls.server_name.as_ref().unwrap_or(&self.login.host).clone();
                Some(Tls { connector: config.into(), name })
            }
            LinkTls::Off { .. } | LinkTls::AsOffered => None,
        };
        let mut time = Time::new(limit);
        let host = (self.login.host.as_str(), self.login.port);
        let found = time.spend(timeout(limit, lookup_host(host))).await.map_err(|_| silent(limit))?;
        let addresses = found.map(Iterator::collect).unwrap_or_default();
        let rank = |address: &SocketAddr| settings.nodes.rank(address);
        self.connect_to_one_of(addresses, rank, tls.as_ref(), name, time).await
    }

    async fn connect_to_one_of(
        &self,
        mut addresses: Vec<SocketAddr>,
        rank: impl Fn(&SocketAddr) -> u64,
        tls: Option<&Tls>,
        name: &str,
        mut time: Time,
    ) -> Result<Connection, Diagnosis> {
        addresses
            .sort_by_cached_key(|address| (MEMORY.last_failure(&Place::Address(*address)), rank(address)));
        addresses.dedup();
        // The library's error does not say that it was the name.
        let mut failure = Diagnosis::UnknownHost;
        let count = addresses.len();
        for (tried, address) in addresses.into_iter().enumerate() {
            let attempt = Attempt { uri: &self.uri, tls, name, address };
            let share = time.share(count - tried);
            match time.spend(attempt.connect(share)).await {
                Ok(connection) => {
                    MEMORY.connected(name, self.place.clone(), address);
                    return Ok(connection);
                }
                Err(diagnosis) => {
                    MEMORY.failed(Place::Address(address));
                    if tried == 0 || diagnosis.is_refusal() && !failure.is_refusal() {
                        failure = diagnosis;
                    }
                }
            }
        }
        Err(failure)
    }
}

/// The name that the certificate must be for is that of the node, whatever the address.
#[derive(Clone)]
struct Tls {
    connector: RustlsConnector,
    name: String,
}

/// One try.
struct Attempt<'a> {
    uri: &'a AMQPUri,
    tls: Option<&'a Tls>,
    name: &'a str,
    address: SocketAddr,
}

impl Attempt<'_> {
    async fn connect(&self, limit: Duration) -> Result<Connection, Diagnosis> {
        let socket = Socket::default();
        let connected = timeout(limit, self.handshakes(&socket)).await;
        let connected = connected.map_err(|_| {
            socket.abandon();
            silent(limit)
        })?;
        // From here on the socket is the library's alone: it ends when the library closes it.
        socket.forget();
        connected.map_err(|error| Diagnosis::of_connect(&error))
    }

    async fn handshakes(&self, socket: &Socket) -> lapin::Result<Connection> {
        let (address, tls, socket) = (self.address, self.tls.cloned(), socket.clone());
        let properties = ConnectionProperties::default().with_connection_name(self.name.into());
        Connection::connector(
            self.uri.clone(),
            default_runtime()?,
            async move |_, runtime| {
                let stream = AsyncTcpStream::connect(&runtime, address).await?;
                if let AsyncTcpStream::Plain(stream) = &stream {
                    socket.keep(stream.get_ref());
                }
                match &tls {
                    None => Ok(stream),
                    Some(Tls { connector, name }) => Ok(stream.into_rustls(connector, name).await?),
                }
            },
            properties,
        )
        .await
    }
}

/// The socket of a try. The library's task holds it for as long as the other end is silent, whoever stopped waiting.
#[derive(Clone, Default)]
struct Socket(Arc<Mutex<Option<TcpStream>>>);

impl Socket {
    fn keep(&self, stream: &tokio::net::TcpStream) {
        // Without a second handle it is the kernel that ends it, later.
        *self.0.lock() = stream.as_fd().try_clone_to_owned().ok().map(TcpStream::from);
    }

    fn forget(&self) {
        self.0.lock().take();
    }

    fn abandon(&self) {
        if let Some(stream) = self.0.lock().take() {
            // One that is closed already is what is wanted.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Nothing came within this time, rounded to seconds.
fn silent(limit: Duration) -> Diagnosis {
    let secs = limit.as_secs() + u64::from(limit.subsec_millis() >= 500);
    Diagnosis::Silent { after: Duration::from_secs(secs.max(1)) }
}

/// Closes a connection before the worker ends.
pub async fn take_leave(connection: &Connection) {
    // Nothing can be written over a blocked connection. The broker notices that it is gone.
    if !connection.status().blocked() {
        let close = connection.close(200, "the worker stops".into());
        drop(within(LEAVE_PATIENCE, || "close a connection".to_owned(), close).await);
    }
}

#[cfg(test)]
mod tests_with_a_broker {
    use std::collections::HashMap;

    use tokenkeeper_testkit::queues::TestBroker;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::settings::Settings;

    async fn silent_listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    fn settings(url: &str) -> Broker {
        Settings::load_from(None, HashMap::from([("AMQP_URL".to_owned(), url.to_owned())])).unwrap().broker
    }

    fn node(settings: &Broker) -> Node {
        Node::of(settings, &settings.nodes.urls()[0]).unwrap()
    }

    #[tokio::test]
    async fn every_address_of_a_name_is_tried_and_a_silent_one_is_tried_last_from_then_on() {
        let broker = TestBroker::connect().await;
        let settings = settings(broker.url());
        let node = node(&settings);
        let host = (node.login.host.as_str(), node.login.port);
        let works = lookup_host(host).await.unwrap().find(SocketAddr::is_ipv4).unwrap();
        let (_listener, silent) = silent_listener().await;
        let silent_first = |address: &SocketAddr| u64::from(*address != silent);
        let mut took = Vec::new();
        for _ in 0..2 {
            let (begin, time) = (Instant::now(), Time::new(Duration::from_secs(3)));
            let addresses = vec![works, silent, works];
            let connected =
                node.connect_to_one_of(addresses, silent_first, None, "a test of addresses", time);
            connected.await.unwrap().close(200, "done".into()).await.unwrap();
            took.push(begin.elapsed());
        }
        let share = Duration::from_millis(1_500);
        assert!(took[0] >= share && took[1] < share, "{took:?}");
    }

    #[tokio::test]
    async fn a_try_that_is_given_up_leaves_no_socket_behind() {
        let (listener, silent) = silent_listener().await;
        let settings = settings(&format!("amqp://guest:guest@{silent}/%2f"));
        let time = Time::new(Duration::from_millis(200));
        let node = node(&settings);
        let connected = node.connect_to_one_of(vec![silent], |_| 0, None, "a test of a try", time);
        assert_eq!(connected.await.unwrap_err(), Diagnosis::Silent { after: Duration::from_secs(1) });
        let mut heard = Vec::new();
        let (mut accepted, _) = listener.accept().await.unwrap();
        let ended = timeout(Duration::from_secs(20), accepted.read_to_end(&mut heard)).await;
        ended.expect("the end of the connection").unwrap();
        assert!(heard.starts_with(b"AMQP"), "{heard:?}");
    }

    #[tokio::test]
    async fn where_all_nodes_fail_the_one_is_told_that_somebody_must_mend_and_all_where_they_fail_alike() {
        let settings = settings("amqp://guest:guest@127.0.0.1:1,127.0.0.1:2/%2f");
        let failed = |diagnoses: [Diagnosis; 2]| {
            let nodes = settings.nodes.urls().iter().map(|url| Node::of(&settings, url).unwrap().login);
            all_failed(&settings, diagnoses.into_iter().zip(nodes).collect()).to_string()
        };
        let refused = failed([Diagnosis::NotRunning, Diagnosis::LoginRefused]);
        assert!(refused.contains("refuses the login"), "{refused}");
        let alike = failed([Diagnosis::NotRunning, Diagnosis::NotRunning]);
        assert!(alike.contains("127.0.0.1:1") && alike.contains("127.0.0.1:2"), "{alike}");
    }
}
