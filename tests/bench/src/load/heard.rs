//! What was sent, and what came back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use hdrhistogram::Histogram;
use lapin::message::Delivery;

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
    pub(super) fn take(&mut self, reply: &Delivery, ask: &Ask, now: Instant) -> Result<u64> {
        let body = reply.data.as_slice();
        let wrong = |what: &str| anyhow!("{what}: {}", shown(body));
        let id = reply.properties.correlation_id().as_ref().map(|id| id.as_str());
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
