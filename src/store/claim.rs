//! CLAIM: finding the entries of many requests by one statement and, where the database can, reserving them by the same one.
//!
//! A claim reserves where section 4 of the design leaves no choice: the token is valid, and nobody is to refresh it.
//! Everything else is loaded as it stands, for [`decide`](crate::decide::decide) and what follows from it.

use std::collections::HashMap;
use std::sync::Arc;

use sea_orm::sqlx::postgres::PgRow;
use sea_orm::sqlx::{self, Row};
use sea_orm::{ColumnTrait, Condition, DatabaseConnection, DbBackend, DbErr, EntityTrait, QueryFilter};
use tokenkeeper_entity::{identity, token_entry};

use super::group_commit::Grouped;
use super::line::{Line, column, driver};
use super::{Entry, Found, Store, StoreError};
use crate::clock::Timestamp;
use crate::telemetry::GroupedStatement;

/// What a request wants of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The platform's user.
    pub user_id: String,
    /// Whose token.
    pub provider_id: i64,
    /// Until when it is to be reserved; none: it is only looked at.
    pub until: Option<Timestamp>,
    /// Reserve it only where somebody holds it already: otherwise a refresh may be due.
    pub only_if_held: bool,
    /// What time it is.
    pub now: Timestamp,
}

/// What there is for a claim.
#[derive(Debug, Clone)]
pub(super) enum Claimed {
    NoIdentity,
    NoToken,
    Entry(Arc<Entry>),
    /// The row cannot be read.
    Unreadable(Arc<StoreError>),
}

impl Store {
    /// What there is for a user at a provider; reserved already where that is plain, and the database can do both at once.
    ///
    /// Plain is: valid for that long, no refresh under way, in doubt or failed, and [`Claim::only_if_held`] says yes. Such
    /// a token is served whatever else is decided, so the decision finds it reserved far enough.
    ///
    /// # Errors
    /// [`StoreError`], shared with those whose requests were in the same statement.
    pub async fn claim(&self, claim: Claim) -> Result<Found, Arc<StoreError>> {
        let (user_id, provider_id, now) = (claim.user_id.clone(), claim.provider_id, claim.now);
        match self.claims.submit(&self.db, claim).await? {
            Claimed::Entry(entry) => {
                self.known.learn(user_id, provider_id, &entry, now);
                Ok(Found::Entry(entry))
            }
            Claimed::Unreadable(error) => Err(error),
            Claimed::NoToken => Ok(Found::NoToken),
            Claimed::NoIdentity if Box::pin(self.has_identity(&user_id)).await? => Ok(Found::NoIdentity),
            Claimed::NoIdentity => Ok(Found::NoUser),
        }
    }

    /// What there is for a user at a provider, as it stands.
    ///
    /// # Errors
    /// As [`Store::claim`].
    pub async fn find(&self, user_id: &str, provider_id: i64) -> Result<Found, Arc<StoreError>> {
        let (user_id, now) = (user_id.to_owned(), Timestamp::from_millis(0));
        self.claim(Claim { user_id, provider_id, until: None, only_if_held: true, now }).await
    }
}

impl Grouped for Claim {
    type Key = (String, i64, bool);
    type Answer = Claimed;
    const STATEMENT: GroupedStatement = GroupedStatement::Claim;

    fn key(&self) -> Self::Key {
        (self.user_id.clone(), self.provider_id, self.only_if_held)
    }

    fn absorb(&mut self, other: &Self) {
        self.until = self.until.max(other.until);
        self.now = self.now.max(other.now);
    }

    async fn run(line: &mut Line, claims: &[Self]) -> Result<Vec<Claimed>, StoreError> {
        let claimed = match line.db().get_database_backend() {
            DbBackend::Postgres => find_and_reserve(line, claims).await,
            // MariaDB and MySQL give no rows back from an UPDATE; SQLite does, but none that says whose they are.
            _ => find(line.db(), claims).await,
        };
        claimed.map_err(StoreError::database("load the tokens of users"))
    }
}

/// `LATERAL … LIMIT 1` and `num_nulls` leave the planner no way but the keys, one row after the other. Left the choice it takes
/// other indexes where it knows nothing of the tables yet, and a statement for thirty rows goes through all of them.
///
/// `SKIP LOCKED`: a row that somebody else is writing is not waited for, here where others would wait along. It is loaded as
/// it was before, and reserved by a statement of its own.
///
/// `ctid`, the place of the row's version that was locked, spares a look at one more index, whose pages may not be in memory.
/// A version that somebody else has written since this statement began is not seen by it, and so not reserved: its row is
/// loaded as it was before, too.
const FIND_AND_RESERVE: &str = "\
WITH wanted AS (
  SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::boolean[]) WITH ORDINALITY
    AS wanted (user_id, provider_id, until, now, only_if_held, place)
), known AS MATERIALIZED (
  SELECT wanted.*, identity.id AS known_identity
  FROM wanted CROSS JOIN LATERAL (
    SELECT id FROM identity WHERE user_id = wanted.user_id AND provider_id = wanted.provider_id LIMIT 1
  ) AS identity
), plain AS MATERIALIZED (
  SELECT entry.version, known.until, known.place
  FROM known CROSS JOIN LATERAL (
    SELECT ctid AS version FROM token_entry
    WHERE identity_id = known.known_identity
      AND (expires_at IS NULL OR (expires_at >= known.until AND expires_at > known.now))
      AND (lease_until IS NULL OR lease_until <= known.now)
      AND num_nulls(attempt_fingerprint, failed_at) = 2
      AND (reserved_until > known.now OR NOT known.only_if_held)
      AND (reserved_until IS NULL OR reserved_until < known.until)
    LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
  ) AS entry
), reserved AS (
  UPDATE token_entry AS entry SET reserved_until = plain.until FROM plain WHERE entry.ctid = plain.version
  RETURNING plain.place, entry.*
)
SELECT reserved.* FROM reserved
UNION ALL
SELECT known.place, entry.*
FROM known LEFT JOIN LATERAL (
  SELECT * FROM token_entry WHERE identity_id = known.known_identity LIMIT 1
) AS entry ON TRUE
WHERE known.place NOT IN (SELECT place FROM reserved)";

