//! What a login flow brings: identity and first pair, or the next ones.

use sea_orm::ActiveValue::{NotSet, Set};
use sea_orm::sea_query::Expr;
use sea_orm::{ActiveModelTrait, ColumnTrait, DbErr, EntityTrait, QueryFilter, SqlErr};
use tokenkeeper_entity::{identity, token_entry};

use super::entry::{Entry, Owner};
use super::pair::{Leases, NewPair};
use super::{Guarded, Store, StoreError};
use crate::domain::clock::Timestamp;

/// A user's account at a provider, from a login flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountNames {
    pub auth_id: String,
    pub auth_name: Option<String>,
}

impl Store {
    /// Creates or replaces identity and pair. This moves the generation, so it wins over a refresh under way.
    ///
    /// If the broker delivers a message again whose pair was stored, nothing changes. A refresh may have replaced that pair in
    /// between, and its successor must not be lost (invariant 4).
    pub async fn put_login(
        &self,
        user_id: &str,
        provider_id: i64,
        account: &AccountNames,
        pair: &NewPair,
        redelivered: bool,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let identity_id = self.put_identity(user_id, provider_id, account, now).await?;
        let owner = Owner { identity_id, user: user_id, provider_id };
        loop {
            let entry = token_entry::Entity::find()
                .filter(token_entry::Column::IdentityId.eq(identity_id))
                .one(&self.db)
                .await
                .map_err(StoreError::database("load the token of an identity"))?;
            let stored = match entry {
                Some(row) if redelivered && row.login_fingerprint == pair.login_fingerprint() => true,
                Some(row) => self.store_pair(&Entry::from_row(row)?, pair, Leases::All, now).await?.is_some(),
                None => self.insert_entry(owner, pair, now).await? == Guarded::Done,
            };
            if stored {
                return Ok(());
            }
        }
    }

    async fn put_identity(
        &self,
        user_id: &str,
        provider_id: i64,
        account: &AccountNames,
        now: Timestamp,
    ) -> Result<i64, StoreError> {
        loop {
            let known = identity::Entity::find()
                .filter(identity::Column::UserId.eq(user_id))
                .filter(identity::Column::ProviderId.eq(provider_id))
                .one(&self.db)
                .await
                .map_err(StoreError::database("look an identity up"))?;
            if let Some(known) = known {
                self.rename_identity(&known, account, now).await?;
                return Ok(known.id);
            }
            let new = identity::ActiveModel {
                id: NotSet,
                user_id: Set(user_id.to_owned()),
                provider_id: Set(provider_id),
                auth_id: Set(account.auth_id.clone()),
                auth_name: Set(account.auth_name.clone()),
                created_at: Set(now.as_millis()),
                updated_at: Set(now.as_millis()),
            };
            match new.insert(&self.db).await {
                Ok(row) => return Ok(row.id),
                Err(error) if is_duplicate(&error) => {}
                Err(source) => return Err(StoreError::Database { action: "store an identity", source }),
            }
        }
    }

    async fn rename_identity(
        &self,
        known: &identity::Model,
        account: &AccountNames,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        if known.auth_id == account.auth_id && known.auth_name == account.auth_name {
            return Ok(());
        }
        identity::Entity::update_many()
            .col_expr(identity::Column::AuthId, Expr::value(account.auth_id.as_str()))
            .col_expr(identity::Column::AuthName, Expr::value(account.auth_name.clone()))
            .col_expr(identity::Column::UpdatedAt, Expr::value(now.as_millis()))
            .filter(identity::Column::Id.eq(known.id))
            .exec(&self.db)
            .await
            .map_err(StoreError::database("rename an identity"))?;
        Ok(())
    }

    /// Inserts the first entry of an identity. `Moved`: another worker was first.
    async fn insert_entry(
        &self,
        owner: Owner<'_>,
        pair: &NewPair,
        now: Timestamp,
    ) -> Result<Guarded, StoreError> {
        let new = self.new_entry(owner, 1, pair, now).first_row();
        match token_entry::Entity::insert(new).exec_without_returning(&self.db).await {
            Ok(_) => Ok(Guarded::Done),
            Err(error) if is_duplicate(&error) => Ok(Guarded::Moved),
            Err(source) => Err(StoreError::Database { action: "store a first token pair", source }),
        }
    }
}

pub(super) fn is_duplicate(error: &DbErr) -> bool {
    matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_)))
}
