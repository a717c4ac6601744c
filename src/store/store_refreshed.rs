//! STORE: stores the pairs that refreshes brought. On PostgreSQL one statement stores those of many flights.

use std::sync::{Arc, OnceLock};

use sea_orm::sea_query::{Nullable, ValueType};
use sea_orm::{ActiveModelTrait, ColumnTrait, ColumnType, DbBackend, DbErr, IdenStatic, Iterable, sqlx};
use tokenkeeper_entity::token_entry::{ActiveModel, Column};

use super::entry::Entry;
use super::group_commit::Grouped;
use super::line::{Line, column, driver};
use super::pair::{Age, Leases, NewPair};
use super::rules::is_unmoved_sql;
use super::{Guarded, Store, StoreError};
use crate::domain::clock::Timestamp;
use crate::telemetry::GroupedStatement;

impl Store {
    /// Stores the pair that a refresh of `entry` issued. `holder` had the lease of that refresh; another holder's lease stays.
    ///
    /// If the generation has changed, the newer pair stays: a login's, or one that was requested later. A provider that accepts
    /// a spent refresh token can issue two pairs for it, if a worker froze and another took its place. The later request then
    /// killed the earlier pair, so its pair is stored over the other.
    ///
    /// Returns the stored entry, or none if a newer pair is there or the entry is gone.
    ///
    /// # Errors
    /// [`StoreError`], shared with those whose pairs were in the same statement.
    pub async fn store_refreshed(
        &self,
        entry: &Entry,
        pair: &NewPair,
        holder: &str,
        now: Timestamp,
    ) -> Result<Option<Arc<Entry>>, Arc<StoreError>> {
        let successor = Arc::new(self.successor(entry, pair, now));
        match self.succeed(entry, Arc::clone(&successor), holder).await? {
            Guarded::Done => Ok(Some(successor)),
            Guarded::Moved => {
                Ok(Box::pin(self.store_over_older(entry, pair, holder, now)).await?.map(Arc::new))
            }
        }
    }

    async fn succeed(
        &self,
        entry: &Entry,
        successor: Arc<Entry>,
        holder: &str,
    ) -> Result<Guarded, Arc<StoreError>> {
        if self.urgent.get_database_backend() == DbBackend::Postgres {
            let succession = Succession { successor: Arc::clone(&successor), holder: holder.to_owned() };
            match self.successions.submit(&self.grouped, &self.urgent, succession).await? {
                Guarded::Done => return Ok(Guarded::Done),
                // The row has changed, or somebody else was writing it.
                Guarded::Moved => {}
            }
        }
        Ok(Box::pin(self.store_successor(entry, &successor, Leases::Of(holder))).await?)
    }

    async fn store_over_older(
        &self,
        entry: &Entry,
        pair: &NewPair,
        holder: &str,
        now: Timestamp,
    ) -> Result<Option<Entry>, StoreError> {
        loop {
            let Some(current) = self.reload(entry.id).await? else { return Ok(None) };
            // Its successor is bound to the owner that stands in the row.
            self.check(&current)?;
            current.check_owner(&entry.owner())?;
            match pair.source.age_beside(&current) {
                // An earlier try stored it, and its answer was lost.
                Age::Same => return Ok(Some(current)),
                Age::Older => return Ok(None),
                Age::Newer => {
                    let pair = pair.reserved_like(&current);
                    let stored = self.store_pair(&current, &pair, Leases::Of(holder), now).await?;
                    if stored.is_some() {
                        return Ok(stored);
                    }
                }
            }
        }
    }
}

/// An entry that replaces the one it was refreshed from.
#[derive(Debug, Clone)]
pub(super) struct Succession {
    successor: Arc<Entry>,
    holder: String,
}

impl Grouped for Succession {
    /// The holder: no two flights are one, and a flight stores one pair.
    type Key<'a> = &'a str;
    type Answer = Guarded;
    const STATEMENT: GroupedStatement = GroupedStatement::StorePair;

