//! What was sent, and what came back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use hdrhistogram::Histogram;

use super::{Amount, Ask};

/// How every reply begins that is good.
pub(crate) const OK: &[u8] = br#"{"status":"ok""#;

/// Up to here latencies are told apart, in microseconds.
const LONGEST_US: u64 = 120_000_000;
/// Latencies are kept to so many digits.
const DIGITS: u8 = 3;
/// Most bytes of a wrong reply that are shown. They hold no secret: the tokens here are made up.
const SHOWN: usize = 300;

/// What came of a run.
pub(crate) struct Heard {
    /// All replies.
    pub(crate) answered: u64,
    /// Replies before the end of sending, and how long that was.
    counted: u64,
    counted_for: Duration,
    pub(crate) latencies: Latencies,
}

impl Heard {
    /// Requests a second, without the last ones that were only waited for.
    pub(crate) fn per_second(&self) -> f64 {
        let counted = u32::try_from(self.counted).unwrap_or(u32::MAX);
        f64::from(counted) / self.counted_for.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// How long replies took.
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    /// So many of a hundred took no longer than this, in microseconds.
    pub(crate) fn percentile_us(&self, percentile: f64) -> u64 {
        self.0.value_at_percentile(percentile)
    }
}

/// Every request of a run.
pub(super) struct Book {
    began: Instant,
    amount: Amount,
    /// When each request was sent, or was to be; none: it is answered.
    sent: Vec<Option<Instant>>,
    answered: u64,
    /// The last reply before the end of sending.
    counted: u64,
    counted_until: Instant,
    latencies: Histogram<u64>,
}

impl Book {
    pub(super) fn new(amount: Amount) -> Result<Self> {
        let latencies = Histogram::new_with_bounds(1, LONGEST_US, DIGITS).context("make a histogram")?;
        let began = Instant::now();
        Ok(Self {
            began,
            amount,
            sent: Vec::with_capacity(1 << 16),
            answered: 0,
            counted: 0,
            counted_until: began,
            latencies,
        })
    }

    /// The number of the next request, which is due at `due`; none when there are no more.
    pub(super) fn enter(&mut self, due: Instant) -> Option<usize> {
        let number = self.sent.len();
        if number as u64 >= self.amount.requests || due.duration_since(self.began) >= self.amount.time {
            return None;
        }
        self.sent.push(Some(due));
        Some(number)
    }

    /// Checks a reply and says how many there are by now.
    pub(super) fn take(&mut self, id: Option<&str>, body: &[u8], ask: &Ask, now: Instant) -> Result<u64> {
        let wrong = |what: &str| anyhow!("{what}: {}", shown(body));
        let number: usize =
            id.and_then(|id| id.parse().ok()).ok_or_else(|| wrong("WRONG: an unknown correlation id"))?;
        let Some(rest) = body.strip_prefix(OK) else { return Err(wrong("WRONG: not ok")) };
        if !ask.is_answered_by(number, rest) {
            return Err(wrong("WRONG: a reply for somebody else"));
        }
        let sent = self.sent.get_mut(number).ok_or_else(|| wrong("WRONG: a reply to no request"))?;
        let sent = sent.take().with_context(|| format!("TWICE: a second reply to request {number}"))?;
        let took = now.saturating_duration_since(sent).as_micros();
        self.latencies.saturating_record(u64::try_from(took).unwrap_or(LONGEST_US).max(1));
        self.answered += 1;
        if now.duration_since(self.began) < self.amount.time {
            self.counted = self.answered;
            self.counted_until = now;
        }
        Ok(self.answered)
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.answered < self.sent.len() as u64
    }

    pub(super) fn missing(&self) -> String {
        format!("{} of {} replies", self.sent.len() as u64 - self.answered, self.sent.len())
    }

    pub(super) fn close(mut self) -> Heard {
        if self.counted == 0 {
            // A round so short that no reply came before its end.
            (self.counted, self.counted_until) = (self.answered, Instant::now());
        }
        Heard {
            answered: self.answered,
            counted: self.counted,
            counted_for: self.counted_until.duration_since(self.began),
            latencies: Latencies(self.latencies),
        }
    }
}

fn shown(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(SHOWN)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Users;

    const GOOD: &[u8] = br#"{"status":"ok","user_id":"u-00000000","host":"git.example.org"}"#;

    fn take(book: &mut Book, id: Option<&str>, body: &[u8]) -> Result<u64, String> {
        let ask = Ask::Token { host: "git.example.org", users: Users::in_turn(0, 1) };
        book.take(id, body, &ask, Instant::now()).map_err(|error| error.to_string())
    }

    fn book(requests: usize) -> Book {
        let mut book = Book::new(Amount::of_requests(u64::MAX)).unwrap();
        for _ in 0..requests {
            book.enter(Instant::now()).unwrap();
        }
        book
    }

    #[test]
    fn good_replies_are_counted_until_all_are_there() {
        let mut book = book(2);
        assert_eq!(take(&mut book, Some("1"), GOOD), Ok(1));
        assert!(book.is_waiting());
        assert_eq!(take(&mut book, Some("0"), br#"{"status":"ok","filling":"x"}"#), Ok(2));
        assert!(!book.is_waiting());
    }

    #[test]
    fn a_reply_that_is_no_good_ends_the_run_and_is_shown() {
        let error = br#"{"status":"error","error":{"code":"internal"}}"#;
        let other = br#"{"status":"ok","user_id":"u-00000001"}"#;
        for (id, body, complaint) in [
            (Some("0"), error.as_slice(), "WRONG: not ok: {\"status\":\"error\""),
            (Some("0"), other, "WRONG: a reply for somebody else"),
            (Some("1"), GOOD, "WRONG: a reply to no request"),
            (Some("x"), GOOD, "WRONG: an unknown correlation id"),
            (None, GOOD, "WRONG: an unknown correlation id"),
        ] {
            let said = take(&mut book(1), id, body).unwrap_err();
            assert!(said.starts_with(complaint), "{said}");
        }
    }

    #[test]
    fn a_second_reply_ends_the_run() {
        let mut book = book(2);
        assert_eq!(take(&mut book, Some("0"), GOOD), Ok(1));
        assert_eq!(take(&mut book, Some("0"), GOOD), Err("TWICE: a second reply to request 0".to_owned()));
    }

    #[test]
    fn no_request_goes_out_after_the_end() {
        let mut few = Book::new(Amount::of_requests(1)).unwrap();
        assert_eq!((few.enter(Instant::now()), few.enter(Instant::now())), (Some(0), None));
        let mut short = Book::new(Amount::of_time(Duration::from_secs(1))).unwrap();
        let (in_time, late) = (Instant::now(), Instant::now() + Duration::from_secs(2));
        assert_eq!((short.enter(in_time), short.enter(late)), (Some(0), None));
    }

    #[test]
    fn a_latency_counts_from_when_the_request_was_to_be_sent() {
        let mut book = Book::new(Amount::of_requests(1)).unwrap();
        let due = Instant::now();
        book.enter(due).unwrap();
        let ask = Ask::Token { host: "git.example.org", users: Users::in_turn(0, 1) };
        book.take(Some("0"), GOOD, &ask, due + Duration::from_millis(250)).unwrap();
        let p50 = book.close().latencies.percentile_us(50.0);
        assert!((250_000..251_000).contains(&p50), "{p50}");
    }
}
