//! How many statements a database was asked to run.

use anyhow::{Context, Result};
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, Statement};
use tokenkeeper_testkit::{
    database::Kind,
    program::Worker,
    wait::{PATIENCE, eventually},
};
use url::Url;

/// The worker's own counter, in Prometheus' text form, without labels.
const COUNTER: &str = "tokenkeeper_database_statements_total";

/// Where a database, or a worker, says it.
pub(crate) enum Statements {
    /// Each statement is a transaction of its own. What a connection did is counted within seconds, and at its end.
    Postgres { connection: DatabaseConnection, database: String },
    /// The whole server's: other people's as well.
    MariaDb { connection: DatabaseConnection },
    /// A file counts nothing; a worker may.
    Sqlite,
}

impl Statements {
    /// Connects beside the database that is counted for, so that the asking is not counted.
    pub(crate) async fn of(kind: Kind, url: &str) -> Result<Self> {
        Ok(match kind {
            Kind::Sqlite => Self::Sqlite,
            Kind::Postgres => {
                let mut url = Url::parse(url).context("the database's URL")?;
                let database = url.path().trim_start_matches('/').to_owned();
                url.set_path("postgres");
                Self::Postgres { connection: connect(url.as_str()).await?, database }
            }
            Kind::MariaDb => Self::MariaDb { connection: connect(url).await? },
        })
    }

    /// Whether the count is up to date only once the workers have ended.
    pub(crate) const fn is_late(&self) -> bool {
        matches!(self, Self::Postgres { .. })
    }

    /// Waits until everything is counted that ended workers did: a connection tells its last statements when it ends.
    pub(crate) async fn settle(&self) {
        let Self::Postgres { connection, database } = self else { return };
        let sql = format!("select count(*) as n from pg_stat_activity where datname = '{database}'");
        let ended = async || number(connection, &sql, "n").await.is_ok_and(|open| open == 0).then_some(());
        eventually("the workers' database connections to end", PATIENCE, ended).await;
    }

    /// How many there have been; none where nobody counts.
    pub(crate) async fn count(&self, workers: &[&Worker]) -> Result<Option<u64>> {
        match self {
            Self::Postgres { connection, database } => {
                let sql = format!(
                    "select coalesce(sum(xact_commit + xact_rollback), 0)::bigint as n \
                     from pg_stat_database where datname = '{database}'"
                );
                Ok(Some(number(connection, &sql, "n").await?))
            }
            Self::MariaDb { connection } => {
                let sql = "select cast(variable_value as signed) as n from information_schema.global_status \
                           where variable_name = 'QUESTIONS'";
                Ok(Some(number(connection, sql, "n").await?))
            }
            Self::Sqlite => {
                let mut total = None;
                for worker in workers {
                    total =
                        counted(&worker.metrics().await?).map(|count| count + total.unwrap_or(0)).or(total);
                }
                Ok(total)
            }
        }
    }
}

/// Opens one connection.
pub(crate) async fn connect(url: &str) -> Result<DatabaseConnection> {
    let mut options = ConnectOptions::new(url);
    options.max_connections(1).sqlx_logging(false);
    Database::connect(options).await.context("connect to the database")
}

/// Which server it is, with its version.
pub(crate) async fn version(kind: Kind, url: &str) -> Result<String> {
    let connection = connect(url).await?;
    let sql = match kind {
        Kind::Sqlite => "select sqlite_version() as v",
        // How much of a large table it keeps in memory says more about its speed than the version.
        Kind::Postgres => {
            "select split_part(current_setting('server_version'), ' ', 1) || ' with shared_buffers of ' \
                    || current_setting('shared_buffers') as v"
        }
        Kind::MariaDb => "select version() as v",
    };
    let statement = Statement::from_string(connection.get_database_backend(), sql);
    let row = connection.query_one_raw(statement).await.context("ask the database for its version")?;
    let version: String = row.context("the database tells no version")?.try_get("", "v")?;
    Ok(format!("{kind} {}", version.split('-').next().unwrap_or_default()))
}

/// The one number that a query gives.
pub(crate) async fn number(connection: &DatabaseConnection, sql: &str, column: &str) -> Result<u64> {
    let statement = Statement::from_string(connection.get_database_backend(), sql);
    let row =
        connection.query_one_raw(statement).await.with_context(|| format!("ask the database: {sql}"))?;
    let number: i64 = row.context("the database gives no row")?.try_get("", column)?;
    u64::try_from(number).context("a count is negative")
}

fn counted(metrics: &str) -> Option<u64> {
    total(COUNTER, metrics)
}

/// A counter or gauge of a worker, over all its labels; none where it is not there.
pub(crate) fn total(name: &str, metrics: &str) -> Option<u64> {
    let values = metrics.lines().filter(|line| line.starts_with(name)).filter_map(|line| {
        let value = line.rsplit_once(' ')?.1;
        value.parse::<u64>().ok()
    });
    values.reduce(|total, value| total + value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workers_counter_is_summed_over_its_labels_and_may_be_absent() {
        let metrics = "# TYPE tokenkeeper_database_statements_total counter\n\
                       tokenkeeper_database_statements_total{statement=\"find\"} 3\n\
                       tokenkeeper_database_statements_total{statement=\"reserve\"} 4\n";
        assert_eq!(counted(metrics), Some(7));
        assert_eq!(counted("tokenkeeper_messages_total 3\n"), None);
    }
}
