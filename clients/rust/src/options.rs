//! Where the broker is, and how to talk to it.

use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use lapin::uri::{AMQPScheme, AMQPUri, SASLMechanism};
use rustls::ClientConfig;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Semaphore;
use url::Url;

use crate::error::Error;

/// A connection that a connector makes.
pub type ConnectFuture =
    Pin<Box<dyn Future<Output = Result<lapin::Connection, Box<dyn StdError + Send + Sync>>> + Send>>;

type Connector = Arc<dyn Fn() -> ConnectFuture + Send + Sync>;

/// The heartbeat in seconds, unless the URL says another (`?heartbeat=`): how soon a dead connection is noticed.
const HEARTBEAT_SECS: u16 = 10;

/// Options of a [`Client`](crate::Client).
#[derive(Clone)]
pub struct Options {
    pub(crate) url: SecretString,
    pub(crate) prefix: String,
    pub(crate) partitioned: bool,
    pub(crate) name: String,
    pub(crate) timeout: Duration,
    pub(crate) retries: u32,
    pub(crate) sealed: bool,
    pub(crate) in_flight: usize,
    pub(crate) connect_timeout: Duration,
    pub(crate) operation_timeout: Duration,
    pub(crate) tls: Option<Arc<ClientConfig>>,
    pub(crate) connector: Option<Connector>,
    plain_text: bool,
}

impl Options {
    /// Of the broker at this URL: `amqps://USER:PASSWORD@HOST/VHOST`. Several hosts with commas between are the nodes of a cluster:
    /// `amqps://USER:PASSWORD@HOST,HOST:PORT/VHOST`. `amqp://` only within this machine, unless
    /// [`plain_text`](Self::plain_text) says otherwise.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: SecretString::from(url.into()),
            prefix: "tokenkeeper".to_owned(),
            partitioned: false,
            name: "tokenkeeper-client".to_owned(),
            timeout: Duration::from_secs(30),
            retries: u32::MAX,
            sealed: true,
            in_flight: 4_096,
            connect_timeout: Duration::from_secs(10),
            operation_timeout: Duration::from_secs(10),
            tls: None,
            connector: None,
            plain_text: false,
        }
    }

    /// First part of the name of every exchange and queue. Default: `tokenkeeper`.
    #[must_use]
    pub fn prefix(self, prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), ..self }
    }

    /// Whether requests go to their user's partition: where the workers have `broker.partitions`. Default: no.
    #[must_use]
    pub fn partitioned(self, partitioned: bool) -> Self {
        Self { partitioned, ..self }
    }

    /// How the broker's operators see the connection. Default: `tokenkeeper-client`.
    #[must_use]
    pub fn name(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// How long a request may take, unless it says itself. Default: 30 s.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// How often a request is asked again within its time after an error that is retryable. Default: as often as its time allows.
    #[must_use]
    pub fn retries(self, retries: u32) -> Self {
        Self { retries, ..self }
    }

    /// Whether every token is asked for sealed, so that the broker cannot read it; one in clear is then an error. Default: yes.
    #[must_use]
    pub fn sealed(self, sealed: bool) -> Self {
        Self { sealed, ..self }
    }

    /// How many requests may be in flight at once; more wait for their turn within their time. At least 1.
    /// Default: 4096.
    #[must_use]
    pub fn in_flight(self, in_flight: usize) -> Self {
        Self { in_flight, ..self }
    }

    /// Limit for connecting, the handshakes of TLS and AMQP included; each of several nodes has its share of it. Default: 10 s.
    #[must_use]
    pub fn connect_timeout(self, connect_timeout: Duration) -> Self {
        Self { connect_timeout, ..self }
    }

    /// Limit for each operation that prepares a connection for requests. Default: 10 s.
    #[must_use]
    pub fn operation_timeout(self, operation_timeout: Duration) -> Self {
        Self { operation_timeout, ..self }
    }

    /// Whom an `amqps://` connection trusts, and who it says it is. Default: the authorities that this machine trusts.
    #[must_use]
    pub fn tls(self, config: Arc<ClientConfig>) -> Self {
        Self { tls: Some(config), ..self }
    }

    /// Takes `amqp://` to another machine: passwords and tokens cross the network in plain text.
    #[must_use]
    pub fn plain_text(self, allowed: bool) -> Self {
        Self { plain_text: allowed, ..self }
    }

    /// Connects by this function instead. The URL then says only as whom to publish.
    #[must_use]
    pub fn connector(self, connect: impl Fn() -> ConnectFuture + Send + Sync + 'static) -> Self {
        Self { connector: Some(Arc::new(connect)), ..self }
    }

    /// Where the nodes of the broker are, at least one. An error: some of the options cannot work.
    pub(crate) fn uris(&self) -> Result<Vec<AMQPUri>, Error> {
        const MOST: usize = Semaphore::MAX_PERMITS;
        let refused = |text: &str| Err(Error::Options(text.to_owned()));
        let mut uris = Vec::new();
        for url in urls(self.url.expose_secret()) {
            let url = SecretString::from(url);
            let url = url.expose_secret();
            // The library takes this machine for a host that is missing.
            let has_host = !url.contains("@,") && !url.contains("://,");
            let Some(mut uri) = url.parse::<AMQPUri>().ok().filter(|_| has_host) else {
                return refused("the URL is not one of a broker: amqps://USER:PASSWORD@HOST/VHOST");
            };
            if self.connector.is_none()
                && uri.scheme == AMQPScheme::AMQP
                && !self.plain_text
                && !is_local(url)
            {
                return refused(
                    "the URL would send passwords and tokens over the network in plain text: write amqps://, or allow it \
                     with Options::plain_text",
                );
            }
            uri.query.heartbeat.get_or_insert(HEARTBEAT_SECS);
            uris.push(uri);
        }
        if self.prefix.is_empty() || self.prefix.len() > 100 {
            return refused("the prefix must be 1 to 100 bytes");
        }
        if !(1..=MOST).contains(&self.in_flight) {
            return refused(&format!("the number of requests in flight must be from 1 to {MOST}"));
        }
        Ok(uris)
    }

    /// The publisher for the worker's access rules, or `None` if the broker does not authenticate us by the URL's user.
    pub(crate) fn publisher(uri: &AMQPUri) -> Option<String> {
        match uri.query.auth_mechanism {
            Some(SASLMechanism::External | SASLMechanism::Anonymous) => None,
            _ => Some(uri.authority.userinfo.username.clone()),
        }
    }
}