async fn find_and_reserve(line: &mut Line, claims: &[Claim]) -> Result<Vec<Claimed>, DbErr> {
    let statement = sqlx::query(FIND_AND_RESERVE)
        .bind(column(claims, |claim| claim.user_id.as_str()))
        .bind(column(claims, |claim| claim.provider_id))
        // NULL where nothing is to be reserved: no comparison with it is true.
        .bind(column(claims, |claim| claim.until.map(Timestamp::as_millis)))
        .bind(column(claims, |claim| claim.now.as_millis()))
        .bind(column(claims, |claim| claim.only_if_held));
    let mut claimed = vec![Claimed::NoIdentity; claims.len()];
    for row in statement.fetch_all(line.postgres().await?).await.map_err(driver)? {
        // Counted from one.
        let place = usize::try_from(row.try_get::<i64, _>("place").map_err(driver)?).unwrap_or_default();
        if let Some(claimed) = place.checked_sub(1).and_then(|place| claimed.get_mut(place)) {
            *claimed = Claimed::of(read(&row).map_err(driver)?);
        }
    }
    Ok(claimed)
}

/// The entry in a row, where there is one.
fn read(row: &PgRow) -> Result<Option<token_entry::Model>, sqlx::Error> {
    let Some(id) = row.try_get("id")? else { return Ok(None) };
    Ok(Some(token_entry::Model {
        id,
        identity_id: row.try_get("identity_id")?,
        generation: row.try_get("generation")?,
        access_token_sealed: row.try_get("access_token_sealed")?,
        refresh_token_sealed: row.try_get("refresh_token_sealed")?,
        key_id: row.try_get("key_id")?,
        username: row.try_get("username")?,
        scopes: row.try_get("scopes")?,
        expires_at: row.try_get("expires_at")?,
        refresh_token_expires_at: row.try_get("refresh_token_expires_at")?,
        granted_lifetime_ms: row.try_get("granted_lifetime_ms")?,
        reserved_until: row.try_get("reserved_until")?,
        lease_holder: row.try_get("lease_holder")?,
        lease_until: row.try_get("lease_until")?,
        attempt_fingerprint: row.try_get("attempt_fingerprint")?,
        failure_code: row.try_get("failure_code")?,
        failure_message: row.try_get("failure_message")?,
        failure_fingerprint: row.try_get("failure_fingerprint")?,
        failed_at: row.try_get("failed_at")?,
        login_fingerprint: row.try_get("login_fingerprint")?,
        refreshed_at: row.try_get("refreshed_at")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    }))
}

async fn find(db: &DatabaseConnection, claims: &[Claim]) -> Result<Vec<Claimed>, DbErr> {
    let wanted = in_few_lengths(claims).fold(Condition::any(), |any, claim| {
        let user = identity::Column::UserId.eq(claim.user_id.as_str());
        any.add(Condition::all().add(user).add(identity::Column::ProviderId.eq(claim.provider_id)))
    });
    let found =
        identity::Entity::find().filter(wanted).find_also_related(token_entry::Entity).all(db).await?;
    let found: HashMap<_, _> = found
        .into_iter()
        .map(|(identity, entry)| ((identity.user_id, identity.provider_id), Claimed::of(entry)))
        .collect();
    let claimed = |claim: &Claim| found.get(&(claim.user_id.clone(), claim.provider_id)).cloned();
    Ok(claims.iter().map(|claim| claimed(claim).unwrap_or(Claimed::NoIdentity)).collect())
}

/// The last one again and again, up to a power of two. Every length is a statement of its own, which each connection
/// prepares and keeps.
pub(super) fn in_few_lengths<T>(items: &[T]) -> impl Iterator<Item = &T> {
    let length = items.len().next_power_of_two();
    items.iter().chain(items.last().into_iter().cycle()).take(length)
}

impl Claimed {
    fn of(entry: Option<token_entry::Model>) -> Self {
        match entry.map(Entry::from_row) {
            Some(Ok(entry)) => Self::Entry(Arc::new(entry)),
            Some(Err(error)) => Self::Unreadable(Arc::new(error)),
            None => Self::NoToken,
        }
    }
}
