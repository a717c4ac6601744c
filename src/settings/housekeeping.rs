//! Section `[housekeeping]`.

use std::time::Duration;

use super::reader::Reader;

const DAY_SECS: u64 = 24 * 60 * 60;

/// The care of tokens that nobody asks for.
#[derive(Debug, Clone)]
pub struct HousekeepingSettings {
    /// Whether this worker takes its turn.
    pub enabled: bool,
    /// The pause between two passes, over all workers.
    pub interval: Duration,
    /// How long after its expiry an unrefreshable token is removed.
    pub remove_after: Duration,
    /// The most idle pairs that one pass refreshes.
    pub refresh_batch: u16,
}

impl HousekeepingSettings {
    pub(super) fn read(from: &mut Reader) -> Self {
        let days: u64 = from.integer("housekeeping.remove_after_days", 0..=3_650, 7);
        Self {
            enabled: from.boolean("housekeeping.enabled").unwrap_or(true),
            interval: from.seconds("housekeeping.interval_secs", 1..=86_400, 3_600),
            remove_after: Duration::from_secs(days * DAY_SECS),
            refresh_batch: from.integer("housekeeping.refresh_batch", 0..=10_000, 50),
        }
    }
}
