//! What was sent, and what came back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use hdrhistogram::Histogram;

use super::{
    Amount, Ask,
    ask::{Answer, Part, Request},
};

/// Up to here latencies are told apart, in microseconds.
const LONGEST_US: u64 = 120_000_000;
/// Latencies are kept to so many digits.
const DIGITS: u8 = 3;
/// Most bytes of a wrong reply that are shown. They hold no secret: the tokens here are made up.
const SHOWN: usize = 300;
/// So many slow requests are under way before a worker refuses one. It refuses from 128 on; the rest is for replies that are
/// here before their messages are acked.
const SLOW_BEFORE_A_REFUSAL: usize = 100;

/// What came of a run.
pub(crate) struct Heard {
    /// All replies.
    pub(crate) answered: u64,
    /// Those of them that refused a slow request.
    pub(crate) refused: u64,
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

/// Every request of one generator, run after run.
pub(super) struct Book {
    /// The number of the first request.
    first: usize,
    /// Each request, and when it was sent or was to be; none: it is answered.
    sent: Vec<Option<(Instant, Request)>>,
    /// How many are without a reply, but for the slow ones.
    in_flight: usize,
    slow: usize,
    most_slow: usize,
}

/// One run, while it goes on.
pub(super) struct Run {
    began: Instant,
    amount: Amount,
    sent: u64,
    /// The counts up to now.
    heard: Heard,
    /// The last reply before the end of sending.
    counted_until: Instant,
}

impl Run {
    pub(super) fn begin(amount: Amount) -> Result<Self> {
        let latencies = Histogram::new_with_bounds(1, LONGEST_US, DIGITS).context("make a histogram")?;
        let began = Instant::now();
        let latencies = Latencies(latencies);
        let heard = Heard { answered: 0, refused: 0, counted: 0, counted_for: Duration::ZERO, latencies };
        Ok(Self { began, amount, sent: 0, heard, counted_until: began })
    }

    /// Whether a request that is due then is no part of it any more.
    fn is_over(&self, due: Instant) -> bool {
        self.sent >= self.amount.requests || due.duration_since(self.began) >= self.amount.time
    }

    /// Whether another request that is due then is part of it. It counts as sent.
    pub(super) fn enter(&mut self, due: Instant) -> bool {
        let is_over = self.is_over(due);
        self.sent += u64::from(!is_over);
        !is_over
    }

    pub(super) fn take(&mut self, sent: Instant, part: Part, answer: Answer, now: Instant) {
        if part == Part::Timed {
            let took = now.saturating_duration_since(sent).as_micros();
            self.heard.latencies.0.saturating_record(u64::try_from(took).unwrap_or(LONGEST_US).max(1));
        }
        self.heard.answered += 1;
        self.heard.refused += u64::from(answer == Answer::Refused);
        if now.duration_since(self.began) < self.amount.time {
            self.heard.counted = self.heard.answered;
            self.counted_until = now;
        }
    }

    /// How many replies there are by now.
    pub(super) const fn answered(&self) -> u64 {
        self.heard.answered
    }

    pub(super) fn end(mut self) -> Heard {
        if self.heard.counted == 0 {
            // A round so short that no reply came before its end.
            (self.heard.counted, self.counted_until) = (self.heard.answered, Instant::now());
        }
        Heard { counted_for: self.counted_until.duration_since(self.began), ..self.heard }
    }
}

impl Book {
    /// Without a request. The first one will have this number.
    pub(super) const fn new(first: usize) -> Self {
        Self { first, sent: Vec::new(), in_flight: 0, slow: 0, most_slow: 0 }
    }

    /// The next request, which is due at `due`, and its number; none when the run is over.
    pub(super) fn enter(&mut self, ask: &Ask, run: &mut Run, due: Instant) -> Option<(usize, Request)> {
        if !run.enter(due) {
            return None;
        }
        let number = self.next_number();
        let request = ask.request(number);
        self.sent.push(Some((due, request)));
        *self.under_way(request.part) += 1;
        self.most_slow = self.most_slow.max(self.slow);
        Some((number, request))
    }

    /// Checks a reply.
    pub(super) fn take(&mut self, id: Option<&str>, body: &[u8], run: &mut Run, now: Instant) -> Result<()> {
        let wrong = |what: &str| anyhow!("WRONG: {what}: {}", shown(body));
        let number: usize =
            id.and_then(|id| id.parse().ok()).ok_or_else(|| wrong("an unknown correlation id"))?;
        let place = number.checked_sub(self.first).and_then(|index| self.sent.get_mut(index));
        let place = place.ok_or_else(|| wrong("a reply to no request"))?;
        let (sent, request) =
            place.take().with_context(|| format!("TWICE: a second reply to request {number}"))?;
        let answer = request.read(body).map_err(wrong)?;
        if answer == Answer::Refused && self.most_slow < SLOW_BEFORE_A_REFUSAL {
            return Err(wrong("refused though few wait"));
        }
        *self.under_way(request.part) -= 1;
        run.take(sent, request.part, answer, now);
        Ok(())
    }

    fn under_way(&mut self, part: Part) -> &mut usize {
        match part {
            Part::Timed | Part::Untimed => &mut self.in_flight,
            Part::Slow => &mut self.slow,
        }
    }

