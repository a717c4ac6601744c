//! Whether a refused refresh token is its user's fault, or the host refuses everybody.
//!
//! A changed client secret or a missing redirect URI makes some hosts answer `invalid_grant` to everybody. So when
//! [`EVERYBODY`] users are refused and nobody is served in between, over all workers, it is the provider that is set
//! up wrong: `auth_provider.refusing_since` says since when, and what was held against these users is forgotten.
//!
//! Anybody can bring refresh tokens that are dead. So once somebody was refreshed with the provider's present settings,
//! which are good then, only those count who were. Before that the settings are the likeliest fault, and everybody counts.

use futures_util::{StreamExt, stream};
use sea_orm::sea_query::Expr;
use sea_orm::{
    ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect, Select, UpdateMany,
};
use tokenkeeper_entity::auth_provider;
use tokenkeeper_entity::token_entry::{self, Column, Entity as TokenEntry};

use super::entry::{Entry, Failure, FailureKind};
use super::{Guarded, Store, StoreError};
use crate::domain::clock::Timestamp;
use crate::domain::provider::Provider;
use crate::telemetry;

/// Entries that are read at once.
const PAGE: u64 = 256;

/// Statements that run at once. Workers need connections of the database, too.
const AT_ONCE: usize = 8;

/// If so many users are refused in a row, the host refuses everybody.
const EVERYBODY: u64 = 5;

/// Whose fault a refusal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// The user's. The refusal stays.
    Users,
    /// The provider's, which refuses everybody. The refusal is forgotten.
    Providers {
        /// Since when it refuses everybody.
        since: Timestamp,
        /// Whether this refusal showed it first.
        first: bool,
    },
    /// Nobody's: an operator applied the provider after the call. The refusal is forgotten.
    Outdated,
}

impl Store {
    /// Judges a refusal. Call this after recording it: if two workers record the fourth and the fifth refusal at once, at least
    /// one of them then sees both.
    pub async fn judge_refusal(
        &self,
        entry: &Entry,
        provider: &Provider,
        failure: &Failure,
    ) -> Result<Judgement, StoreError> {
        loop {
            let row = auth_provider::Entity::find_by_id(provider.id)
                .one(&self.db)
                .await
                .map_err(StoreError::database("look at a provider again"))?;
            let Some(row) = row else { return Ok(Judgement::Users) };
            if row.updated_at != provider.updated_at.as_millis() {
                self.forget_refusal(entry, failure).await?;
                return Ok(Judgement::Outdated);
            }
            if let Some(since) = row.refusing_since.map(Timestamp::from_millis) {
                self.forget_refusal(entry, failure).await?;
                return Ok(Judgement::Providers { since, first: false });
            }
            if failure.kind != FailureKind::Refused || !provider.kind.profile().refuses_for_settings() {
                return Ok(Judgement::Users);
            }
            let Some(since) = self.refusing_since(provider).await? else { return Ok(Judgement::Users) };
            if self.begin_refusing(provider, since).await? == Guarded::Done {
                // Also what other workers have recorded meanwhile: what they record from here on they forget
                // themselves, because they look at the provider afterwards.
                self.forget_refusals(provider.id, since).await?;
                self.forget_refusal(entry, failure).await?;
                return Ok(Judgement::Providers { since, first: true });
            }
        }
    }

    /// Notes that a host refuses everybody. `Moved`: that is known already, or an operator applied the provider meanwhile.
    pub async fn begin_refusing(&self, provider: &Provider, since: Timestamp) -> Result<Guarded, StoreError> {
        let updated = auth_provider::Entity::update_many()
            .col_expr(auth_provider::Column::RefusingSince, Expr::value(since.as_millis()))
            .filter(auth_provider::Column::Id.eq(provider.id))
            .filter(auth_provider::Column::RefusingSince.is_null())
            .filter(auth_provider::Column::UpdatedAt.eq(provider.updated_at.as_millis()))
            .exec(&self.db)
            .await
            .map_err(StoreError::database("note that a provider refuses everybody"))?;
        Ok(Guarded::from_rows(updated.rows_affected))
    }

    /// A host that refused everybody issued a pair. `Moved`: that was known already.
    pub async fn end_refusing(&self, provider_id: i64, since: Timestamp) -> Result<Guarded, StoreError> {
        // Again, for the worker that found it out and died before it had forgotten all of them.
        self.forget_refusals(provider_id, since).await?;
        let updated = auth_provider::Entity::update_many()
            .col_expr(auth_provider::Column::RefusingSince, Expr::value(None::<i64>))
            .filter(auth_provider::Column::Id.eq(provider_id))
            .filter(auth_provider::Column::RefusingSince.eq(since.as_millis()))
            .exec(&self.db)
            .await
            .map_err(StoreError::database("note that a provider refuses nobody any more"))?;
        Ok(Guarded::from_rows(updated.rows_affected))
    }

