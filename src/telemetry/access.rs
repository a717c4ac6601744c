//! Publishers that were denied what they asked for.

use metrics::{counter, describe_counter};

use crate::domain::problem::Problem;

const DENIALS: &str = "tokenkeeper_denials_total";

/// Labels `publisher` of messages whose publisher the settings do not name. No user of the broker is called so by accident.
const UNNAMED: &str = "(unnamed)";
const UNLISTED: &str = "(unlisted)";

/// A message, or one host of a `workspace.start`, was denied. `listed` is its publisher, if the settings name it: what else
/// stands in a message must not become a label.
pub fn denied(listed: Option<&str>, is_named: bool, reason: &'static str) {
    let publisher = listed.unwrap_or(if is_named { UNLISTED } else { UNNAMED });
    counter!(DENIALS, "publisher" => publisher.to_owned(), "reason" => reason).increment(1);
    tracing::debug!(publisher, reason, "denied by the access rules");
}

/// At the start of a worker that every user of its broker may ask.
pub fn unguarded(problem: &Problem) {
    tracing::warn!("access: {problem}");
}

pub(super) fn describe() {
    describe_counter!(DENIALS, "Messages and hosts that were denied to their publisher, by reason.");
    for (publisher, reason) in [(UNNAMED, "unnamed"), (UNLISTED, "unlisted")] {
        counter!(DENIALS, "publisher" => publisher, "reason" => reason).absolute(0);
    }
}
