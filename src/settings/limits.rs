//! Section `[limits]`.

use super::reader::Reader;

/// How often a publisher may ask.
#[derive(Debug, Clone, Copy)]
pub struct LimitSettings {
    /// Per publisher and worker. 0: no limit.
    pub publisher_requests_per_second: u32,
    /// How many may come at once. 0: as many as in a second.
    pub publisher_burst: u32,
}

impl LimitSettings {
    pub(super) fn read(from: &mut Reader) -> Self {
        Self {
            publisher_requests_per_second: from.integer(
                "limits.publisher_requests_per_second",
                0..=1_000_000,
                0,
            ),
            publisher_burst: from.integer("limits.publisher_burst", 0..=1_000_000, 0),
        }
    }
}
