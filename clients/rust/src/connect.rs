//! One connection, by the first of the broker's nodes that takes it.

use std::error::Error as StdError;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lapin::runtime::default_runtime;
use lapin::tcp::{AMQPUriTcpExt, RustlsConnector};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties};
use rustls::ClientConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::time::{Instant, timeout};

use crate::error::Error;
use crate::options::Options;

/// Where the broker is. There is at least one.
pub(crate) struct Nodes {
    uris: Vec<AMQPUri>,
    /// Where the next try begins. The first one is chance, so that clients spread over the nodes.
    next: AtomicUsize,
}

impl Nodes {
    pub(crate) fn new(uris: Vec<AMQPUri>) -> Self {
        let next = AtomicUsize::new(fastrand::usize(..uris.len().max(1)));
        Self { uris, next }
    }

    /// User, password and virtual host are the same everywhere.
    pub(crate) fn any(&self) -> AMQPUri {
        self.uris.first().cloned().unwrap_or_default()
    }

    /// Each node has its share of the time, and the one that was connected to before comes last.
    pub(crate) async fn connect(&self, options: &Options) -> Result<Connection, Error> {
        let limit = options.connect_timeout;
        let silent = || Error::Silent { action: "connect", after: limit };
        if let Some(connect) = &options.connector {
            let connected = timeout(limit, connect()).await.map_err(|_| silent())?;
            return connected.map_err(|error| Error::Connect(error.into()));
        }
        let begin = Instant::now();
        let mut failed = silent();
        for left in (1..=self.uris.len()).rev() {
            let at = self.next.fetch_add(1, Ordering::Relaxed) % self.uris.len();
            let time_left = limit.saturating_sub(begin.elapsed());
            let share = time_left / u32::try_from(left).unwrap_or(u32::MAX);
            // Boxed: the handshakes are large.
            let connecting = Box::pin(connect(options, self.uris[at].clone()));
            match timeout(share, connecting).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => failed = Error::Connect(error.into()),
                Err(_) => {}
            }
        }
        Err(failed)
    }
}

async fn connect(options: &Options, uri: AMQPUri) -> Result<Connection, Box<dyn StdError + Send + Sync>> {
    let properties = ConnectionProperties::default().with_connection_name(options.name.as_str().into());
    if uri.scheme == AMQPScheme::AMQP {
        return Ok(Connection::connect_uri(uri, properties).await?);
    }
    let config = match &options.tls {
        Some(config) => Arc::clone(config),
        None => Arc::new(trusting_this_machine()?),
    };
    let (connector, name) = (RustlsConnector::from(config), uri.authority.host.clone());
    let connected = Connection::connector(
        uri,
        default_runtime()?,
        async move |mut uri, runtime| {
            // TCP alone: the library's own TLS takes no configuration of ours.
            uri.scheme = AMQPScheme::AMQP;
            Ok(uri.connect_async(&runtime).await?.into_rustls(&connector, &name).await?)
        },
        properties,
    );
    Ok(connected.await?)
}

/// With the process's own provider of cryptography, if it has chosen one.
fn trusting_this_machine() -> Result<ClientConfig, rustls::Error> {
    let provider = CryptoProvider::get_default().cloned();
    let provider = provider.unwrap_or_else(|| Arc::new(ring::default_provider()));
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_platform_verifier()?.with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;
    use std::time::Duration;

    use super::*;

    /// Accepts, hears the client's first words, and says nothing.
    fn silent() -> (u16, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        (listener.local_addr().unwrap().port(), listener)
    }

    #[tokio::test]
    async fn each_node_is_tried_within_its_share_of_the_time() {
        let nodes = [silent(), silent(), silent()];
        let hosts = nodes.each_ref().map(|(port, _)| format!("127.0.0.1:{port}")).join(",");
        let options =
            Options::new(format!("amqp://u:p@{hosts}/v")).connect_timeout(Duration::from_millis(600));
        let begin = Instant::now();

        let failed = Nodes::new(options.uris().unwrap()).connect(&options).await.unwrap_err();

        assert!(matches!(failed, Error::Silent { action: "connect", .. }), "{failed}");
        assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
        for (_, listener) in nodes {
            listener.set_nonblocking(true).unwrap();
            let (mut heard, mut words) = (listener.accept().expect("each was tried").0, [0; 4]);
            heard.read_exact(&mut words).unwrap();
            assert_eq!(&words, b"AMQP");
        }
    }
}
