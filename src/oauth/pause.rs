//! How long a provider asks us to wait, in the header fields that providers use.

use std::time::Duration;

use chrono::DateTime;
use hyper::HeaderMap;
use hyper::header::RETRY_AFTER;

use crate::domain::clock::Timestamp;

/// Longer pauses are cut to this, so that they fit a date. The settings allow far less.
const LONGEST: Duration = Duration::from_hours(366 * 24);

/// A `reset` below this many seconds counts from now, not from 1970.
const LONGEST_DELTA: u64 = 366 * 24 * 3600;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Pause {
    pub(super) retry_after: Option<Duration>,
    /// The rate limit is used up, so the answer refuses nothing but the rate.
    pub(super) exhausted: bool,
}

impl Pause {
    pub(super) fn read(headers: &HeaderMap, status: u16, now: Timestamp) -> Self {
        let text = |name: &str| headers.get(name)?.to_str().ok();
        // GitHub: https://docs.github.com/rest/using-the-rest-api/rate-limits-for-the-rest-api
        // GitLab and Gitea use the names of the IETF draft (draft-ietf-httpapi-ratelimit-headers).
        let both = |suffix: &str| {
            ["x-ratelimit-", "ratelimit-", "x-rate-limit-"]
                .into_iter()
                .find_map(|prefix| text(&format!("{prefix}{suffix}")))
        };
        let exhausted = both("remaining").is_some_and(|left| left.trim() == "0");
        let reset =
            both("reset").filter(|_| exhausted || status == 429).and_then(|reset| read_reset(reset, now));
        let retry_after =
            headers.get(RETRY_AFTER).and_then(|value| read_retry_after(value.to_str().ok()?, now));
        // A date in the past asks for no pause, but our clock may be wrong: it does not allow a request at once either.
        Self { retry_after: retry_after.or(reset).filter(|pause| !pause.is_zero()), exhausted }
    }
}

/// `Retry-After` (RFC 9110, section 10.2.3): seconds, also with a fraction, or a date in any of its three forms.
fn read_retry_after(header: &str, now: Timestamp) -> Option<Duration> {
    let header = header.trim();
    if let Some(seconds) = read_seconds(header) {
        return Some(seconds);
    }
    let at = match httpdate::parse_http_date(header) {
        Ok(at) => DateTime::<chrono::Utc>::from(at).timestamp_millis(),
        // With a time zone other than GMT.
        Err(_) => DateTime::parse_from_rfc2822(header).ok()?.timestamp_millis(),
    };
    Some(Timestamp::from_millis(at).since(now).min(LONGEST))
}

/// When the rate limit resets: seconds since 1970, or from now.
fn read_reset(header: &str, now: Timestamp) -> Option<Duration> {
    let seconds = header.trim().parse::<u64>().ok()?;
    if seconds < LONGEST_DELTA {
        return Some(Duration::from_secs(seconds));
    }
    let at = Timestamp::from_millis(i64::try_from(seconds.checked_mul(1_000)?).ok()?);
    Some(at.since(now).min(LONGEST))
}

/// Rounded up, and at most [`LONGEST`].
fn read_seconds(text: &str) -> Option<Duration> {
    let is_number = text.starts_with(|sign: char| sign.is_ascii_digit())
        && text.chars().all(|sign| sign.is_ascii_digit() || sign == '.');
    let seconds = text.parse::<f64>().ok().filter(|_| is_number)?;
    Some(Duration::try_from_secs_f64(seconds.ceil()).map_or(LONGEST, |seconds| seconds.min(LONGEST)))
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    const NOW: &str = "2015-10-21T07:28:00Z";

    fn read(status: u16, headers: &[(&str, &str)]) -> Pause {
        let headers = headers.iter().map(|(name, value)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
        });
        Pause::read(&headers.collect(), status, Timestamp::parse_rfc3339(NOW).unwrap())
    }

    #[test]
    fn every_form_of_retry_after_is_read() {
        let secs = |secs| Some(Duration::from_secs(secs));
        for (value, expected) in [
            ("120", secs(120)),
            (" 0 ", None),
            ("1.5", secs(2)),
            ("99999999999999", Some(LONGEST)),
            ("99999999999999999999999999999999999999", Some(LONGEST)),
            ("Wed, 21 Oct 2015 07:28:30 GMT", secs(30)),
            ("Wednesday, 21-Oct-15 07:28:30 GMT", secs(30)),
            ("Wed Oct 21 07:28:30 2015", secs(30)),
            ("Wed, 21 Oct 2015 09:28:30 +0200", secs(30)),
            ("Wed, 21 Oct 2015 07:27:00 GMT", None),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(LONGEST)),
            ("-5", None),
            ("1e3", None),
            ("inf", None),
            ("soon", None),
            ("", None),
        ] {
            let pause = read(429, &[("retry-after", value)]);
            assert_eq!(pause, Pause { retry_after: expected, exhausted: false }, "{value:?}");
        }
    }

    #[test]
    fn without_retry_after_the_reset_time_of_an_exhausted_rate_limit_counts() {
        let minute = Some(Duration::from_secs(60));
        for (status, headers, retry_after, exhausted) in [
            (403, &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1445412540")][..], minute, true),
            (403, &[("x-ratelimit-remaining", "7"), ("x-ratelimit-reset", "1445412540")], None, false),
            (403, &[("x-ratelimit-reset", "1445412540")], None, false),
            (429, &[("x-ratelimit-reset", "1445412540")], minute, false),
            (429, &[("RateLimit-Reset", "60")], minute, false),
            (429, &[("RateLimit-Reset", "1445412540")], minute, false),
            (429, &[("x-ratelimit-reset", "18446744073709551615")], None, false),
            (429, &[("x-ratelimit-reset", "tomorrow")], None, false),
            (429, &[("retry-after", "60"), ("x-ratelimit-reset", "1445419999")], minute, false),
            (403, &[("x-ratelimit-remaining", "0")], None, true),
            (403, &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1445412470")], None, true),
        ] {
            assert_eq!(read(status, headers), Pause { retry_after, exhausted }, "{status} {headers:?}");
        }
    }
}
