//! How many refreshes may begin within a span of time. The limit is exact: it holds for *any* span of that length.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// At most so many within any span of this length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Zero: no limit.
    pub most: usize,
    pub within: Duration,
}

/// When the refreshes began that still count, the oldest one first. There are never more than [`RateLimit::most`].
#[derive(Debug, Clone, Default)]
pub(super) struct SlidingWindow(VecDeque<Instant>);

impl SlidingWindow {
    /// How long the next refresh must wait.
    pub(super) fn wait(&self, limit: RateLimit, now: Instant) -> Option<Duration> {
        let oldest = self.0.front().filter(|_| limit.most > 0 && self.0.len() >= limit.most)?;
        let free_at = *oldest + limit.within;
        (now < free_at).then(|| free_at - now)
    }

    /// A refresh begins, which [need not wait](Self::wait).
    pub(super) fn begin(&mut self, limit: RateLimit, now: Instant) {
        if limit.most == 0 {
            return;
        }
        while self.0.len() >= limit.most {
            self.0.pop_front();
        }
        self.0.push_back(now);
    }

    /// The refresh of that time did not begin after all.
    pub(super) fn take_back(&mut self, at: Instant) {
        if let Some(index) = self.0.iter().rposition(|begun| *begun == at) {
            self.0.remove(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const LIMIT: RateLimit = RateLimit { most: 10, within: MINUTE };

    #[test]
    fn ten_in_any_minute_however_they_come() {
        let start = Instant::now();
        for gap in [1, 100, 900, 5_000, 6_000, 7_000] {
            let (mut begun, mut times) = (SlidingWindow::default(), Vec::new());
            for step in 0..600_u64 {
                let now = start + Duration::from_millis(step * gap);
                if begun.wait(LIMIT, now).is_none() {
                    begun.begin(LIMIT, now);
                    times.push(now);
                }
            }
            for (number, time) in times.iter().enumerate() {
                let within = times[number..].iter().take_while(|later| **later < *time + MINUTE).count();
                assert!(within <= 10, "{within} in a minute, asked every {gap} ms");
            }
            assert!(begun.0.len() <= 10);
        }
    }

    #[test]
    fn it_says_when_the_next_refresh_may_begin_and_one_that_did_not_begin_makes_room() {
        let start = Instant::now();
        let mut begun = SlidingWindow::default();
        for secs in 0..10 {
            assert_eq!(begun.wait(LIMIT, start + Duration::from_secs(secs)), None);
            begun.begin(LIMIT, start + Duration::from_secs(secs));
        }
        let now = start + Duration::from_secs(20);
        assert_eq!(begun.wait(LIMIT, now), Some(Duration::from_secs(40)));
        begun.take_back(start + Duration::from_secs(9));
        assert_eq!(begun.wait(LIMIT, now), None);
    }

    #[test]
    fn zero_is_no_limit_and_keeps_nothing() {
        let mut begun = SlidingWindow::default();
        let off = RateLimit { most: 0, within: MINUTE };
        for _ in 0..100 {
            let now = Instant::now();
            assert_eq!(begun.wait(off, now), None);
            begun.begin(off, now);
        }
        assert!(begun.0.is_empty());
    }
}
