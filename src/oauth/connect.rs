//! Opens connections to token endpoints: name lookup, TCP, the system's proxy, TLS, HTTP.
//!
//! A connection goes to an address that was checked, and not to a name that is looked up once more: who runs a name server
//! may answer differently the second time. A proxy looks names up by itself, so behind one only addresses that stand in the
//! URL are checked.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::header::{HOST, PROXY_AUTHORIZATION};
use hyper::{Request, StatusCode, Uri};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use super::address::{Lookup, literal, permitted, system_lookup};
use super::budget::{Allowance, Budgeted};
use super::connection::Connection;
use super::detail::root_cause;
use super::local::LocalCause;
use crate::domain::network::Reach;
use crate::tls::{CaFile, ClientTls, TlsError, TlsFault};

/// How long one address family is tried before the other is tried too (RFC 8305, section 8).
const HEAD_START: Duration = Duration::from_millis(250);

/// The most name lookups at once. Each occupies a thread until the system's resolver returns, even if nobody waits any
/// more. The runtime has 512 such threads, for files as well.
const MAX_LOOKUPS: usize = 64;

pub(super) struct Connector {
    tls: TlsConnector,
    proxies: Matcher,
    lookup: Lookup,
    lookups: Arc<Semaphore>,
    patience: Duration,
}

