//! One connection to the broker.

use lapin::{Connection, ConnectionProperties};
use secrecy::ExposeSecret;

use super::{BrokerError, within};
use crate::settings::Broker;

/// Connects under a name that the operator sees in the broker's list of connections.
///
/// # Errors
/// [`BrokerError`] with the URL's password left out.
pub async fn connect(settings: &Broker, name: &str) -> Result<Connection, BrokerError> {
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let action = || format!("connect to the broker at {}", settings.display_url());
    // The URI's own `connection_timeout` is ignored by the library.
    within(settings.connect_timeout, action, Connection::connect(settings.url.expose_secret(), properties))
        .await
}
