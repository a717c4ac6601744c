//! Claims on PostgreSQL: one statement finds the entries and reserves them.

use std::sync::{Arc, LazyLock};

use sea_orm::{DbErr, FromQueryResult, IdenStatic, Iterable, QueryResult, sqlx};
use tokenkeeper_entity::token_entry;

use super::{Claim, Claimed, LOAD};
use crate::domain::clock::Timestamp;
use crate::store::StoreError;
use crate::store::line::{Line, column, driver};
use crate::store::rules::{is_ordinary_sql, lease_is_free_sql, not_reserved_beyond_sql};
use crate::telemetry::{self, GroupedStatement};

/// Reserves the plain claims, then looks at the rest. While most claims are not plain, as when many tokens have expired, one
/// statement looks at all of them instead.
pub(super) async fn find_and_reserve(line: &mut Line, claims: &[Claim]) -> Result<Vec<Claimed>, DbErr> {
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
            answers[*place] = Some(found);
        }
    }
    line.reserve_first(2 * plain >= claims.len());
    Ok(answers.into_iter().map(|answer| answer.unwrap_or(Claimed::Nothing)).collect())
}

/// A claim, and its place in the group.
type Asked<'a> = (usize, &'a Claim);

/// The columns of an entry, as they are selected. They are named because of migrations: PostgreSQL refuses a prepared `SELECT *`
/// once a column has been added, and workers may be running.
fn columns() -> String {
    token_entry::Column::iter()
        .map(|column| format!("entry.{}", column.as_str()))
        .collect::<Vec<_>>()
        .join(", ")
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
static RESERVE: LazyLock<String> = LazyLock::new(|| {
    format!(
        concat!(
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
RETURNING plain.place, {}"
        ),
        columns()
    )
});

/// The entries that were reserved, each in its place.
async fn reserve(line: &mut Line, claims: &[Claim]) -> Result<Vec<Option<Claimed>>, DbErr> {
    let statement = sqlx::query(RESERVE.as_str())
        .bind(column(claims, |claim| claim.user_id.as_str()))
        .bind(column(claims, |claim| claim.provider_id))
        // NULL where nothing is to be reserved: no comparison with it is true.
        .bind(column(claims, |claim| claim.until.map(Timestamp::as_millis)))
        .bind(column(claims, |claim| claim.now.as_millis()))
        .bind(column(claims, |claim| claim.only_if_held_beyond.map(Timestamp::as_millis)));
    let mut reserved = vec![None; claims.len()];
    for row in statement.fetch_all(line.postgres().await?).await.map_err(driver)? {
        let row = QueryResult::from(row);
        if let Some(reserved) = reserved.get_mut(place(&row)?) {
            *reserved = Some(read(&row));
        }
    }
    Ok(reserved)
}

static FIND: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT wanted.place, {}
FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY AS wanted (user_id, provider_id, place)
CROSS JOIN LATERAL (
  SELECT * FROM token_entry WHERE user_id = wanted.user_id AND provider_id = wanted.provider_id LIMIT 1
) AS entry",
        columns()
    )
});

/// What there is for each claim, in their order.
async fn find(line: &mut Line, asked: &[Asked<'_>]) -> Result<Vec<Claimed>, DbErr> {
    let statement = sqlx::query(FIND.as_str())
        .bind(column(asked, |(_, claim)| claim.user_id.as_str()))
        .bind(column(asked, |(_, claim)| claim.provider_id));
    let mut found = vec![Claimed::Nothing; asked.len()];
    for row in statement.fetch_all(line.postgres().await?).await.map_err(driver)? {
        let row = QueryResult::from(row);
        if let Some(found) = found.get_mut(place(&row)?) {
            *found = read(&row);
        }
    }
    Ok(found)
}

/// The place of a row's claim in the group. The database counts from one.
fn place(row: &QueryResult) -> Result<usize, DbErr> {
    Ok(usize::try_from(row.try_get_by_index::<i64>(0)?).unwrap_or_default().wrapping_sub(1))
}

/// The entry in a row.
fn read(row: &QueryResult) -> Claimed {
    match token_entry::Model::from_query_result(row, "") {
        Ok(entry) => Claimed::of(entry),
        Err(error) => Claimed::Unreadable(Arc::new(StoreError::database(LOAD)(error))),
    }
}
