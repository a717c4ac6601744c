//! Whether the links to broker and database are protected.

use crate::app::exposed;
use crate::domain::finding::Finding;
use crate::domain::problem::Problem;
use crate::settings::{Broker, Database};
use crate::tls::LinkTls;

pub(super) fn of_broker(settings: &Broker) -> Finding {
    finding("broker TLS", exposed::broker(settings), &settings.tls)
}

pub(super) fn of_database(settings: &Database) -> Finding {
    finding("database TLS", exposed::database(settings), &settings.tls)
}

fn finding(check: &str, exposed: Option<Problem>, tls: &LinkTls) -> Finding {
    match (exposed, tls) {
        (Some(problem), _) => Finding::warning(check, problem),
        (None, LinkTls::Verified(_)) => Finding::good(check, "wanted, with a certificate that is verified"),
        (None, LinkTls::Off { .. } | LinkTls::AsOffered) => {
            Finding::good(check, "not needed: it is on this machine")
        }
    }
}
