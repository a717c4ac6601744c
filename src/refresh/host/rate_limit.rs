//! How many refreshes may begin within a span of time. Exact: no more than so many within *any* such span.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// So many within any span of this length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// How many; zero: as many as they like.
    pub most: usize,
    /// The span.
    pub within: Duration,
}

/// When those began that still count, the oldest one first: never more than [`Pace::most`].
#[derive(Debug, Clone, Default)]
pub(super) struct Begun(VecDeque<Instant>);

impl Begun {
    /// How long the next one must wait.
    pub(super) fn wait(&self, pace: Pace, now: Instant) -> Option<Duration> {
        let oldest = self.0.front().filter(|_| pace.most > 0 && self.0.len() >= pace.most)?;
        let free_at = *oldest + pace.within;
        (now < free_at).then(|| free_at - now)
    }

    /// One begins, which [need not wait](Self::wait).
    pub(super) fn begin(&mut self, pace: Pace, now: Instant) {
        if pace.most == 0 {
            return;
        }
        while self.0.len() >= pace.most {
            self.0.pop_front();
        }
        self.0.push_back(now);
    }

    /// The one of that time did not begin after all.
    pub(super) fn take_back(&mut self, at: Instant) {
        if let Some(place) = self.0.iter().rposition(|begun| *begun == at) {
            self.0.remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const PACE: Pace = Pace { most: 10, within: MINUTE };

    #[test]
    fn ten_in_any_minute_however_they_come() {
        let start = Instant::now();
        for gap in [1, 100, 900, 5_000, 6_000, 7_000] {
            let (mut begun, mut times) = (Begun::default(), Vec::new());
            for step in 0..600_u64 {
                let now = start + Duration::from_millis(step * gap);
                if begun.wait(PACE, now).is_none() {
                    begun.begin(PACE, now);
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
    fn it_says_when_the_next_one_may_begin_and_one_that_did_not_makes_room() {
        let start = Instant::now();
        let mut begun = Begun::default();
        for secs in 0..10 {
            assert_eq!(begun.wait(PACE, start + Duration::from_secs(secs)), None);
            begun.begin(PACE, start + Duration::from_secs(secs));
        }
        let now = start + Duration::from_secs(20);
        assert_eq!(begun.wait(PACE, now), Some(Duration::from_secs(40)));
        begun.take_back(start + Duration::from_secs(9));
        assert_eq!(begun.wait(PACE, now), None);
    }

    #[test]
    fn zero_is_no_limit_and_keeps_nothing() {
        let mut begun = Begun::default();
        let off = Pace { most: 0, within: MINUTE };
        for _ in 0..100 {
            let now = Instant::now();
            assert_eq!(begun.wait(off, now), None);
            begun.begin(off, now);
        }
        assert!(begun.0.is_empty());
    }
}
