//! One connection to the broker.

use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties};
use secrecy::ExposeSecret;

use super::{BrokerError, within};
use crate::settings::Broker;

/// How long the other side may be silent, in seconds, where the URL does not say (`?heartbeat=`). The broker
/// proposes a minute: so long would a connection whose other end is gone look alive.
const HEARTBEAT_SECS: u16 = 10;

/// The largest frame, in bytes, that a connection for consuming asks for, where the URL does not say (`?frame_max=`). The
/// library keeps two buffers of 32 frames and goes round in them, so at the broker's 128 KiB each connection costs 8 MiB of
/// memory, and the cache with it. What a broker sends in more frames than it could costs nothing; a header, which cannot be
/// divided, comes whole nevertheless.
const CONSUMING_FRAME_MAX: u32 = 16 * 1024;

/// Connects for consuming, under a name that the operator sees in the broker's list of connections.
///
/// # Errors
/// As [`connect`].
pub async fn connect_to_consume(settings: &Broker, name: &str) -> Result<Connection, BrokerError> {
    let mut uri = uri(settings)?;
    uri.query.frame_max.get_or_insert(CONSUMING_FRAME_MAX);
    connect_to(uri, settings, name).await
}

/// Connects under a name that the operator sees in the broker's list of connections.
///
/// # Errors
/// [`BrokerError`] with the URL's password left out.
pub async fn connect(settings: &Broker, name: &str) -> Result<Connection, BrokerError> {
    connect_to(uri(settings)?, settings, name).await
}

fn uri(settings: &Broker) -> Result<AMQPUri, BrokerError> {
    let mut uri: AMQPUri = settings
        .url
        .expose_secret()
        .parse()
        .map_err(|reason| BrokerError::Url { url: settings.display_url().to_owned(), reason })?;
    uri.query.heartbeat.get_or_insert(HEARTBEAT_SECS);
    Ok(uri)
}

async fn connect_to(uri: AMQPUri, settings: &Broker, name: &str) -> Result<Connection, BrokerError> {
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let action = || format!("connect to the broker at {}", settings.display_url());
    // The URI's own `connection_timeout` is ignored by the library.
    within(settings.connect_timeout, action, Connection::connect_uri(uri, properties)).await
}
