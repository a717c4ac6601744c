//! What this process knows of single entries: which back off, and how often each was refreshed lately. A refresh token that
//! makes an endpoint fail delays its own entry alone.

use std::num::NonZeroUsize;
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;

use super::rate_limit::{RateLimit, SlidingWindow};

/// The most entries that are remembered, at some hundred bytes each. The one whose last refresh is the longest ago is forgotten
/// first, so one that asks again and again is not.
const MOST_ENTRIES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(8_191);

/// An entry backs off from this many failed refreshes in a row.
const FAILURES_BEFORE_BACK_OFF: u32 = 2;

/// The first wait of an entry that backs off. Each later one is twice as long as the one before.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// The longest wait, unless the provider asks for a longer one.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct EntryStates {
    limit: RateLimit,
    entries: LruCache<i64, EntryState>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pair {
    /// Row id of the entry.
    pub(super) entry: i64,
    pub(super) generation: i64,
}

#[derive(Debug, Default)]
struct EntryState {
    /// Of the pair that failed. Another pair starts clean.
    generation: i64,
    /// Failed refreshes in a row.
    failures: u32,
    /// From when it may be tried again.
    again_from: Option<Instant>,
    begun: SlidingWindow,
}

impl EntryStates {
    pub(super) fn new(limit: RateLimit) -> Self {
        Self { limit, entries: LruCache::new(MOST_ENTRIES) }
    }

    pub(super) fn backs_off(&self, pair: Pair, now: Instant) -> Option<Duration> {
        let state = self.entries.peek(&pair.entry)?;
        let again_from = state.again_from.filter(|_| state.generation == pair.generation)?;
        (now < again_from).then(|| again_from - now)
    }

    /// How long this entry must wait because it was refreshed too often.
    pub(super) fn over_limit(&self, entry: i64, now: Instant) -> Option<Duration> {
        self.entries.peek(&entry)?.begun.wait(self.limit, now)
    }

    pub(super) fn begin(&mut self, entry: i64, now: Instant) {
        if self.limit.most > 0 {
            let limit = self.limit;
            self.of(entry).begun.begin(limit, now);
        }
    }

    /// The refresh of that time did not begin after all.
    pub(super) fn take_back(&mut self, entry: i64, at: Instant) {
        if let Some(state) = self.entries.peek_mut(&entry) {
            state.begun.take_back(at);
        }
    }

    /// The provider gave no usable answer to a refresh, and asked for this pause.
    pub(super) fn failed(&mut self, pair: Pair, retry_after: Option<Duration>, now: Instant) {
        let state = self.of(pair.entry);
        if state.generation != pair.generation {
            state.failures = 0;
        }
        state.generation = pair.generation;
        state.failures = state.failures.saturating_add(1);
        let own = state
            .failures
            .checked_sub(FAILURES_BEFORE_BACK_OFF)
            .map(|more| FIRST_WAIT.saturating_mul(2_u32.saturating_pow(more)).min(LONGEST_WAIT));
        state.again_from = own.max(retry_after).map(|wait| now + wait);
    }

    pub(super) fn answered(&mut self, entry: i64) {
        if let Some(state) = self.entries.peek_mut(&entry) {
            state.failures = 0;
            state.again_from = None;
        }
    }

    fn of(&mut self, entry: i64) -> &mut EntryState {
        self.entries.get_or_insert_mut(entry, EntryState::default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: RateLimit = RateLimit { most: 2, within: Duration::from_secs(60) };
    const PAIR: Pair = Pair { entry: 7, generation: 1 };

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn it_backs_off_from_the_second_failure_in_a_row_twice_as_long_each_time_up_to_a_minute() {
        let (mut entries, now) = (EntryStates::new(LIMIT), Instant::now());
        entries.failed(PAIR, None, now);
        assert_eq!(entries.backs_off(PAIR, now), None, "one failure may be chance");
        for wait in [1, 2, 4, 8, 16, 32, 60, 60] {
            entries.failed(PAIR, None, now);
            assert_eq!(entries.backs_off(PAIR, now), Some(secs(wait)));
            assert_eq!(entries.backs_off(PAIR, now + secs(wait)), None);
        }
        assert_eq!(entries.backs_off(Pair { entry: 8, ..PAIR }, now), None, "another entry does not");
        assert_eq!(entries.backs_off(Pair { generation: 2, ..PAIR }, now), None, "another pair starts clean");
        entries.failed(Pair { generation: 2, ..PAIR }, None, now);
        assert_eq!(entries.backs_off(Pair { generation: 2, ..PAIR }, now), None);
        entries.failed(Pair { generation: 2, ..PAIR }, None, now);
        entries.answered(PAIR.entry);
        assert_eq!(entries.backs_off(Pair { generation: 2, ..PAIR }, now), None, "it was answered");
    }

    #[test]
    fn a_pause_that_the_provider_asks_for_counts_from_the_first_failure() {
        let (mut entries, now) = (EntryStates::new(LIMIT), Instant::now());
        entries.failed(PAIR, Some(secs(45)), now);
        assert_eq!(entries.backs_off(PAIR, now), Some(secs(45)));
        entries.failed(PAIR, Some(secs(0)), now);
        assert_eq!(entries.backs_off(PAIR, now), Some(secs(1)), "a short pause does not end the back-off");
    }

    #[test]
    fn a_new_pair_does_not_lift_the_limit_and_what_is_kept_is_bounded() {
        let (mut entries, now) = (EntryStates::new(LIMIT), Instant::now());
        for _ in 0..2 {
            assert_eq!(entries.over_limit(7, now), None);
            entries.begin(7, now);
        }
        entries.failed(Pair { generation: 2, ..PAIR }, None, now);
        entries.answered(7);
        assert_eq!(entries.over_limit(7, now), Some(secs(60)));
        for entry in 100..50_000 {
            entries.begin(entry, now);
            // One that asks again and again stays.
            entries.begin(7, now);
        }
        assert_eq!(entries.entries.len(), MOST_ENTRIES.get());
        assert_eq!(entries.over_limit(7, now), Some(secs(60)));
    }
}
