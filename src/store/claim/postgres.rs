//! Claims on PostgreSQL: one statement finds the entries and reserves them.

use std::sync::Arc;

use sea_orm::DbErr;
use sea_orm::sqlx::postgres::PgRow;
use sea_orm::sqlx::{self, Decode, Error, Postgres, Row, Type};
use tokenkeeper_entity::token_entry;

use super::{Answer, Claim, Claimed, LOAD};
use crate::domain::clock::Timestamp;
use crate::store::StoreError;
use crate::store::line::{Line, column, driver};
use crate::store::rules::{is_ordinary_sql, lease_is_free_sql, not_reserved_beyond_sql};
use crate::telemetry::{self, GroupedStatement};

/// Reserves the plain claims, then looks at the rest. While most claims are not plain, as when many tokens have expired, one
/// statement looks at all of them instead.
pub(super) async fn find_and_reserve(line: &mut Line, claims: &[Claim]) -> Result<Vec<Answer>, DbErr> {
    let any_to_reserve = claims.iter().any(|claim| claim.until.is_some());
    let mut answers = if line.reserves_first() && any_to_reserve {
        reserve(line, claims).await?
    } else {
        vec![None; claims.len()]
    };
    let rest: Vec<Asked<'_>> =
        claims.iter().enumerate().filter(|(place, _)| answers[*place].is_none()).collect();
    let mut plain = claims.len() - rest.len();
    if !rest.is_empty() {
        if plain > 0 {
            telemetry::grouped_statement(GroupedStatement::Find, rest.len());
        }
        for ((place, claim), found) in rest.iter().zip(find(line, &rest).await?) {
            plain += usize::from(found.is_plain_for(claim));
            answers[*place] = Some(Answer::Read(found));
        }
    }
    line.reserve_first(2 * plain >= claims.len());
    Ok(answers.into_iter().map(|answer| answer.unwrap_or(Answer::Read(Claimed::Nothing))).collect())
}

/// A claim, and its place in the group.
type Asked<'a> = (usize, &'a Claim);

/// The columns of an entry, in the order in which they are selected and read. They are named because of
/// migrations: PostgreSQL refuses a prepared `SELECT *` once a column has been added, and workers may be running.
macro_rules! columns {
    ($use:ident $($argument:ident)*) => {
        $use!(
            $($argument)*;
            id, identity_id, user_id, provider_id, generation, access_token_sealed, refresh_token_sealed, key_id, username, scopes, expires_at,
            refresh_token_expires_at, granted_lifetime_ms, reserved_until, lease_holder, lease_until, attempt_fingerprint,
            attempted_at, reported_at, failure_code, failure_message, failure_fingerprint, failed_at, login_fingerprint,
            refreshed_at, created_at, updated_at
        )
    };
}

macro_rules! as_text {
    (; id $(, $column:ident)+) => { concat!("entry.id" $(, ", entry.", stringify!($column))+) };
}

macro_rules! as_model {
    ($row:ident; $($column:ident),+) => { token_entry::Model { $($column: $row.next()?),+ } };
}

/// The condition is that of [`Claim::is_plain`].
///
/// `LATERAL … LIMIT 1` and `num_nulls` make the planner use the keys, row by row. Without statistics it would choose other
/// indexes, and read all rows for a group of thirty.
///
/// `SKIP LOCKED`: the group does not wait for a row that somebody else is writing. That row is loaded as it was before, and
/// reserved by a statement of its own.
///
/// `ctid` locates the row version that was locked. It saves an index lookup, whose pages may not be in memory. The statement
/// does not see a version that was written after it began, and so does not reserve it.
const RESERVE: &str = concat!(
    "WITH plain AS MATERIALIZED (
  SELECT entry.version, wanted.until, wanted.place
  FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[]) WITH ORDINALITY
    AS wanted (user_id, provider_id, until, now, held_beyond, place)
  CROSS JOIN LATERAL (
    SELECT entry.ctid AS version FROM token_entry AS entry
    WHERE entry.user_id = wanted.user_id AND entry.provider_id = wanted.provider_id
      AND (entry.expires_at IS NULL OR (entry.expires_at >= wanted.until AND entry.expires_at > wanted.now))
      AND ",
    lease_is_free_sql!("wanted.now"),
    " AND ",
    is_ordinary_sql!(without_index),
    " AND (entry.reserved_until > wanted.held_beyond OR wanted.held_beyond IS NULL) AND ",
    not_reserved_beyond_sql!("wanted.until"),
    "
    LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
  ) AS entry
)
UPDATE token_entry AS entry SET reserved_until = plain.until FROM plain WHERE entry.ctid = plain.version
RETURNING plain.place, ",
    columns!(as_text)
);

