//! How single entries stand with their provider: which back off for themselves, and how often each was refreshed
//! lately. A refresh token that makes an endpoint fail is its user's affair and nobody else's.

use std::num::NonZeroUsize;
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;

use super::pace::{Begun, Pace};

/// Entries that are kept in mind at most, at some hundred bytes each; the one that was not refreshed for the longest
/// goes first. Whoever asks again and again is not the one that goes.
const MOST_ENTRIES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(8_191);

/// After so many failed refreshes in a row an entry backs off.
const PATIENCE: u32 = 2;

/// The first wait of an entry that backs off; each one is twice as long as the one before.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// No wait is longer than this by itself.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The entries that failed or were refreshed lately.
#[derive(Debug)]
pub(super) struct Standings {
    pace: Pace,
    entries: LruCache<i64, Standing>,
}

/// One pair of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pair {
    /// Row id of the entry.
    pub(super) entry: i64,
    /// Which of its pairs.
    pub(super) generation: i64,
}

#[derive(Debug, Default)]
struct Standing {
    /// What failed: another pair starts clean.
    generation: i64,
    /// Failed refreshes in a row.
    failures: u32,
    /// From when it may be tried again.
    again_from: Option<Instant>,
    begun: Begun,
}

impl Standings {
    /// So many refreshes of each entry.
    pub(super) fn new(pace: Pace) -> Self {
        Self { pace, entries: LruCache::new(MOST_ENTRIES) }
    }

    /// How long the entry with this pair still backs off.
    pub(super) fn backs_off(&self, pair: Pair, now: Instant) -> Option<Duration> {
        let standing = self.entries.peek(&pair.entry)?;
        let again_from = standing.again_from.filter(|_| standing.generation == pair.generation)?;
        (now < again_from).then(|| again_from - now)
    }

    /// How long this entry must wait because it was refreshed too often.
    pub(super) fn over_limit(&self, entry: i64, now: Instant) -> Option<Duration> {
        self.entries.peek(&entry)?.begun.wait(self.pace, now)
    }

    /// A refresh begins.
    pub(super) fn begin(&mut self, entry: i64, now: Instant) {
        if self.pace.most > 0 {
            let pace = self.pace;
            self.of(entry).begun.begin(pace, now);
        }
    }

    /// The refresh of that time did not begin after all.
    pub(super) fn take_back(&mut self, entry: i64, at: Instant) {
        if let Some(standing) = self.entries.peek_mut(&entry) {
            standing.begun.take_back(at);
        }
    }

    /// The provider gave no usable answer to a refresh, and asked for `wish`.
    pub(super) fn failed(&mut self, pair: Pair, wish: Option<Duration>, now: Instant) {
        let standing = self.of(pair.entry);
        if standing.generation != pair.generation {
            standing.failures = 0;
        }
        standing.generation = pair.generation;
        standing.failures = standing.failures.saturating_add(1);
        let own = standing
            .failures
            .checked_sub(PATIENCE)
            .map(|more| FIRST_WAIT.saturating_mul(2_u32.saturating_pow(more)).min(LONGEST_WAIT));
        standing.again_from = own.max(wish).map(|wait| now + wait);
    }

    /// The provider answered.
    pub(super) fn answered(&mut self, entry: i64) {
        if let Some(standing) = self.entries.peek_mut(&entry) {
            standing.failures = 0;
            standing.again_from = None;
        }
    }

    fn of(&mut self, entry: i64) -> &mut Standing {
        self.entries.get_or_insert_mut(entry, Standing::default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace { most: 2, within: Duration::from_secs(60) };
    const PAIR: Pair = Pair { entry: 7, generation: 1 };

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn it_backs_off_from_the_second_failure_in_a_row_twice_as_long_each_time_up_to_a_minute() {
        let (mut standings, now) = (Standings::new(PACE), Instant::now());
        standings.failed(PAIR, None, now);
        assert_eq!(standings.backs_off(PAIR, now), None, "one failure may be chance");
        for wait in [1, 2, 4, 8, 16, 32, 60, 60] {
            standings.failed(PAIR, None, now);
            assert_eq!(standings.backs_off(PAIR, now), Some(secs(wait)));
            assert_eq!(standings.backs_off(PAIR, now + secs(wait)), None);
        }
        assert_eq!(standings.backs_off(Pair { entry: 8, ..PAIR }, now), None, "another entry's affair");
        assert_eq!(
            standings.backs_off(Pair { generation: 2, ..PAIR }, now),
            None,
            "another pair starts clean"
        );
        standings.failed(Pair { generation: 2, ..PAIR }, None, now);
        assert_eq!(standings.backs_off(Pair { generation: 2, ..PAIR }, now), None);
        standings.failed(Pair { generation: 2, ..PAIR }, None, now);
        standings.answered(PAIR.entry);
        assert_eq!(standings.backs_off(Pair { generation: 2, ..PAIR }, now), None, "it was answered");
    }

    #[test]
    fn a_pause_that_the_provider_asks_for_counts_from_the_first_failure() {
        let (mut standings, now) = (Standings::new(PACE), Instant::now());
        standings.failed(PAIR, Some(secs(45)), now);
        assert_eq!(standings.backs_off(PAIR, now), Some(secs(45)));
        standings.failed(PAIR, Some(secs(0)), now);
        assert_eq!(
            standings.backs_off(PAIR, now),
            Some(secs(1)),
            "a short one does not switch the backing off off"
        );
    }

    #[test]
    fn a_new_pair_does_not_lift_the_limit_and_what_is_kept_is_bounded() {
        let (mut standings, now) = (Standings::new(PACE), Instant::now());
        for _ in 0..2 {
            assert_eq!(standings.over_limit(7, now), None);
            standings.begin(7, now);
        }
        standings.failed(Pair { generation: 2, ..PAIR }, None, now);
        standings.answered(7);
        assert_eq!(standings.over_limit(7, now), Some(secs(60)));
        for entry in 100..50_000 {
            standings.begin(entry, now);
            // Whoever asks again and again stays.
            standings.begin(7, now);
        }
        assert_eq!(standings.entries.len(), MOST_ENTRIES.get());
        assert_eq!(standings.over_limit(7, now), Some(secs(60)));
    }
}