    /// Whether anybody was refreshed with the provider's present settings.
    pub async fn has_refreshed_anybody(&self, provider: &Provider) -> Result<bool, StoreError> {
        self.is_any(provider.id, is_refreshed_by(provider)).await
    }

    /// Forgets the failures at a changed provider, so that its tokens are tried again.
    pub(super) async fn forget_failures(&self, provider_id: i64) -> Result<(), StoreError> {
        self.forget(of_provider(provider_id).add(Column::FailureCode.is_not_null())).await
    }

    /// Since when a provider refuses everybody. None: it does not.
    async fn refusing_since(&self, provider: &Provider) -> Result<Option<Timestamp>, StoreError> {
        let (provider_id, failed) = (provider.id, StoreError::database);
        let Some(oldest) = self.everybody_refused_since(provider_id, is_refused()).await? else {
            return Ok(None);
        };
        let oldest = if self.is_any(provider_id, is_refreshed_by(provider)).await? {
            let proven = is_refused().add(is_refreshed_by(provider));
            let Some(oldest) = self.everybody_refused_since(provider_id, proven).await? else {
                return Ok(None);
            };
            oldest
        } else {
            oldest
        };
        if self.is_any(provider_id, is_refreshed().add(Column::UpdatedAt.gt(oldest))).await? {
            return Ok(None);
        }
        // There may be more than these: refusals that nobody could judge, the database being away.
        let last_served: Option<Option<i64>> = entries_of(provider_id)
            .column_as(Column::UpdatedAt.max(), "last_served")
            .filter(is_refreshed())
            .into_tuple()
            .one(&self.db)
            .await
            .map_err(failed("look for the last refreshed token"))?;
        let first: Option<i64> = entries_of(provider_id)
            .column(Column::FailedAt)
            .filter(is_refused())
            .filter(Column::FailedAt.gt(last_served.flatten().unwrap_or(i64::MIN)))
            .order_by_asc(Column::FailedAt)
            .limit(1)
            .into_tuple()
            .one(&self.db)
            .await
            .map_err(failed("look for the first refused refresh token"))?;
        Ok(Some(Timestamp::from_millis(first.unwrap_or(oldest).min(oldest))))
    }

    /// The date of the oldest of the latest refusals, if there are enough.
    async fn everybody_refused_since(
        &self,
        provider_id: i64,
        these: Condition,
    ) -> Result<Option<i64>, StoreError> {
        let latest: Vec<i64> = entries_of(provider_id)
            .column(Column::FailedAt)
            .filter(these)
            // They all have; said so that the index of those is used.
            .filter(Column::FailedAt.is_not_null())
            .order_by_desc(Column::FailedAt)
            .limit(EVERYBODY)
            .into_tuple()
            .all(&self.db)
            .await
            .map_err(StoreError::database("look for refused refresh tokens"))?;
        Ok(latest.last().copied().filter(|_| latest.len() as u64 == EVERYBODY))
    }

    /// Whether a provider has such an entry.
    async fn is_any(&self, provider_id: i64, these: Condition) -> Result<bool, StoreError> {
        let one: Option<i64> = entries_of(provider_id)
            .column(Column::Id)
            .filter(these)
            .limit(1)
            .into_tuple()
            .one(&self.db)
            .await
            .map_err(StoreError::database("look for refreshed tokens"))?;
        Ok(one.is_some())
    }

    /// Forgets this refusal, if the entry still has it.
    async fn forget_refusal(&self, entry: &Entry, failure: &Failure) -> Result<(), StoreError> {
        let this = entry
            .is_unmoved()
            .add(Column::FailureCode.eq(failure.kind.name()))
            .add(Column::FailureFingerprint.eq(failure.fingerprint.as_str()));
        self.forget(this).await
    }

    /// Forgets every refusal at a provider since then.
    async fn forget_refusals(&self, provider_id: i64, since: Timestamp) -> Result<(), StoreError> {
        let condemned = Condition::any().add(is_refused()).add(is_interrupted());
        self.forget(of_provider(provider_id).add(condemned).add(Column::FailedAt.gte(since.as_millis())))
            .await
    }

