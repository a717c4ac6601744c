//! The database's clock, asked for now and then.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::{Instant, interval, timeout};

use crate::domain::clock::{DatabaseClock, Offset, SystemClock, Timestamp};
use crate::store::{Store, StoreError};
use crate::telemetry;

/// How often the database is asked for the time.
const MEASURE_EVERY: Duration = Duration::from_secs(30);

/// How often this machine's clock is checked for jumps. It jumps when somebody sets it, and after a pause of the machine, during
/// which the monotonic clock stands still.
const COMPARE_EVERY: Duration = Duration::from_secs(1);

/// After a larger jump the database is asked at once.
const JUMP: Duration = Duration::from_millis(500);

/// How often the database is asked in one measurement.
const SAMPLES: usize = 4;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sets the clock for the first time.
///
/// # Errors
/// The database does not answer, or this machine's clock is further off than `limit`.
pub async fn set(clock: &DatabaseClock, store: &Store, limit: Duration) -> anyhow::Result<()> {
    let offset = measure(clock, store).await.context("cannot compare clocks with the database")?;
    if offset.size() > limit {
        bail!(
            "this machine's clock is {:.0} s off the database's: set it right (NTP), or raise \
             database.max_clock_offset_secs, which is {} s",
            -offset.seconds(),
            limit.as_secs(),
        );
    }
    telemetry::clock_measured(offset);
    Ok(())
}

/// The database's clock for a short command that writes dates: measured once, however far this machine's clock is off.
///
/// # Errors
/// The database does not answer.
pub async fn compared_once(store: &Store) -> Result<DatabaseClock, StoreError> {
    let clock = DatabaseClock::new(Arc::new(SystemClock));
    measure(&clock, store).await?;
    Ok(clock)
}

/// Keeps the clock right, for as long as the process lives.
pub async fn keep(clock: Arc<DatabaseClock>, store: Store) {
    let mut ticks = interval(COMPARE_EVERY);
    let (mut measured_at, mut known) = (Instant::now(), clock.offset());
    loop {
        ticks.tick().await;
        if measured_at.elapsed() < MEASURE_EVERY && !known.has_jumped(clock.offset(), JUMP) {
            continue;
        }
        match measure(&clock, &store).await {
            Ok(offset) => telemetry::clock_measured(offset),
            Err(error) => telemetry::clock_not_measured(&error),
        }
        (measured_at, known) = (Instant::now(), clock.offset());
    }
}

/// The database's time, and when it was asked.
#[derive(Debug, Clone, Copy)]
struct Sample {
    database: Timestamp,
    asked: Instant,
    round_trip: Duration,
}

/// Asks the database for the time, and takes the answer for the middle of the round trip. The error is up to half the round
/// trip, which may include a new connection or a wait for a busy database. So it asks a few times, and takes the fastest
/// answer.
async fn measure(clock: &DatabaseClock, store: &Store) -> Result<Offset, StoreError> {
    let mut soonest = ask(store).await?;
    for _ in 1..SAMPLES {
        // What was answered once is good enough where the database goes away in between.
        if let Ok(sample) = ask(store).await {
            soonest = sooner(soonest, sample);
        }
    }
    Ok(clock.set(soonest.database, soonest.asked + soonest.round_trip / 2))
}

async fn ask(store: &Store) -> Result<Sample, StoreError> {
    let asked = Instant::now();
    let database = timeout(PATIENCE, store.now()).await.unwrap_or(Err(StoreError::NoAnswer))?;
    Ok(Sample { database, asked, round_trip: asked.elapsed() })
}

fn sooner(one: Sample, other: Sample) -> Sample {
    if other.round_trip < one.round_trip { other } else { one }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_that_came_soonest_is_believed() {
        let sample = |database, round_trip| Sample {
            database: Timestamp::from_millis(database),
            asked: Instant::now(),
            round_trip: Duration::from_millis(round_trip),
        };
        let samples = [sample(1, 800), sample(2, 3), sample(3, 40), sample(4, 3)];
        let soonest = samples.into_iter().reduce(sooner).expect("there are some");
        assert_eq!(soonest.database, Timestamp::from_millis(2));
    }
}
