//! Panics of tasks. They do not end the process, so they are counted. After some, `/readyz` fails.

use std::panic;

use metrics::{counter, describe_counter};

use super::label;

const PANICS: &str = "tokenkeeper_panics_total";

label! {
    /// Label `in`.
    pub enum Panicking {
        /// The message returns to the queue.
        Message = "message",
        /// The requesters are answered with `internal`.
        Refresh = "refresh",
        /// A service that the worker needs: it is not ready any more.
        Service = "service",
    }
}

pub fn panicked(what: Panicking) {
    counter!(PANICS, "in" => what.name()).increment(1);
    match what {
        Panicking::Message => {
            tracing::error!(
                "panic in the handling of a message; the message returns to the queue; please report this bug"
            );
        }
        Panicking::Refresh => {
            tracing::error!(
                "panic in a refresh; its requesters are answered with `internal`; please report this bug"
            );
        }
        Panicking::Service => {}
    }
}

/// Logs each panic where it happens, in the format of the log. Otherwise the standard library prints it.
pub fn log_panics() {
    panic::set_hook(Box::new(|panic| {
        let text = panic.payload_as_str().unwrap_or("no text");
        let place = panic.location().map(tracing::field::display);
        tracing::error!(place, "panic: {text}");
    }));
}

pub fn service_ended(name: &'static str) {
    tracing::error!(
        service = name,
        "a service of this worker ended by a bug; the worker is not ready; restart it"
    );
}

pub(super) fn describe() {
    describe_counter!(PANICS, "Panics in a message, a refresh or a service.");
    for what in Panicking::ALL {
        counter!(PANICS, "in" => what.name()).absolute(0);
    }
}
