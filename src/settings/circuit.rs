//! When a host that fails is left alone.

use std::time::Duration;

use super::reader::Reader;

/// When a host that fails is left alone.
#[derive(Debug, Clone, Copy)]
pub struct CircuitSettings {
    /// So many entries that fail in a row open a host's circuit, and so many failed calls end a refresh. At least two: one user
    /// must not close a host for the others.
    pub failures: u32,
    /// How long the circuit stays open at first. Also the pause between two probes of a host that refuses everybody.
    pub open_for: Duration,
}

impl CircuitSettings {
    pub(super) fn read(from: &mut Reader) -> Self {
        Self {
            failures: from.integer("refresh.circuit_failures", 2..=1_000, 5),
            open_for: from.seconds("refresh.circuit_open_secs", 1..=60, 10),
        }
    }
}