    /// How many requests are without a reply, but for the slow ones.
    pub(super) const fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// How many slow ones are.
    pub(super) const fn slow(&self) -> usize {
        self.slow
    }

    /// The number of the next request.
    pub(super) const fn next_number(&self) -> usize {
        self.first + self.sent.len()
    }

    pub(super) fn missing(&self) -> String {
        format!("{} of {} replies", self.in_flight + self.slow, self.sent.len())
    }
}

fn shown(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(SHOWN)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{
        Users,
        ask::{Expected, Message},
    };

    const GOOD: &[u8] = br#"{"status":"ok","user_id":"u-00000000","host":"git.example.org"}"#;
    const REFUSED: &[u8] = br#"{"status":"error","user_id":"u-00000000","error":{"code":"provider_unavailable","retryable":true}}"#;
    const ASK: Ask = Ask::Token { host: "git.example.org", users: Users::in_turn(0, 1) };
    const FIRST: usize = 7;

    /// A book and its run.
    struct Open(Book, Run);

    impl Open {
        fn with(requests: usize) -> Self {
            let mut open = Self(Book::new(FIRST), Run::begin(Amount::of_requests(u64::MAX)).unwrap());
            for _ in 0..requests {
                open.0.enter(&ASK, &mut open.1, Instant::now()).unwrap();
            }
            open
        }

        /// One that waits for a slow host.
        fn with_slow(requests: usize) -> Self {
            let request = Request {
                message: Message::Token("git.example.org"),
                user: 0,
                expected: Expected::RefreshedOrRefused,
                part: Part::Slow,
            };
            let mut open = Self::with(0);
            open.0.sent = vec![Some((Instant::now(), request)); requests];
            (open.0.slow, open.0.most_slow) = (requests, requests);
            open
        }

        fn take(&mut self, id: Option<&str>, body: &[u8]) -> Result<u64, String> {
            let Self(book, run) = self;
            book.take(id, body, run, Instant::now()).map_err(|error| error.to_string())?;
            Ok(run.answered())
        }
    }

    #[test]
    fn good_replies_are_counted_until_all_are_there() {
        let mut open = Open::with(2);
        assert_eq!(open.take(Some("8"), GOOD), Ok(1));
        assert_eq!(open.0.in_flight(), 1);
        assert_eq!(open.take(Some("7"), br#"{"status":"ok","filling":"x"}"#), Ok(2));
        assert_eq!(open.0.in_flight(), 0);
    }

    #[test]
    fn a_reply_that_is_no_good_ends_the_run_and_is_shown() {
        let error = br#"{"status":"error","error":{"code":"internal"}}"#;
        let other = br#"{"status":"ok","user_id":"u-00000001"}"#;
        for (id, body, complaint) in [
            (Some("7"), error.as_slice(), "WRONG: not ok: {\"status\":\"error\""),
            (Some("7"), other, "WRONG: a reply for somebody else"),
            (Some("8"), GOOD, "WRONG: a reply to no request"),
            (Some("6"), GOOD, "WRONG: a reply to no request"),
            (Some("x"), GOOD, "WRONG: an unknown correlation id"),
            (None, GOOD, "WRONG: an unknown correlation id"),
        ] {
            let said = Open::with(1).take(id, body).unwrap_err();
            assert!(said.starts_with(complaint), "{said}");
        }
    }

    #[test]
    fn a_second_reply_ends_the_run() {
        let mut open = Open::with(2);
        assert_eq!(open.take(Some("7"), GOOD), Ok(1));
        assert_eq!(open.take(Some("7"), GOOD), Err("TWICE: a second reply to request 7".to_owned()));
    }

    #[test]
    fn a_slow_request_is_refused_only_where_many_wait() {
        assert_eq!(Open::with_slow(SLOW_BEFORE_A_REFUSAL).take(Some("7"), REFUSED), Ok(1));
        let said = Open::with_slow(SLOW_BEFORE_A_REFUSAL - 1).take(Some("7"), REFUSED).unwrap_err();
        assert!(said.starts_with("WRONG: refused though few wait"), "{said}");
    }

    #[test]
    fn no_request_goes_out_after_the_end() {
        let enter = |run: &mut Run, due| Book::new(FIRST).enter(&ASK, run, due).map(|(number, _)| number);
        let mut few = Run::begin(Amount::of_requests(1)).unwrap();
        let now = Instant::now();
        assert_eq!((enter(&mut few, now), enter(&mut few, now)), (Some(FIRST), None));
        let mut short = Run::begin(Amount::of_time(Duration::from_secs(1))).unwrap();
        let (in_time, late) = (Instant::now(), Instant::now() + Duration::from_secs(2));
        assert_eq!((enter(&mut short, in_time), enter(&mut short, late)), (Some(FIRST), None));
    }

    #[test]
    fn a_latency_counts_from_when_the_request_was_to_be_sent() {
        let Open(mut book, mut run) = Open::with(0);
        let due = Instant::now();
        book.enter(&ASK, &mut run, due).unwrap();
        book.take(Some("7"), GOOD, &mut run, due + Duration::from_millis(250)).unwrap();
        let p50 = run.end().latencies.percentile_us(50.0);
        assert!((250_000..251_000).contains(&p50), "{p50}");
    }
}
