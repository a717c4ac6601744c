//! The admin endpoint's own troubles.

use std::io;

use metrics::{counter, describe_counter};

const CROWDED: &str = "tokenkeeper_admin_connections_displaced_total";

/// A connection to the admin endpoint was closed because there were too many.
pub fn admin_crowded() {
    counter!(CROWDED).increment(1);
}

/// A connection to the admin endpoint could not be accepted.
pub fn admin_not_accepted(error: &io::Error) {
    tracing::warn!(%error, "cannot accept a connection to the admin endpoint");
}

/// Describes these metrics.
pub(super) fn describe() {
    describe_counter!(CROWDED, "Connections to the admin endpoint that made room for newer ones.");
    counter!(CROWDED).absolute(0);
}
