//! One connection to the broker.

use std::time::Duration;

use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties};
use secrecy::ExposeSecret;

use super::{BrokerError, within};
use crate::settings::Broker;

/// How long the other side may be silent, in seconds, where the URL does not say (`?heartbeat=`). The broker
/// proposes a minute: so long would a connection whose other end is gone look alive.
const HEARTBEAT_SECS: u16 = 10;

/// How long a worker that ends waits for a connection to be closed in order. Where that takes longer nobody is at the other end,
/// and a connection that breaks off gives everything back as well.
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
    // Over a blocked one nothing is written, and the broker finds it gone.
    if !connection.status().blocked() {
        let close = connection.close(200, "the worker stops".into());
        drop(within(LEAVE_PATIENCE, || "close a connection".to_owned(), close).await);
    }
}