/// Nothing was sent.
#[derive(Debug)]
pub(super) enum ConnectError {
    /// This machine or its proxy failed.
    Local { cause: LocalCause, detail: String },
    /// The host failed, or did not answer in time.
    Host { detail: String },
    /// The URL is not one to connect to.
    Url { detail: String },
    /// All addresses of the host lead where the provider may not be.
    NotPermitted { detail: String },
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

type BoxedStream = Box<dyn Stream>;

impl Connector {
    /// `patience` includes name lookup and TLS.
    pub(super) fn new(patience: Duration, tls: &ClientTls) -> Result<Self, TlsError> {
        let mut config = tls.config(CaFile::Adds)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            tls: TlsConnector::from(Arc::new(config)),
            proxies: Matcher::from_system(),
            lookup: system_lookup,
            lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)),
            patience,
        })
    }

    /// Connects to one of the host's addresses that `reach` permits.
    pub(super) async fn connect(&self, url: &Url, reach: Reach) -> Result<Connection, ConnectError> {
        let deadline = Instant::now() + self.patience;
        let (tcp, allowance) = match self.proxy(url, reach)? {
            None => self.dial(host_of(url), port_of(url), reach, deadline).await?,
            Some(proxy) => {
                if let Some(address) = literal(url) {
                    permitted(vec![address], host_of(url), reach).map_err(ConnectError::not_permitted)?;
                }
                self.tunnel(&proxy, url, deadline).await?
            }
        };
        let stream = match url.scheme() {
            "http" => tcp,
            _ => self.encrypt(tcp, host_of(url), deadline).await?,
        };
        let opened = Connection::open(TokioIo::new(stream), allowance).await;
        opened.map_err(|error| ConnectError::Host { detail: root_cause(&error) })
    }

    /// What is for this machine, as all traffic without TLS is, must not leave it for a proxy.
    fn proxy(&self, url: &Url, reach: Reach) -> Result<Option<Intercept>, ConnectError> {
        if reach == Reach::Loopback || url.scheme() == "http" {
            return Ok(None);
        }
        let uri = Uri::try_from(url.as_str());
        let uri = uri.map_err(|error| ConnectError::Url { detail: root_cause(&error) })?;
        Ok(self.proxies.intercept(&uri))
    }

    async fn dial(
        &self,
        host: &str,
        port: u16,
        reach: Reach,
        deadline: Instant,
    ) -> Result<(BoxedStream, Allowance), ConnectError> {
        let found = self.look_up(host, port, deadline).await?;
        let addresses = permitted(found, host, reach).map_err(ConnectError::not_permitted)?;
        let tcp = within(deadline, dial(&addresses, deadline)).await?;
        // Fails only if the connection is closed already, which shows soon enough.
        let _ = tcp.set_nodelay(true);
        let (stream, allowance) = Budgeted::new(tcp);
        Ok((Box::new(stream), allowance))
    }

    async fn look_up(
        &self,
        host: &str,
        port: u16,
        deadline: Instant,
    ) -> Result<Vec<SocketAddr>, ConnectError> {
        let (lookups, lookup) = (Arc::clone(&self.lookups), (self.lookup)(host.to_owned(), port));
        // A task of its own holds the permit until the resolver's thread is done.
        let lookup = tokio::spawn(async move {
            let _permit = lookups.acquire().await;
            lookup.await
        });
        let outcome = match timeout_at(deadline, lookup).await {
            Ok(Ok(Ok(addresses))) if !addresses.is_empty() => return Ok(addresses),
            Ok(Ok(Ok(_))) => "no addresses".to_owned(),
            Ok(Ok(Err(error))) => without_prefix(&root_cause(&error)).to_owned(),
            Ok(Err(_)) => "the lookup task ended".to_owned(),
            Err(_) => "the resolver did not answer in time".to_owned(),
        };
        let detail = format!("name lookup failed: {outcome}");
        Err(ConnectError::Local { cause: LocalCause::NameLookup, detail })
    }

    /// Connects through a proxy (CONNECT: RFC 9110, section 9.3.6).
    async fn tunnel(
        &self,
        proxy: &Intercept,
        url: &Url,
        deadline: Instant,
    ) -> Result<(BoxedStream, Allowance), ConnectError> {
        let encrypted = match proxy.uri().scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(at_proxy("only http:// and https:// proxies are supported")),
        };
        let host = bare(proxy.uri().host().unwrap_or_default());
        let port = proxy.uri().port_u16().unwrap_or(if encrypted { 443 } else { 80 });
        let dialled = self.dial(host, port, Reach::Any, deadline).await;
        let (tcp, allowance) = dialled.map_err(ConnectError::of_proxy)?;
        let stream = if encrypted {
            self.encrypt(tcp, host, deadline).await.map_err(ConnectError::of_proxy)?
        } else {
            tcp
        };
        let authority = format!("{}:{}", url.host_str().unwrap_or_default(), port_of(url));
        let mut request = Request::connect(&authority).header(HOST, &authority);
        if let Some(credentials) = proxy.basic_auth() {
            request = request.header(PROXY_AUTHORIZATION, credentials);
        }
        let request = request.body(Empty::new());
        let request = request.map_err(|error| ConnectError::Url { detail: root_cause(&error) })?;
        match timeout_at(deadline, ask_for_tunnel(stream, request)).await {
            Ok(Ok(Ok(stream))) => Ok((stream, allowance)),
            // The proxy reports that it cannot reach the host.
            Ok(Ok(Err(status))) if status.is_server_error() => {
                Err(ConnectError::Host { detail: format!("the proxy answered {status}") })
            }
            Ok(Ok(Err(status))) => Err(at_proxy(&format!("it answered {status}"))),
            Ok(Err(error)) => Err(at_proxy(&root_cause(&error))),
            Err(_) => Err(at_proxy("it did not answer in time")),
        }
    }

    async fn encrypt(
        &self,
        stream: BoxedStream,
        host: &str,
        deadline: Instant,
    ) -> Result<BoxedStream, ConnectError> {
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|error| ConnectError::Url { detail: root_cause(&error) })?;
        Ok(Box::new(within(deadline, self.tls.connect(name, stream)).await?))
    }
}

impl ConnectError {
    /// A failure of our own proxy says nothing about the host behind it.
    fn of_proxy(self) -> Self {
        match self {
            Self::Local { .. } => self,
            Self::Host { detail } | Self::Url { detail } | Self::NotPermitted { detail } => at_proxy(&detail),
        }
    }

    fn not_permitted(detail: String) -> Self {
        Self::NotPermitted { detail }
    }

    fn of_io(error: &io::Error) -> Self {
        let detail = TlsFault::of_io(error).map_or_else(|| root_cause(error), tls_detail);
        match LocalCause::of(error) {
            Some(cause) => Self::Local { cause, detail },
            None => Self::Host { detail },
        }
    }
}

