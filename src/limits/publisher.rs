//! How often a publisher may ask: so many messages a second, and so many at once (GCRA, the leaky bucket read as a clock).

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::settings::{Access, LimitSettings};

/// After so many messages, publishers who have not asked lately are forgotten.
const FORGET_EVERY: u32 = 4096;

/// How often the log names one publisher who asks too often.
const LOGGED_EVERY: Duration = Duration::from_secs(10);

/// A publisher, as the broker vouches for it. There are no more publishers than the broker has users. Messages without the
/// property `user_id` count as one publisher's. Otherwise a publisher could escape the limit by leaving the property out.
type Publisher = Option<String>;

/// Counts each publisher's messages in this worker.
pub struct PublisherLimit {
    /// For publishers without a limit of their own. None: they have no limit.
    general: Option<DefaultKeyedRateLimiter<Publisher>>,
    /// Of publishers whose policy has one.
    own: HashMap<String, DefaultDirectRateLimiter>,
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
    pub fn new(settings: LimitSettings, access: &Access) -> Option<Self> {
        let general = NonZeroU32::new(settings.publisher_requests_per_second).map(|rate| {
            let burst = NonZeroU32::new(settings.publisher_burst).unwrap_or(rate);
            RateLimiter::keyed(Quota::per_second(rate).allow_burst(burst))
        });
        let own: HashMap<_, _> = access
            .own_limits()
            .map(|(publisher, rate)| (publisher.to_owned(), RateLimiter::direct(Quota::per_second(rate))))
            .collect();
        if general.is_none() && own.is_empty() {
            return None;
        }
        Some(Self {
            general,
            own,
            log_lines: RateLimiter::keyed(Quota::with_period(LOGGED_EVERY)?),
            clock: DefaultClock::default(),
            seen: AtomicU32::new(0),
        })
    }

    /// Counts a message of this publisher.
    ///
    /// # Errors
    /// [`TooOften`]: it was one too many.
    pub fn count(&self, publisher: Option<&str>) -> Result<(), TooOften> {
        if self.seen.fetch_add(1, Ordering::Relaxed) % FORGET_EVERY == FORGET_EVERY - 1 {
            if let Some(general) = &self.general {
                general.retain_recent();
            }
            self.log_lines.retain_recent();
        }
        let counted = match (publisher.and_then(|publisher| self.own.get(publisher)), &self.general) {
            (Some(own), _) => own.check(),
            (None, Some(general)) => general.check_key(&publisher.map(str::to_owned)),
            (None, None) => return Ok(()),
        };
        counted.map_err(|until| TooOften {
            retry_after: until.wait_time_from(self.clock.now()),
            is_logged: self.log_lines.check_key(&publisher.map(str::to_owned)).is_ok(),
        })
    }
}

impl fmt::Debug for PublisherLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let publishers = self.general.as_ref().map_or(0, RateLimiter::len);
        f.debug_struct("PublisherLimit")
            .field("publishers", &publishers)
            .field("own", &self.own.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{AccessPolicy, PublisherPolicy};

    fn settings(rate: u32, burst: u32) -> LimitSettings {
        LimitSettings { publisher_requests_per_second: rate, publisher_burst: burst }
    }

    fn limit(rate: u32, burst: u32) -> PublisherLimit {
        PublisherLimit::new(settings(rate, burst), &Access::default()).unwrap()
    }

    /// Access for one publisher with a limit of its own.
    fn access(publisher: &str, rate: u32) -> Access {
        let policy =
            PublisherPolicy { requests_per_second: NonZeroU32::new(rate), ..PublisherPolicy::nothing() };
        let policy = AccessPolicy::Publishers([(publisher.to_owned(), policy)].into());
        Access { policy, ..Access::default() }
    }

    #[test]
    fn a_publisher_who_asks_too_often_is_stopped_alone_and_hears_for_how_long() {
        let limit = limit(1, 3);
        for publisher in [Some("a"), None] {
            let counted: Vec<_> = (0..6).map(|_| limit.count(publisher)).collect();
            assert_eq!(counted[..3], [Ok(()); 3], "{publisher:?}");
            let refused: Vec<_> = counted[3..].iter().map(|counted| counted.unwrap_err()).collect();
            let wait = Duration::from_millis(900)..=Duration::from_secs(1);
            assert!(refused.iter().all(|refused| wait.contains(&refused.retry_after)), "{refused:?}");
            assert_eq!(
                refused.iter().map(|refused| refused.is_logged).collect::<Vec<_>>(),
                [true, false, false]
            );
        }
        assert_eq!(limit.count(Some("b")), Ok(()));
    }

    #[test]
    fn without_a_burst_of_its_own_a_second_s_worth_may_come_at_once() {
        let limit = limit(50, 0);
        let let_through = (0..500).filter(|_| limit.count(None).is_ok()).count();
        // And what comes back while this counts.
        assert!((50..100).contains(&let_through), "{let_through}");
    }

    #[test]
    fn zero_is_no_limit() {
        assert!(PublisherLimit::new(settings(0, 7), &Access::default()).is_none());
    }

    #[test]
    fn publishers_who_do_not_ask_any_more_are_forgotten() {
        // A thousandth of a millisecond after its message nothing is left to remember of any of these.
        let limit = limit(1_000_000, 1);
        for number in 0..3 * FORGET_EVERY {
            let _ = limit.count(Some(&number.to_string()));
        }
        assert!(limit.general.as_ref().unwrap().len() < FORGET_EVERY as usize / 2, "{limit:?}");
    }

    #[test]
    fn a_publishers_own_limit_replaces_the_general_one_for_it_alone() {
        for (general, of_others) in [(1, 1..9), (0, 9..10)] {
            let limit = PublisherLimit::new(settings(general, 0), &access("ci", 3)).unwrap();
            let let_through = |publisher| (0..9).filter(|_| limit.count(publisher).is_ok()).count();
            // And what comes back while this counts.
            assert!((3..9).contains(&let_through(Some("ci"))), "of its own");
            assert!(of_others.contains(&let_through(Some("other"))), "{general}");
        }
    }
}
