//! One connection to the broker.

use std::time::Duration;

use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties};
use secrecy::ExposeSecret;
use tokio::net::lookup_host;
use tokio::time::timeout;

use super::{BrokerError, Diagnosis, Login, within};
use crate::settings::Broker;

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
        Connection::connect_uri(uri, properties).await.map_err(|error| Diagnosis::of_connect(&error))
    };
    // The URI's own `connection_timeout` is ignored by the library.
    let connected = timeout(settings.connect_timeout, connecting).await;
    let connected = connected.unwrap_or(Err(Diagnosis::Silent { after: settings.connect_timeout }));
    connected.map_err(|diagnosis| BrokerError::Connect { diagnosis: diagnosis.into(), login: login.into() })
}

/// Closes a connection before the worker ends.
pub async fn take_leave(connection: &Connection) {
    // Nothing can be written over a blocked connection. The broker notices that it is gone.
    if !connection.status().blocked() {
        let close = connection.close(200, "the worker stops".into());
        drop(within(LEAVE_PATIENCE, || "close a connection".to_owned(), close).await);
    }
}
