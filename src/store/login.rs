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

/// What a login does to the entry of its identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoginEffect {
    /// There was no pair.
    Created,
    /// The pair takes the place of another one.
    Replaced,
    /// The stored pair is newer and stays.
    Kept,
}

/// What a login did, and which generation is stored since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredLogin {
    pub effect: LoginEffect,
    pub generation: i64,
}

impl LoginEffect {
    /// The word in the audit log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Replaced => "replaced",
            Self::Kept => "kept",
        }
    }
}

impl Store {
    /// Creates or replaces identity and pair. This moves the generation, so it wins over a refresh under way.
    ///
    /// A login that is repeated changes nothing. A refresh may have replaced its pair since, and the successor must not be lost
    /// (invariant 4). The same holds for a pair that was issued before the stored one. With `replace` the stored pair goes in
    /// any case.
    pub async fn put_login(
        &self,
        user_id: &str,
        provider_id: i64,
        account: &AccountNames,
        pair: &NewPair,
        replace: bool,
        now: Timestamp,
    ) -> Result<StoredLogin, StoreError> {
        let identity = self.put_identity(user_id, provider_id, account, now).await?;
        let owner = Owner { identity_id: identity.id, user: user_id, provider_id };
        loop {
            let stored = self.entry_of(&owner).await?;
            let effect = self.login_effect(stored.as_ref(), pair, replace);
            let before = stored.as_ref().map_or(0, |stored| stored.generation);
            if effect == LoginEffect::Kept {
                return Ok(StoredLogin { effect, generation: before });
            }
            self.rename_identity(&identity, account, now).await?;
            let is_done = match stored {
                Some(stored) => self.store_pair(&stored, pair, Leases::All, now).await?.is_some(),
                None => self.insert_entry(owner, pair, now).await? == Guarded::Done,
            };
            if is_done {
                return Ok(StoredLogin { effect, generation: before + 1 });
            }
        }
    }

    /// What [`Store::put_login`] would do now. Only reads.
    pub async fn preview_login(
        &self,
        user_id: &str,
        provider_id: i64,
        pair: &NewPair,
        replace: bool,
    ) -> Result<LoginEffect, StoreError> {
        let stored = match self.identity(user_id, provider_id).await? {
            Some(identity) => {
                self.entry_of(&Owner { identity_id: identity.id, user: user_id, provider_id }).await?
            }
            None => None,
        };
        Ok(self.login_effect(stored.as_ref(), pair, replace))
    }

    fn login_effect(&self, stored: Option<&Entry>, pair: &NewPair, replace: bool) -> LoginEffect {
        match stored {
            None => LoginEffect::Created,
            // Of a row that somebody changed nothing is kept: the login mends it.
            Some(stored) if !replace && pair.is_older_than(stored) && !self.is_changed(stored) => {
                LoginEffect::Kept
            }
            Some(_) => LoginEffect::Replaced,
        }
    }

    /// The new pair is bound to the owner that stands in the row, so this must be the one that logs in.
    pub(super) async fn entry_of(&self, owner: &Owner<'_>) -> Result<Option<Entry>, StoreError> {
        let row = token_entry::Entity::find()
            .filter(token_entry::Column::IdentityId.eq(owner.identity_id))
            .one(&self.db)
            .await
            .map_err(StoreError::database("load the token of an identity"))?;
        let entry = row.map(Entry::from_row).transpose()?;
        entry.map(|entry| entry.check_owner(owner).map(|()| entry)).transpose()
    }

    pub(super) async fn identity(
        &self,
        user_id: &str,
        provider_id: i64,
    ) -> Result<Option<identity::Model>, StoreError> {
        identity::Entity::find()
            .filter(identity::Column::UserId.eq(user_id))
            .filter(identity::Column::ProviderId.eq(provider_id))
            .one(&self.db)
            .await
            .map_err(StoreError::database("look an identity up"))
    }

    /// The identity, with the names that it had before if it is there.
    pub(super) async fn put_identity(
        &self,
        user_id: &str,
        provider_id: i64,
        account: &AccountNames,
        now: Timestamp,
    ) -> Result<identity::Model, StoreError> {
        loop {
            if let Some(known) = self.identity(user_id, provider_id).await? {
                return Ok(known);
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
                Ok(row) => return Ok(row),
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

    /// The row of an identity's first pair, as a login writes it. For who writes many of them at once.
    pub fn first_row(
        &self,
        identity_id: i64,
        user: &str,
        provider_id: i64,
        pair: &NewPair,
        now: Timestamp,
    ) -> token_entry::ActiveModel {
        self.new_entry(Owner { identity_id, user, provider_id }, 1, pair, None, now).first_row()
    }

    /// Inserts the first entry of an identity. `Moved`: another worker was first.
    async fn insert_entry(
        &self,
        owner: Owner<'_>,
        pair: &NewPair,
        now: Timestamp,
    ) -> Result<Guarded, StoreError> {
        let new = self.first_row(owner.identity_id, owner.user, owner.provider_id, pair, now);
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
