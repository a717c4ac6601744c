//! How busy the machine is.

use std::fs;

/// Ticks of all processors since the start of the machine: busy ones, and all of them.
#[derive(Clone, Copy, Default)]
pub(super) struct Cpu {
    busy: u64,
    all: u64,
}

impl Cpu {
    /// Nothing where there is no `/proc/stat`.
    pub(super) fn now() -> Self {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = text.lines().next().unwrap_or_default();
        let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
        let all = ticks.iter().take(8).sum();
        // user, nice, system, idle, waiting for input and output, …
        let idle: u64 = ticks.iter().skip(3).take(2).sum();
        Self { busy: all - idle, all }
    }

    /// How busy it was from then to now.
    pub(super) fn busy_percent(self) -> u64 {
        let now = Self::now();
        (now.busy - self.busy) * 100 / (now.all - self.all).max(1)
    }
}
