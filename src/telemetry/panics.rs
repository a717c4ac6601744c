//! Bugs that a task met. None of them ends the process, so they are counted, and some of them end what `/readyz` needs.

use metrics::{counter, describe_counter};

const PANICS: &str = "tokenkeeper_panics_total";

/// What panicked: label `in`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Panicking {
    /// The handling of a message, which is given back to the broker.
    Message,
    /// A refresh; its requesters are answered with `internal`.
    Refresh,
    /// A service that the worker cannot do without: it is not ready any more.
    Service,
}

impl Panicking {
    const ALL: [Self; 3] = [Self::Message, Self::Refresh, Self::Service];

    const fn name(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Refresh => "refresh",
            Self::Service => "service",
        }
    }
}

/// A task met a bug.
pub fn panicked(what: Panicking) {
    counter!(PANICS, "in" => what.name()).increment(1);
    match what {
        Panicking::Message => {
            tracing::error!("a bug in the handling of a message: it is given back to the broker");
        }
        Panicking::Refresh => {
            tracing::error!("a bug in a refresh: its requesters are answered with `internal`");
        }
        Panicking::Service => {}
    }
}

/// A service ended that should run for as long as the worker does.
pub fn service_ended(name: &'static str) {
    tracing::error!(
        service = name,
        "a service of this worker ended: it is not ready until it is started again"
    );
}

pub(super) fn describe() {
    describe_counter!(PANICS, "Bugs that a message, a refresh or a service met.");
    for what in Panicking::ALL {
        counter!(PANICS, "in" => what.name()).absolute(0);
    }
}
