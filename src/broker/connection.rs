//! One connection to the broker.

use std::time::Duration;

use lapin::runtime::default_runtime;
use lapin::tcp::{AMQPUriTcpExt, RustlsConnector};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties};
use secrecy::ExposeSecret;
use tokio::net::lookup_host;
use tokio::time::timeout;

use super::{BrokerError, Diagnosis, Login, within};
use crate::settings::Broker;
use crate::tls::{CaFile, LinkTls};

/// The heartbeat in seconds, unless the URL says another (`?heartbeat=`). With the minute that the broker proposes, a dead
/// connection would look alive for that long.
const HEARTBEAT_SECS: u16 = 10;

/// How long a stopping worker waits until a connection is closed. After that the other end is gone, and a broken connection
/// gives everything back as well.
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);

/// Connects under a name that the operator sees in the broker's list of connections.
///
/// # Errors
/// [`BrokerError::Connect`] with the cause in plain words, and without the URL's password.
pub async fn connect(settings: &Broker, name: &str) -> Result<Connection, BrokerError> {
    let mut uri: AMQPUri = settings
        .url
        .expose_secret()
        .parse()
        .map_err(|reason| BrokerError::Url { url: settings.display_url().to_owned(), reason })?;
    uri.query.heartbeat.get_or_insert(HEARTBEAT_SECS);
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let login = Login::of(settings);
    let connecting = async {
        // The library's error does not say that it was the name.
        let found = lookup_host((login.host.as_str(), login.port)).await;
        if !found.is_ok_and(|mut addresses| addresses.next().is_some()) {
            return Err(Diagnosis::UnknownHost);
        }
        let connected = match &settings.tls {
            LinkTls::Verified(tls) => {
                // The files are read each time: the next connection shows a renewed certificate.
                let config = tls.config(CaFile::Replaces).map_err(Diagnosis::of_tls)?;
                let name = tls.server_name.as_ref().unwrap_or(&login.host).clone();
                encrypted(uri, properties, config.into(), name).await
            }
            LinkTls::Off { .. } | LinkTls::AsOffered => Connection::connect_uri(uri, properties).await,
        };
        connected.map_err(|error| Diagnosis::of_connect(&error))
    };
    // The URI's own `connection_timeout` is ignored by the library.
    // Boxed: the handshakes are large, and every command that connects would carry their size.
    let connected = timeout(settings.connect_timeout, Box::pin(connecting)).await;
    let connected = connected.unwrap_or(Err(Diagnosis::Silent { after: settings.connect_timeout }));
    connected.map_err(|diagnosis| BrokerError::Connect { diagnosis: diagnosis.into(), login: login.into() })
}

/// Connects by TLS. The certificate must be for `name`.
async fn encrypted(
    uri: AMQPUri,
    properties: ConnectionProperties,
    connector: RustlsConnector,
    name: String,
) -> lapin::Result<Connection> {
    Connection::connector(
        uri,
        default_runtime()?,
        async move |mut uri, runtime| {
            // TCP alone: the library's own TLS takes neither other authorities alone nor another name.
            uri.scheme = AMQPScheme::AMQP;
            Ok(uri.connect_async(&runtime).await?.into_rustls(&connector, &name).await?)
        },
        properties,
    )
    .await
}

/// Closes a connection before the worker ends.
pub async fn take_leave(connection: &Connection) {
    // Nothing can be written over a blocked connection. The broker notices that it is gone.
    if !connection.status().blocked() {
        let close = connection.close(200, "the worker stops".into());
        drop(within(LEAVE_PATIENCE, || "close a connection".to_owned(), close).await);
    }
}
