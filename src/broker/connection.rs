//! One connection to the broker.

use std::time::Duration;

use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties};
use secrecy::ExposeSecret;

use super::{BrokerError, within};
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
/// [`BrokerError`] with the URL's password left out.
pub async fn connect(settings: &Broker, name: &str) -> Result<Connection, BrokerError> {
    let mut uri: AMQPUri = settings
        .url
        .expose_secret()
        .parse()
        .map_err(|reason| BrokerError::Url { url: settings.display_url().to_owned(), reason })?;
    uri.query.heartbeat.get_or_insert(HEARTBEAT_SECS);
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let action = || format!("connect to the broker at {}", settings.display_url());
    // The URI's own `connection_timeout` is ignored by the library.
    within(settings.connect_timeout, action, Connection::connect_uri(uri, properties)).await
}

/// Closes a connection before the worker ends.
pub async fn take_leave(connection: &Connection) {
    // Nothing can be written over a blocked connection. The broker notices that it is gone.
    if !connection.status().blocked() {
        let close = connection.close(200, "the worker stops".into());
        drop(within(LEAVE_PATIENCE, || "close a connection".to_owned(), close).await);
    }
}