    fn key(&self) -> Self::Key<'_> {
        &self.holder
    }

    fn absorb(&mut self, other: &Self) {
        self.clone_from(other);
    }

    async fn run(line: &mut Line, group: &[Self]) -> Result<Vec<Guarded>, StoreError> {
        store(line, group).await.map_err(StoreError::database("store token pairs"))
    }
}

/// `Store::store_successor` for many entries: guarded by the generation alone, and other holders' leases stay. The columns are
/// those of [`Entry::pair_columns`]. `claim/postgres.rs` says why `LATERAL` and `SKIP LOCKED`.
struct Statement {
    sql: String,
    columns: Vec<Column>,
}

static STORE: OnceLock<Statement> = OnceLock::new();

impl Statement {
    fn of(row: &ActiveModel) -> Self {
        let columns: Vec<Column> = Column::iter().filter(|column| row.get(*column).is_set()).collect();
        let list = |of: &dyn Fn(usize, &str) -> String| {
            let each = columns.iter().enumerate().map(|(place, column)| of(place, column.as_str()));
            each.collect::<Vec<_>>().join(", ")
        };
        let sql = format!(
            concat!(
                "WITH unmoved AS MATERIALIZED (
  SELECT new.*
  FROM unnest($1, $2, {arrays}) WITH ORDINALITY AS new (id, holder, {names}, place)
  CROSS JOIN LATERAL (
    SELECT entry.id FROM token_entry AS entry WHERE ",
                is_unmoved_sql!("new.id", "new.generation - 1"),
                "
    LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
  ) AS entry
), stored AS (
  UPDATE token_entry AS entry
  SET {assignments},
    lease_holder = CASE WHEN entry.lease_holder = new.holder THEN NULL ELSE entry.lease_holder END,
    lease_until = CASE WHEN entry.lease_holder = new.holder THEN NULL ELSE entry.lease_until END,
    attempt_fingerprint = CASE WHEN entry.lease_holder = new.holder THEN NULL ELSE entry.attempt_fingerprint END
  FROM unmoved AS new WHERE entry.id = new.id
  RETURNING new.place
)
SELECT array_agg(place) FROM stored"
            ),
            arrays = list(&|place, _| format!("${}", place + 3)),
            names = list(&|_, name| name.to_owned()),
            assignments = list(&|_, name| format!("{name} = new.{name}")),
        );
        Self { sql, columns }
    }
}

async fn store(line: &mut Line, group: &[Succession]) -> Result<Vec<Guarded>, DbErr> {
    let mut rows = column(group, |new| new.successor.pair_columns());
    let Some(first) = rows.first() else { return Ok(Vec::new()) };
    let Statement { sql, columns } = STORE.get_or_init(|| Statement::of(first));
    let mut statement = sqlx::query_scalar(sql.as_str())
        .bind(column(group, |new| new.successor.id))
        .bind(column(group, |new| new.holder.as_str()));
    for column in columns {
        statement = match column.def().get_column_type() {
            ColumnType::BigInteger => statement.bind(take::<i64>(&mut rows, *column)?),
            ColumnType::VarBinary(_) => statement.bind(take::<Vec<u8>>(&mut rows, *column)?),
            _ => statement.bind(take::<String>(&mut rows, *column)?),
        };
    }
    let stored = statement.fetch_one(line.postgres().await?).await.map_err(driver)?;
    Ok(Guarded::at_places(stored, group.len()))
}

/// One column of the new rows.
fn take<T: Nullable + ValueType>(rows: &mut [ActiveModel], column: Column) -> Result<Vec<Option<T>>, DbErr> {
    let values = rows.iter_mut().map(|row| row.take(column).into_value().unwrap_or_else(T::null));
    let of_type = |value| <Option<T> as ValueType>::try_from(value);
    values.map(of_type).collect::<Result<_, _>>().map_err(|error| DbErr::Type(format!("{column:?}: {error}")))
}
