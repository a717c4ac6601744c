//! CLAIM: one statement finds the entries of many requests and, on PostgreSQL, reserves them.
//!
//! A claim reserves an entry if the decision (docs/contract.md) leaves no choice: the token is valid, and no refresh is due.
//! Every other entry is loaded as it is, for [`decide`](crate::domain::decide::decide).

mod postgres;

use std::collections::HashMap;
use std::sync::Arc;

use sea_orm::{ColumnTrait, Condition, DatabaseConnection, DbBackend, DbErr, EntityTrait, QueryFilter};
use tokenkeeper_entity::token_entry;

use super::group_commit::Grouped;
use super::line::Line;
use super::{Entry, Found, Store, StoreError};
use crate::domain::clock::Timestamp;
use crate::telemetry::GroupedStatement;

const LOAD: &str = "load the tokens of users";

/// What a request wants of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub user_id: String,
    /// Whose token.
    pub provider_id: i64,
    /// Until when to reserve the token. None: only load it.
    pub until: Option<Timestamp>,
    /// Reserve the token only if somebody holds it for longer than that. Otherwise a refresh may be due.
    pub only_if_held_beyond: Option<Timestamp>,
    pub now: Timestamp,
}

/// The result of a claim.
#[derive(Debug, Clone)]
pub(super) enum Claimed {
    Nothing,
    Entry(Arc<Entry>),
    /// The row cannot be read.
    Unreadable(Arc<StoreError>),
}

impl Store {
    /// Finds the entry of a user at a provider. PostgreSQL also reserves the entry if the claim is
    /// [plain](Claim::is_plain). Then the decision finds it reserved far enough.
    ///
    /// # Errors
    /// [`StoreError`], shared with those whose requests were in the same statement.
    pub async fn claim(&self, claim: Claim) -> Result<Found, Arc<StoreError>> {
        let (user_id, provider_id, now) = (claim.user_id.clone(), claim.provider_id, claim.now);
        match self.claims.submit(&self.grouped, &self.db, claim).await? {
            Claimed::Entry(entry) => {
                self.known.learn(&entry, now);
                Ok(Found::Entry(entry))
            }
            Claimed::Unreadable(error) => Err(error),
            Claimed::Nothing => Ok(Box::pin(self.without_entry(&user_id, provider_id)).await?),
        }
    }

    /// Finds the entry of a user at a provider, and reserves nothing.
    ///
    /// # Errors
    /// As [`Store::claim`].
    pub async fn find(&self, user_id: &str, provider_id: i64) -> Result<Found, Arc<StoreError>> {
        let (user_id, now) = (user_id.to_owned(), Timestamp::from_millis(0));
        self.claim(Claim { user_id, provider_id, until: None, only_if_held_beyond: Some(now), now }).await
    }
}

impl Claim {
    /// Whether every decision (docs/contract.md) would reserve the token: it is valid for that long, nobody reported it, no refresh
    /// is under way, in doubt or failed, and [`Claim::only_if_held_beyond`] is met. And it is not reserved for longer.
    pub fn is_plain(&self, entry: &Entry) -> bool {
        let Some(until) = self.until else { return false };
        let (expires_at, reserved_until) = (entry.state.expires_at, entry.state.reserved_until);
        let valid = expires_at.is_none_or(|expires_at| expires_at >= until && expires_at > self.now);
        let nobody_refreshes = !entry.has_live_lease(self.now) && entry.is_ordinary();
        let held =
            self.only_if_held_beyond.is_none_or(|beyond| reserved_until.is_some_and(|until| until > beyond));
        let grows = reserved_until.is_none_or(|reserved_until| reserved_until <= until);
        valid && nobody_refreshes && held && grows
    }
}

impl Grouped for Claim {
    type Key<'a> = (&'a str, i64, bool);
    type Answer = Claimed;
    const STATEMENT: GroupedStatement = GroupedStatement::Claim;

    fn key(&self) -> Self::Key<'_> {
        (&self.user_id, self.provider_id, self.only_if_held_beyond.is_some())
    }

    fn absorb(&mut self, other: &Self) {
        self.until = self.until.max(other.until);
        self.now = self.now.max(other.now);
        self.only_if_held_beyond = self.only_if_held_beyond.max(other.only_if_held_beyond);
    }

    async fn run(line: &mut Line, claims: &[Self]) -> Result<Vec<Claimed>, StoreError> {
        let answers = match line.db().get_database_backend() {
            DbBackend::Postgres => postgres::find_and_reserve(line, claims).await,
            // An UPDATE returns no rows on MariaDB and MySQL. On SQLite its rows do not tell whose they are.
            _ => find(line.db(), claims).await,
        };
        answers.map_err(StoreError::database(LOAD))
    }
}

async fn find(db: &DatabaseConnection, claims: &[Claim]) -> Result<Vec<Claimed>, DbErr> {
    let wanted = in_few_lengths(claims).fold(Condition::any(), |any, claim| {
        let user = token_entry::Column::UserId.eq(claim.user_id.as_str());
        any.add(Condition::all().add(user).add(token_entry::Column::ProviderId.eq(claim.provider_id)))
    });
    let found = token_entry::Entity::find().filter(wanted).all(db).await?;
    let found: HashMap<_, _> =
        found.into_iter().map(|row| ((row.user_id.clone(), row.provider_id), Claimed::of(row))).collect();
    let claimed = |claim: &Claim| found.get(&(claim.user_id.clone(), claim.provider_id)).cloned();
    Ok(claims.iter().map(|claim| claimed(claim).unwrap_or(Claimed::Nothing)).collect())
}

/// Repeats the last item up to a power of two, because each connection prepares and keeps a statement for each length.
pub(super) fn in_few_lengths<T>(items: &[T]) -> impl Iterator<Item = &T> {
    let length = items.len().next_power_of_two();
    items.iter().chain(items.last().into_iter().cycle()).take(length)
}

impl Claimed {
    fn is_plain_for(&self, claim: &Claim) -> bool {
        matches!(self, Self::Entry(entry) if claim.is_plain(entry))
    }

    fn of(row: token_entry::Model) -> Self {
        match Entry::from_row(row) {
            Ok(entry) => Self::Entry(Arc::new(entry)),
            Err(error) => Self::Unreadable(Arc::new(error)),
        }
    }
}