fn tls_detail(fault: TlsFault) -> String {
    let words = fault.words();
    match fault {
        TlsFault::UnknownAuthority => format!("{words}; name its authority in refresh.tls_ca_file"),
        TlsFault::WantsCertificate => format!("{words}; set refresh.tls_cert_file and refresh.tls_key_file"),
        TlsFault::RefusesCertificate => format!("{words} (refresh.tls_cert_file)"),
        _ => words.to_owned(),
    }
}

fn at_proxy(outcome: &str) -> ConnectError {
    let detail = format!("the proxy is not usable: {outcome}");
    ConnectError::Local { cause: LocalCause::Proxy, detail }
}

async fn within<T>(deadline: Instant, step: impl Future<Output = io::Result<T>>) -> Result<T, ConnectError> {
    match timeout_at(deadline, step).await {
        Ok(done) => done.map_err(|error| ConnectError::of_io(&error)),
        Err(_) => Err(ConnectError::Host { detail: "timed out".to_owned() }),
    }
}

/// Connects to the first address that answers. The family that the system prefers has a head start (RFC 8305).
async fn dial(addresses: &[SocketAddr], deadline: Instant) -> io::Result<TcpStream> {
    let is_preferred = |address: &&SocketAddr| address.is_ipv4() == addresses[0].is_ipv4();
    let (preferred, others): (Vec<_>, Vec<_>) = addresses.iter().partition(is_preferred);
    if others.is_empty() {
        return one_by_one(&preferred, deadline).await;
    }
    let first = Box::pin(one_by_one(&preferred, deadline));
    let second = Box::pin(async {
        sleep(HEAD_START).await;
        one_by_one(&others, deadline).await
    });
    match select(first, second).await {
        Either::Left((Ok(tcp), _)) | Either::Right((Ok(tcp), _)) => Ok(tcp),
        Either::Left((Err(error), second)) => second.await.map_err(|other| telling(error, other)),
        Either::Right((Err(error), first)) => first.await.map_err(|other| telling(error, other)),
    }
}

/// Divides the remaining time among the addresses.
async fn one_by_one(addresses: &[&SocketAddr], deadline: Instant) -> io::Result<TcpStream> {
    let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for (index, address) in addresses.iter().enumerate() {
        let left = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
        let now = Instant::now();
        let until = now + deadline.saturating_duration_since(now) / left;
        let tried = timeout_at(until, TcpStream::connect(address)).await;
        let error = match tried {
            Ok(Ok(tcp)) => return Ok(tcp),
            Ok(Err(error)) => error,
            Err(_) => io::ErrorKind::TimedOut.into(),
        };
        failed = if index == 0 { error } else { telling(failed, error) };
    }
    Err(failed)
}

/// What the resolver says, without what the standard library puts before it.
fn without_prefix(text: &str) -> &str {
    text.strip_prefix("failed to lookup address information: ").unwrap_or(text)
}

/// Prefers the error that is the host's. On a machine without IPv6, that address family always fails locally, even if the
/// host is down.
fn telling(one: io::Error, other: io::Error) -> io::Error {
    if LocalCause::of(&one).is_some() { other } else { one }
}

/// The tunnel, or the status with which the proxy refused it.
async fn ask_for_tunnel(
    stream: BoxedStream,
    request: Request<Empty<Bytes>>,
) -> hyper::Result<Result<BoxedStream, StatusCode>> {
    #[expect(clippy::disallowed_methods, reason = "the one home of HTTP clients")]
    let (mut requests, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let _task = AbortOnDropHandle::new(tokio::spawn(connection.with_upgrades()));
    let response = requests.send_request(request).await?;
    if !response.status().is_success() {
        return Ok(Err(response.status()));
    }
    Ok(Ok(Box::new(TokioIo::new(hyper::upgrade::on(response).await?))))
}

pub(super) fn host_of(url: &Url) -> &str {
    bare(url.host_str().unwrap_or_default())
}

pub(super) fn port_of(url: &Url) -> u16 {
    url.port_or_known_default().unwrap_or_default()
}

/// Strips the brackets of an IPv6 address.
fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

#[cfg(test)]
mod tests;