    /// Forgets the failures of these entries.
    async fn forget(&self, which: Condition) -> Result<(), StoreError> {
        self.forget_unauthenticated(which.clone().add(Column::RecordMac.is_null())).await?;
        self.forget_one_by_one(which.add(Column::RecordMac.is_not_null())).await
    }

    /// Each with a code for what stays on record. Entries that get another failure or another pair meanwhile are left to whoever
    /// writes that.
    async fn forget_one_by_one(&self, which: Condition) -> Result<(), StoreError> {
        let mut after = 0;
        loop {
            let rows = TokenEntry::find()
                .filter(which.clone())
                .filter(Column::Id.gt(after))
                .order_by_asc(Column::Id)
                .limit(PAGE)
                .all(&self.db)
                .await
                .map_err(StoreError::database("load failed refreshes"))?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.id;
            let mut forgotten =
                stream::iter(rows).map(|row| self.forget_failure_of(row)).buffer_unordered(AT_ONCE);
            while let Some(forgotten) = forgotten.next().await {
                forgotten?;
            }
        }
    }

    async fn forget_failure_of(&self, row: token_entry::Model) -> Result<(), StoreError> {
        let mut entry = match Entry::from_row(row).and_then(|entry| self.check(&entry).map(|()| entry)) {
            Ok(entry) => entry,
            // It stays as it is: a new code would make a forged record good.
            Err(error) => {
                telemetry::row_unusable(&error);
                return Ok(());
            }
        };
        loop {
            let mac = self.mac_of(&entry, &entry.record.without_failure())?;
            let mut update = TokenEntry::update_many();
            if entry.failure.as_ref().is_some_and(|failure| failure.kind == FailureKind::Interrupted) {
                update = update
                    .col_expr(Column::AttemptFingerprint, Expr::value(entry.record.fingerprint.clone()));
            }
            let updated = without_failure(update)
                .col_expr(Column::RecordMac, Expr::value(mac))
                .filter(entry.has_record_as_loaded())
                .exec(&self.db)
                .await
                .map_err(StoreError::database("forget a failed refresh"))?;
            if updated.rows_affected > 0 {
                return Ok(());
            }
            // Somebody may have reported the token meanwhile.
            match self.reload_for_record(&entry).await? {
                Some(again) if again.record.has_failure_of(&entry.record) => entry = again,
                Some(_) | None => return Ok(()),
            }
        }
    }

    /// Entries in format 1 have no code: all at once.
    async fn forget_unauthenticated(&self, which: Condition) -> Result<(), StoreError> {
        // What is left of a refresh that was interrupted is the doubt whether it took effect. First in the statement,
        // because MariaDB and MySQL set one column after the other.
        let doubtful = TokenEntry::update_many()
            .col_expr(Column::AttemptFingerprint, Expr::col(Column::FailureFingerprint));
        without_failure(doubtful)
            .filter(which.clone().add(is_interrupted()))
            .exec(&self.db)
            .await
            .map_err(StoreError::database("forget interrupted refreshes"))?;
        without_failure(TokenEntry::update_many())
            .filter(which)
            .exec(&self.db)
            .await
            .map_err(StoreError::database("forget failed refreshes"))?;
        Ok(())
    }
}

fn without_failure(update: UpdateMany<TokenEntry>) -> UpdateMany<TokenEntry> {
    update
        .col_expr(Column::FailureCode, Expr::value(None::<String>))
        .col_expr(Column::FailureMessage, Expr::value(None::<String>))
        .col_expr(Column::FailureFingerprint, Expr::value(None::<String>))
        .col_expr(Column::FailedAt, Expr::value(None::<i64>))
}

fn is_refused() -> Condition {
    Condition::all().add(Column::FailureCode.eq(FailureKind::Refused.name()))
}

fn is_interrupted() -> Condition {
    Condition::all().add(Column::FailureCode.eq(FailureKind::Interrupted.name()))
}

/// The pair came from a refresh.
fn is_refreshed() -> Condition {
    Condition::all().add(Column::RefreshedAt.is_not_null())
}

/// The pair came from a refresh with the settings that the provider has now.
fn is_refreshed_by(provider: &Provider) -> Condition {
    Condition::all().add(Column::RefreshedAt.gte(provider.updated_at.as_millis()))
}

fn entries_of(provider_id: i64) -> Select<TokenEntry> {
    TokenEntry::find().select_only().filter(of_provider(provider_id))
}

fn of_provider(provider_id: i64) -> Condition {
    Condition::all().add(Column::ProviderId.eq(provider_id))
}
