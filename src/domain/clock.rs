//! Time as a value: [`Timestamp`], and the clocks it comes from.
//!
//! Every rule of this crate takes `now` as an argument. The only calls of the machine's clock are in
//! [`SystemClock`]; `clippy.toml` bans them elsewhere, so that any rule can be tested at any time of day.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tokio::time::Instant;

/// A point in time: milliseconds since the Unix epoch, UTC.
///
/// Messages show milliseconds, and every database keeps an integer of milliseconds exactly. (MariaDB's own date types
/// truncate to seconds.) So no conversion rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// Reads an RFC 3339 date with any offset. Digits beyond milliseconds are cut off.
    pub fn parse_rfc3339(text: &str) -> Result<Self, chrono::ParseError> {
        DateTime::parse_from_rfc3339(text).map(|date| Self(date.timestamp_millis()))
    }

    /// How long ago `earlier` was. Zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Saturates instead of overflowing.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// Saturates instead of overflowing.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }
}

/// RFC 3339 in UTC with milliseconds: `2020-01-01T01:05:00.000Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match DateTime::<Utc>::from_timestamp_millis(self.0) {
            Some(date) => f.write_str(&date.to_rfc3339_opts(SecondsFormat::Millis, true)),
            None => write!(f, "{} ms after the epoch", self.0),
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse_rfc3339(&text).map_err(|error| {
            de::Error::custom(format_args!("not an RFC 3339 date like 2020-01-01T01:05:00.000Z: {error}"))
        })
    }
}

impl JsonSchema for Timestamp {
    fn schema_name() -> Cow<'static, str> {
        "Timestamp".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "date-time",
            "description": "RFC 3339; written in UTC with milliseconds (2020-01-01T01:05:00.000Z), read with any offset",
        })
    }
}

/// Where `now` comes from.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "the one home of the machine's clock")]
    fn now(&self) -> Timestamp {
        Timestamp(Utc::now().timestamp_millis())
    }
}

/// The database's clock, as this process knows it.
///
/// Workers compare leases and reservations with dates that other workers wrote, so all workers follow one clock. They ask
/// the database now and then ([`DatabaseClock::set`]). In between they count by the monotonic clock: setting this machine's
/// clock moves no lease.
#[derive(Debug)]
pub struct DatabaseClock {
    started: Instant,
    /// What the database's clock showed at `started`, in ms.
    at_start: AtomicI64,
    own: Arc<dyn Clock>,
}

impl DatabaseClock {
    /// Shows the time of `own` until [`DatabaseClock::set`] is called for the first time.
    pub fn new(own: Arc<dyn Clock>) -> Self {
        Self { started: Instant::now(), at_start: AtomicI64::new(own.now().as_millis()), own }
    }

    /// The database said that it was `database` at `when`. Returns how far this machine's clock is from that.
    pub fn set(&self, database: Timestamp, when: Instant) -> Offset {
        let since_start = when.saturating_duration_since(self.started);
        self.at_start.store(database.as_millis().saturating_sub(millis(since_start)), Ordering::SeqCst);
        self.offset()
    }

    /// How far this machine's clock is from the database's.
    pub fn offset(&self) -> Offset {
        Offset { ms: self.now().as_millis().saturating_sub(self.own.now().as_millis()) }
    }
}

impl Clock for DatabaseClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.at_start.load(Ordering::SeqCst).saturating_add(millis(self.started.elapsed())))
    }
}

/// How far one clock is from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offset {
    ms: i64,
}

impl Offset {
    /// An operator is told of an offset above this.
    const NOTABLE: Duration = Duration::from_secs(1);

    /// In seconds. Positive if the database's clock is ahead.
    #[allow(clippy::cast_precision_loss, reason = "exact for the next hundred thousand years")]
    pub fn seconds(self) -> f64 {
        self.ms as f64 / 1_000.0
    }

    /// Without its sign.
    pub const fn size(self) -> Duration {
        Duration::from_millis(self.ms.unsigned_abs())
    }

    /// Whether `to` differs from this offset by more than `by`.
    pub const fn has_jumped(self, to: Self, by: Duration) -> bool {
        self.ms.abs_diff(to.ms) as u128 > by.as_millis()
    }

    pub fn is_notable(self) -> bool {
        self.size() > Self::NOTABLE
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// A clock that moves only when told, for tests.
#[derive(Debug)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    pub const fn at(now: Timestamp) -> Self {
        Self(AtomicI64::new(now.0))
    }

    pub fn set(&self, now: Timestamp) {
        self.0.store(now.0, Ordering::SeqCst);
    }

    pub fn advance(&self, by: Duration) {
        self.set(self.now().plus(by));
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_is_written_in_utc_with_milliseconds_and_read_with_any_offset() {
        let noon = Timestamp::parse_rfc3339("2020-01-01T02:05:00+01:00").unwrap();
        assert_eq!(noon.to_string(), "2020-01-01T01:05:00.000Z");
        assert_eq!(serde_json::from_str::<Timestamp>("\"2020-01-01T01:05:00.0009Z\"").unwrap(), noon);
        let error = serde_json::from_str::<Timestamp>("\"tomorrow\"").unwrap_err().to_string();
        assert!(error.contains("RFC 3339"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_database_clock_is_not_moved_by_changes_of_the_machines_clock() {
        let own = Arc::new(ManualClock::at(Timestamp::from_millis(0)));
        let clock = DatabaseClock::new(Arc::clone(&own) as Arc<dyn Clock>);
        assert_eq!((clock.now(), clock.offset().size()), (own.now(), Duration::ZERO));
        let asked = Instant::now();
        tokio::time::advance(Duration::from_millis(40)).await;
        // The answer tells the time in the middle of the 40 ms.
        let offset = clock.set(Timestamp::from_millis(600_020), asked + Duration::from_millis(20));
        assert_eq!(
            (clock.now(), offset.size()),
            (Timestamp::from_millis(600_040), Duration::from_millis(600_040))
        );
        own.advance(Duration::from_hours(2));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(clock.now(), Timestamp::from_millis(605_040));
        assert!(clock.offset().is_notable() && clock.offset().seconds() < 0.0, "{:?}", clock.offset());
    }

    #[test]
    fn time_saturates_instead_of_wrapping() {
        let last = Timestamp::from_millis(i64::MAX);
        assert_eq!(last.plus(Duration::MAX), last);
        assert_eq!(Timestamp::from_millis(0).since(last), Duration::ZERO);
        assert_eq!(last.since(Timestamp::from_millis(i64::MIN)).as_millis(), i64::MAX as u128);
    }
}
