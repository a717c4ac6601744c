//! Links that cross a network in plain text because an operator wants it so.

use crate::domain::problem::Problem;
use crate::settings::{Broker, Database};

/// None: nobody on the way to the broker can read along.
pub fn broker(settings: &Broker) -> Option<Problem> {
    settings.tls.is_exposed().then(|| {
        Problem::new(
            format!(
                "passwords and tokens cross the network to {} in plain text (broker.tls)",
                settings.display_url()
            ),
            "broker.tls is off",
            "amqps:// and the broker's port for TLS in broker.url, and no broker.tls",
        )
    })
}

/// None: nobody on the way to the database can read along.
pub fn database(settings: &Database) -> Option<Problem> {
    settings.tls.is_exposed().then(|| {
        Problem::new(
            format!(
                "the password crosses the network to {} in plain text (database.tls)",
                settings.display_url()
            ),
            "database.tls is off, or database.url says so",
            "turn TLS on in the database, and remove database.tls",
        )
    })
}
