//! How often a publisher may ask: so many messages a second, and so many at once (GCRA, the leaky bucket read as a clock).

use std::fmt;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::contract::Envelope;
use crate::settings::LimitSettings;

/// After so many messages, publishers who have not asked lately are forgotten.
const FORGET_EVERY: u32 = 4096;

/// How often the log names one publisher who asks too often.
const LOGGED_EVERY: Duration = Duration::from_secs(10);

/// A publisher, as the broker vouches for it. There are no more publishers than the broker has users. Messages without the
/// property `user_id` count as one publisher's. Otherwise a publisher could escape the limit by leaving the property out.
type Publisher = Option<String>;

/// Counts each publisher's messages in this worker.
pub struct PublisherLimit {
    messages: DefaultKeyedRateLimiter<Publisher>,
    log_lines: DefaultKeyedRateLimiter<Publisher>,
    clock: DefaultClock,
    seen: AtomicU32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooOften {
    /// After this time its next message is answered, if no other comes before.
    pub retry_after: Duration,
    /// Whether a log line is due.
    pub is_logged: bool,
}

impl PublisherLimit {
    /// None: there is no limit.
    pub fn new(settings: LimitSettings) -> Option<Self> {
        let rate = NonZeroU32::new(settings.publisher_requests_per_second)?;
        let burst = NonZeroU32::new(settings.publisher_burst).unwrap_or(rate);
        Some(Self {
            messages: RateLimiter::keyed(Quota::per_second(rate).allow_burst(burst)),
            log_lines: RateLimiter::keyed(Quota::with_period(LOGGED_EVERY)?),
            clock: DefaultClock::default(),
            seen: AtomicU32::new(0),
        })
    }

    /// Counts a message.
    ///
    /// # Errors
    /// [`TooOften`]: it was one too many.
    pub fn count(&self, envelope: &Envelope) -> Result<(), TooOften> {
        if self.seen.fetch_add(1, Ordering::Relaxed) % FORGET_EVERY == FORGET_EVERY - 1 {
            self.messages.retain_recent();
            self.log_lines.retain_recent();
        }
        self.messages.check_key(&envelope.publisher).map_err(|until| TooOften {
            retry_after: until.wait_time_from(self.clock.now()),
            is_logged: self.log_lines.check_key(&envelope.publisher).is_ok(),
        })
    }
}

impl fmt::Debug for PublisherLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublisherLimit").field("publishers", &self.messages.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(rate: u32, burst: u32) -> PublisherLimit {
        PublisherLimit::new(LimitSettings { publisher_requests_per_second: rate, publisher_burst: burst })
            .unwrap()
    }

    fn of(publisher: Option<&str>) -> Envelope {
        Envelope { publisher: publisher.map(str::to_owned), ..Envelope::default() }
    }

    #[test]
    fn a_publisher_who_asks_too_often_is_stopped_alone_and_hears_for_how_long() {
        let limit = limit(1, 3);
        for publisher in [Some("a"), None] {
            let envelope = of(publisher);
            let counted: Vec<_> = (0..6).map(|_| limit.count(&envelope)).collect();
            assert_eq!(counted[..3], [Ok(()); 3], "{publisher:?}");
            let refused: Vec<_> = counted[3..].iter().map(|counted| counted.unwrap_err()).collect();
            let wait = Duration::from_millis(900)..=Duration::from_secs(1);
            assert!(refused.iter().all(|refused| wait.contains(&refused.retry_after)), "{refused:?}");
            assert_eq!(
                refused.iter().map(|refused| refused.is_logged).collect::<Vec<_>>(),
                [true, false, false]
            );
        }
        assert_eq!(limit.count(&of(Some("b"))), Ok(()));
    }

    #[test]
    fn without_a_burst_of_its_own_a_second_s_worth_may_come_at_once() {
        let limit = limit(50, 0);
        let let_through = (0..500).filter(|_| limit.count(&of(None)).is_ok()).count();
        // And what comes back while this counts.
        assert!((50..100).contains(&let_through), "{let_through}");
    }

    #[test]
    fn zero_is_no_limit() {
        let settings = LimitSettings { publisher_requests_per_second: 0, publisher_burst: 7 };
        assert!(PublisherLimit::new(settings).is_none());
    }

    #[test]
    fn publishers_who_do_not_ask_any_more_are_forgotten() {
        // A thousandth of a millisecond after its message nothing is left to remember of any of these.
        let limit = limit(1_000_000, 1);
        for number in 0..3 * FORGET_EVERY {
            let _ = limit.count(&of(Some(&number.to_string())));
        }
        assert!(limit.messages.len() < FORGET_EVERY as usize / 2, "{limit:?}");
    }
}
