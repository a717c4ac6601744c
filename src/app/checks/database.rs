//! The database: what a worker proves at its start, and how well the database serves.

use std::sync::Arc;
use std::time::Duration;

use sea_orm::{ConnectionTrait, DatabaseBackend, DatabaseConnection, DbErr, Statement};
use tokio::time::{Instant, timeout};

use crate::domain::clock::{DatabaseClock, SystemClock};
use crate::domain::finding::{Finding, Verdict};
use crate::domain::problem::Problem;
use crate::domain::secret::{ExposeSecret, KeyRing};
use crate::settings;
use crate::store::Store;
use crate::store::database::{self, Fault, Place, Unable, able, clock_sync, in_words};

/// An answer that takes longer makes requests slow.
const SLOW: Duration = Duration::from_millis(50);

/// What was found, and a connection where the tables can be read.
pub(super) struct Looked {
    pub(super) findings: Vec<Finding>,
    pub(super) db: Option<DatabaseConnection>,
}

pub(super) async fn look(settings: &settings::Database, limit: Duration) -> Looked {
    let place = Place::new(settings);
    // A look must not make the file.
    if let Some(Unable { problem, .. }) = database::missing_file(settings)
        && place.folder().is_dir()
    {
        return Looked { findings: vec![Finding::warning("database", problem)], db: None };
    }
    let opened = timeout(limit, database::open(settings)).await;
    let db = match opened.unwrap_or_else(|_| Err(place.unable(Fault::NoAnswer, ""))) {
        Ok(db) => db,
        Err(Unable { problem, .. }) => {
            return Looked { findings: vec![Finding::wrong("database", problem)], db: None };
        }
    };
    let checks = async {
        let written = proved("database writes", "takes them", able::may_be_written(&db, &place).await);
        let rights =
            proved("database rights", "all that a worker needs", able::may_be_used(&db, &place).await);
        let migrated = able::is_migrated(&db, &place, able::Newer::Refused).await;
        let is_readable = migrated.is_ok();
        let migrated = match &rights.verdict {
            Verdict::Wrong(_) if !is_readable => Finding::not_looked("migrations", "the rights come first"),
            _ => proved("migrations", "all are applied", migrated),
        };
        let serves = serves(&db, &place).await;
        let findings = vec![
            serves,
            written,
            rights,
            migrated,
            clock(&db, settings).await,
            connections(&db, &place, settings).await,
        ];
        (findings, is_readable)
    };
    if let Ok((findings, is_readable)) = timeout(limit, checks).await {
        return Looked { findings, db: is_readable.then_some(db) };
    }
    let why = format!("no answer within {} s", limit.as_secs());
    Looked { findings: vec![Finding::not_looked("database", why)], db: None }
}

fn proved(check: &str, how: &str, proof: Result<(), Unable>) -> Finding {
    match proof {
        Ok(()) => Finding::good(check, how),
        Err(Unable { problem, .. }) => Finding::wrong(check, problem),
    }
}

/// Version and latency.
async fn serves(db: &DatabaseConnection, place: &Place) -> Finding {
    const CHECK: &str = "database";
    let question = match db.get_database_backend() {
        DatabaseBackend::Postgres => "SELECT current_setting('server_version') AS answer",
        DatabaseBackend::MySql => "SELECT VERSION() AS answer",
        _ => "SELECT sqlite_version() AS answer",
    };
    // The first answer may wait for a connection.
    let asked: Result<String, DbErr> = async {
        answer::<String>(db, question).await?;
        answer(db, question).await
    }
    .await;
    let begin = Instant::now();
    let again = answer::<String>(db, question).await;
    let took = begin.elapsed();
    match asked.and_then(|version| again.map(|_| version)) {
        Err(error) => Finding::wrong(CHECK, place.unable(Fault::of(&error), &in_words(&error)).problem),
        Ok(version) => {
            let how = format!("{} {version} at {} answers in {took:.1?}", place.product(), place.url());
            if took < SLOW {
                return Finding::good(CHECK, how);
            }
            let cause = "it is far away or loaded; a request needs at least two answers";
            Finding::warning(
                CHECK,
                Problem::new(how, cause, format!("look at the load of {}", place.product())),
            )
        }
    }
}

async fn clock(db: &DatabaseConnection, settings: &settings::Database) -> Finding {
    const CHECK: &str = "clock";
    // Nothing is decrypted for the time, so any key will do.
    let Ok(any_key) = KeyRing::parse(KeyRing::generate("doctor").expose_secret()) else {
        return Finding::not_looked(CHECK, "no store without a key");
    };
    let store = Store::new(db.clone(), any_key);
    let clock = DatabaseClock::new(Arc::new(SystemClock));
    match clock_sync::set(&clock, &store, settings.max_clock_offset).await {
        Ok(()) => {
            let how = format!("{:+.3} s beside the database's, which counts", -clock.offset().seconds());
            if clock.offset().is_notable() {
                let problem =
                    Problem::new(how, "this machine's clock or the database's is off", "set both by NTP");
                return Finding::warning(CHECK, problem);
            }
            Finding::good(CHECK, how)
        }
        Err(error) => Finding::wrong(
            CHECK,
            Problem::new("no worker would start", error.to_string(), "set the clocks by NTP"),
        ),
    }
}

/// Whether the server has room for a worker's pools.
async fn connections(db: &DatabaseConnection, place: &Place, settings: &settings::Database) -> Finding {
    const CHECK: &str = "connections";
    let (limit, used) = match db.get_database_backend() {
        DatabaseBackend::Postgres => (
            "SELECT CAST(current_setting('max_connections') AS BIGINT) AS answer",
            "SELECT COALESCE(SUM(numbackends), 0)::BIGINT AS answer FROM pg_stat_database",
        ),
        DatabaseBackend::MySql => (
            "SELECT CAST(@@max_connections AS SIGNED) AS answer",
            "SELECT CAST(VARIABLE_VALUE AS SIGNED) AS answer FROM information_schema.GLOBAL_STATUS \
             WHERE VARIABLE_NAME = 'THREADS_CONNECTED'",
        ),
        _ => return Finding::good(CHECK, "a file has no limit of them"),
    };
    let counts = async { Ok::<_, DbErr>((answer::<i64>(db, limit).await?, answer::<i64>(db, used).await?)) };
    let (limit, used) = match counts.await {
        Ok(counts) => counts,
        Err(error) => return Finding::not_looked(CHECK, in_words(&error)),
    };
    let ours = database::connections_of_a_worker(settings);
    let how = format!("{used} of {limit} are in use; a worker opens up to {ours}");
    if used + i64::from(ours) <= limit {
        return Finding::good(CHECK, how);
    }
    let next = format!("raise max_connections of {}, or lower database.max_connections", place.product());
    Finding::warning(CHECK, Problem::new(how, "there may be too few for one more worker", next))
}

async fn answer<T: sea_orm::TryGetable>(db: &DatabaseConnection, question: &str) -> Result<T, DbErr> {
    let row = db.query_one_raw(Statement::from_string(db.get_database_backend(), question)).await?;
    row.ok_or_else(|| DbErr::RecordNotFound("an answer".to_owned()))?.try_get("", "answer")
}
