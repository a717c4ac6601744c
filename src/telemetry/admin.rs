//! Events of the admin endpoint.

use std::io;

use metrics::{counter, describe_counter};

const CROWDED: &str = "tokenkeeper_admin_connections_displaced_total";

/// There were too many connections, so one was closed for a newer one.
pub fn admin_crowded() {
    counter!(CROWDED).increment(1);
}

pub fn admin_not_accepted(error: &io::Error) {
    tracing::warn!(%error, "cannot accept a connection to the admin endpoint");
}

pub(super) fn describe() {
    describe_counter!(
        CROWDED,
        "Connections to the admin endpoint that were closed to make room for newer ones."
    );
    counter!(CROWDED).absolute(0);
}