/// A URL for each of the hosts in `url`.
fn urls(url: &str) -> Vec<String> {
    let begin = url.find("://").map_or(0, |at| at + "://".len());
    let end = url[begin..].find(['/', '?', '#']).map_or(url.len(), |at| begin + at);
    let begin = url[begin..end].rfind('@').map_or(begin, |at| begin + at + 1);
    let (before, hosts, behind) = (&url[..begin], &url[begin..end], &url[end..]);
    hosts.split(',').map(|host| format!("{before}{host}{behind}")).collect()
}

/// Whether a URL stays within this machine.
fn is_local(url: &str) -> bool {
    match Url::parse(url).as_ref().map(Url::host) {
        // Of a scheme that is not special, every host is a "domain".
        Ok(Some(host)) => {
            let host = host.to_string();
            let host = host.trim_start_matches('[').trim_end_matches(']');
            host.eq_ignore_ascii_case("localhost")
                || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
        // Without a host it is the library's own default.
        Ok(None) => true,
        Err(_) => false,
    }
}

/// Without the URL, which has a password.
impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("prefix", &self.prefix)
            .field("partitioned", &self.partitioned)
            .field("name", &self.name)
            .field("timeout", &self.timeout)
            .field("retries", &self.retries)
            .field("sealed", &self.sealed)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_over_the_network_must_be_allowed() {
        for url in
            ["amqp://mq.example.org/%2f", "amqp://u:s3cret@192.0.2.1:5672/%2f", "amqp://[2001:db8::1]/"]
        {
            let refused = Options::new(url).uris().unwrap_err();
            assert!(matches!(&refused, Error::Options(text) if text.contains("plain text")), "{refused}");
            assert!(!refused.to_string().contains("s3cret"));
            assert!(Options::new(url).plain_text(true).uris().is_ok(), "{url}");
        }
        for url in [
            "amqps://mq.example.org/%2f",
            "amqp://localhost/%2f",
            "amqp://LocalHost/%2f",
            "amqp://u:p@127.0.0.1:5672/x",
            "amqp://[::1]/",
        ] {
            assert!(Options::new(url).uris().is_ok(), "{url}");
        }
    }

    #[test]
    fn every_host_of_the_url_is_a_node_with_all_of_the_rest() {
        let options = Options::new("amqps://u:p%2Cw@a.example.org,b:5673/v?heartbeat=3");
        let uris = options.uris().unwrap();
        let nodes: Vec<_> =
            uris.iter().map(|uri| (uri.authority.host.as_str(), uri.authority.port)).collect();
        assert_eq!(nodes, [("a.example.org", 5671), ("b", 5673)]);
        for uri in &uris {
            let password = uri.authority.userinfo.password.as_str();
            assert_eq!((password, uri.vhost.as_str(), uri.query.heartbeat), ("p,w", "v", Some(3)));
        }
        let one_is_elsewhere = Options::new("amqp://u:s3cret@127.0.0.1,192.0.2.1/v").uris().unwrap_err();
        assert!(one_is_elsewhere.to_string().contains("plain text"), "{one_is_elsewhere}");
    }

    #[test]
    fn options_that_cannot_work_are_told_without_the_password() {
        for options in [
            Options::new("s3cret"),
            Options::new("http://u:s3cret@127.0.0.1/"),
            Options::new("amqp://u:s3cret@127.0.0.1/").prefix(""),
            Options::new("amqp://u:s3cret@127.0.0.1/").in_flight(0),
        ] {
            let refused = options.uris().unwrap_err();
            assert!(!format!("{refused} {options:?}").contains("s3cret"), "{refused}");
        }
    }

    #[test]
    fn the_number_of_requests_in_flight_has_a_lowest_and_a_highest_value() {
        let with = |in_flight| Options::new("amqp://127.0.0.1/").in_flight(in_flight).uris();
        assert!(with(1).is_ok() && with(Semaphore::MAX_PERMITS).is_ok());
        for in_flight in [0, Semaphore::MAX_PERMITS + 1] {
            let refused = with(in_flight).unwrap_err().to_string();
            assert!(refused.ends_with(&format!("from 1 to {}", Semaphore::MAX_PERMITS)), "{refused}");
        }
    }

    #[test]
    fn tokens_are_asked_for_sealed_and_again_unless_somebody_says_otherwise() {
        let options = Options::new("amqp://127.0.0.1/");
        assert!(options.sealed && options.retries > 1_000);
    }
}