/// The entries that were reserved, each in its place.
async fn reserve(line: &mut Line, claims: &[Claim]) -> Result<Vec<Option<Answer>>, DbErr> {
    let statement = sqlx::query(RESERVE)
        .bind(column(claims, |claim| claim.user_id.as_str()))
        .bind(column(claims, |claim| claim.provider_id))
        // NULL where nothing is to be reserved: no comparison with it is true.
        .bind(column(claims, |claim| claim.until.map(Timestamp::as_millis)))
        .bind(column(claims, |claim| claim.now.as_millis()))
        .bind(column(claims, |claim| claim.only_if_held_beyond.map(Timestamp::as_millis)));
    let mut reserved = vec![None; claims.len()];
    for row in statement.fetch_all(line.postgres().await?).await.map_err(driver)? {
        let place = InOrder::of(&row).place().map_err(driver)?;
        if let Some(reserved) = reserved.get_mut(place) {
            *reserved = Some(Answer::Unread(Arc::new(row)));
        }
    }
    Ok(reserved)
}

/// The entry in a row from [`reserve`].
pub(super) fn reserved(row: &PgRow) -> Claimed {
    match read(row) {
        Ok((_, entry)) => Claimed::of(entry),
        Err(error) => Claimed::Unreadable(Arc::new(StoreError::database(LOAD)(driver(error)))),
    }
}

const FIND: &str = concat!(
    "SELECT wanted.place, ",
    columns!(as_text),
    "
FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY AS wanted (user_id, provider_id, place)
CROSS JOIN LATERAL (
  SELECT * FROM token_entry WHERE user_id = wanted.user_id AND provider_id = wanted.provider_id LIMIT 1
) AS entry"
);

/// What there is for each claim, in their order.
async fn find(line: &mut Line, asked: &[Asked<'_>]) -> Result<Vec<Claimed>, DbErr> {
    let statement = sqlx::query(FIND)
        .bind(column(asked, |(_, claim)| claim.user_id.as_str()))
        .bind(column(asked, |(_, claim)| claim.provider_id));
    let mut found = vec![Claimed::Nothing; asked.len()];
    for row in statement.fetch_all(line.postgres().await?).await.map_err(driver)? {
        let (place, entry) = read(&row).map_err(driver)?;
        if let Some(found) = found.get_mut(place) {
            *found = Claimed::of(entry);
        }
    }
    Ok(found)
}

/// The place in a row, and the entry.
fn read(row: &PgRow) -> Result<(usize, token_entry::Model), Error> {
    let mut row = InOrder::of(row);
    Ok((row.place()?, columns!(as_model row)))
}

/// Reads the columns of a row in order. Lookup by name takes longer than the read itself.
struct InOrder<'r> {
    row: &'r PgRow,
    next: usize,
}

impl<'r> InOrder<'r> {
    const fn of(row: &'r PgRow) -> Self {
        Self { row, next: 0 }
    }

    /// The first column. The database counts from one.
    fn place(&mut self) -> Result<usize, Error> {
        Ok(usize::try_from(self.next::<i64>()?).unwrap_or_default().wrapping_sub(1))
    }

    fn next<T: Decode<'r, Postgres> + Type<Postgres>>(&mut self) -> Result<T, Error> {
        let column = self.next;
        self.next += 1;
        self.row.try_get(column)
    }
}
