//! Providers as `tokenkeeper provider apply` keeps them.

use std::time::Duration;

use sea_orm::ActiveValue::{NotSet, Set, Unchanged};
use sea_orm::{ActiveModelTrait, ColumnTrait, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder};
use tokenkeeper_entity::{auth_provider, identity};
use url::Url;

use super::{Store, StoreError};
use crate::clock::Timestamp;
use crate::provider::{ClientAuth, Provider, ProviderKind, RequiredWhileReserved, default_token_url};
use crate::secret::{ExposeSecret, SecretString};

/// A provider as an operator wrote it: what is none is the kind's default.
#[derive(Debug, Clone)]
pub struct ProviderRecord {
    /// As it stands in clone URLs.
    pub host: String,
    /// Which product it is.
    pub kind: ProviderKind,
    /// OAuth client id.
    pub client_id: String,
    /// OAuth client secret.
    pub client_secret: SecretString,
    /// Token endpoint.
    pub token_url: Option<Url>,
    /// How the client authenticates there.
    pub client_auth: Option<ClientAuth>,
    /// The redirect URI sent with a refresh.
    pub redirect_uri: Option<String>,
    /// Git user name.
    pub username: Option<String>,
    /// Whether opportunistic refresh is on.
    pub opportunistic_refresh: Option<bool>,
    /// How long before expiry an opportunistic refresh is due.
    pub opportunistic_refresh_window_secs: Option<u32>,
    /// What a required refresh does under a reservation.
    pub required_while_reserved: Option<RequiredWhileReserved>,
    /// Refreshes in flight at once.
    pub max_concurrent_refreshes: Option<u16>,
}

/// What applying a record did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProviderChange {
    /// The provider is new.
    Created,
    /// It was there, and these settings changed: name, before, after. A secret is only named.
    Updated(Vec<(&'static str, String, String)>),
    /// It was there just so.
    Unchanged,
}

/// What removing a provider did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoveProvider {
    /// It is gone, with this many identities and their tokens.
    Removed(u64),
    /// It was not there.
    NotFound,
    /// It has this many identities, and removing them was not asked for.
    HasIdentities(u64),
}

impl Store {
    /// The provider of a host, its kind's defaults filled in.
    pub async fn provider(&self, host: &str) -> Result<Option<Provider>, StoreError> {
        let row = self.provider_row(host).await?;
        row.map(|row| self.read_provider(row)).transpose()
    }

    /// Every provider, by host.
    pub async fn all_providers(&self) -> Result<Vec<Provider>, StoreError> {
        let rows = auth_provider::Entity::find()
            .order_by_asc(auth_provider::Column::Host)
            .all(&self.db)
            .await
            .map_err(StoreError::database("list the providers"))?;
        rows.into_iter().map(|row| self.read_provider(row)).collect()
    }

    /// Creates or updates the provider of the record's host, and says what changed.
    pub async fn put_provider(
        &self,
        record: &ProviderRecord,
        now: Timestamp,
    ) -> Result<ProviderChange, StoreError> {
        let Some(row) = self.provider_row(&record.host).await? else {
            self.write_record(record, None, now)
                .insert(&self.db)
                .await
                .map_err(StoreError::database("create a provider"))?;
            return Ok(ProviderChange::Created);
        };
        let created_at = row.created_at;
        let (id, before) = self.read_record(row)?;
        let changes = before.differences(record);
        if changes.is_empty() {
            return Ok(ProviderChange::Unchanged);
        }
        // Twice: before, so that a command that dies half way is run again with effect, since then there is still a
        // change to apply; and after, for what workers recorded meanwhile who knew the old settings.
        self.forget_failures(id).await?;
        self.write_record(record, Some((id, created_at)), now)
            .update(&self.db)
            .await
            .map_err(StoreError::database("update a provider"))?;
        self.forget_failures(id).await?;
        Ok(ProviderChange::Updated(changes))
    }

    /// Removes a provider; with `cascade` its identities and their tokens too.
    pub async fn remove_provider(&self, host: &str, cascade: bool) -> Result<RemoveProvider, StoreError> {
        let failed = StoreError::database;
        let Some(row) = self.provider_row(host).await? else { return Ok(RemoveProvider::NotFound) };
        let of_provider = identity::Column::ProviderId.eq(row.id);
        let identities = identity::Entity::find()
            .filter(of_provider.clone())
            .count(&self.db)
            .await
            .map_err(failed("count the identities of a provider"))?;
        if identities > 0 && !cascade {
            return Ok(RemoveProvider::HasIdentities(identities));
        }
        let removed = identity::Entity::delete_many()
            .filter(of_provider)
            .exec(&self.db)
            .await
            .map_err(failed("remove the identities of a provider"))?;
        auth_provider::Entity::delete_by_id(row.id)
            .exec(&self.db)
            .await
            .map_err(failed("remove a provider"))?;
        Ok(RemoveProvider::Removed(removed.rows_affected))
    }

    async fn provider_row(&self, host: &str) -> Result<Option<auth_provider::Model>, StoreError> {
        auth_provider::Entity::find()
            .filter(auth_provider::Column::Host.eq(host))
            .one(&self.db)
            .await
            .map_err(StoreError::database("look a provider up"))
    }

    fn read_provider(&self, row: auth_provider::Model) -> Result<Provider, StoreError> {
        let updated_at = Timestamp::from_millis(row.updated_at);
        let refusing_since = row.refusing_since.map(Timestamp::from_millis);
        let (id, record) = self.read_record(row)?;
        record.resolve(id, updated_at, refusing_since)
    }

    fn read_record(&self, row: auth_provider::Model) -> Result<(i64, ProviderRecord), StoreError> {
        let corrupt = |column: &str, reason: String| StoreError::Corrupt {
            what: format!("column {column} of auth_provider {}", row.id),
            reason,
        };
        let client_secret = self
            .keys
            .open(&row.key_id, &row.client_secret_sealed, &secret_bound_to(&row.host))
            .map_err(|source| StoreError::Sealed {
                what: format!("column client_secret_sealed of auth_provider {} ({})", row.id, row.host),
                source,
            })?;
        let record = ProviderRecord {
            kind: row.kind.parse().map_err(|error| corrupt("kind", format!("{error}")))?,
            client_secret,
            token_url: row
                .token_url
                .as_deref()
                .map(Url::parse)
                .transpose()
                .map_err(|error| corrupt("token_url", error.to_string()))?,
            client_auth: row
                .client_auth
                .as_deref()
                .map(str::parse)
                .transpose()
                .map_err(|error| corrupt("client_auth", format!("{error}")))?,
            required_while_reserved: row
                .required_while_reserved
                .as_deref()
                .map(str::parse)
                .transpose()
                .map_err(|error| corrupt("required_while_reserved", format!("{error}")))?,
            opportunistic_refresh_window_secs: row
                .opportunistic_refresh_window_secs
                .and_then(|secs| u32::try_from(secs).ok()),
            max_concurrent_refreshes: row.max_concurrent_refreshes.and_then(|max| u16::try_from(max).ok()),
            host: row.host,
            client_id: row.client_id,
            redirect_uri: row.redirect_uri,
            username: row.username,
            opportunistic_refresh: row.opportunistic_refresh,
        };
        Ok((row.id, record))
    }

    fn write_record(
        &self,
        record: &ProviderRecord,
        existing: Option<(i64, i64)>,
        now: Timestamp,
    ) -> auth_provider::ActiveModel {
        let sealed = self.keys.seal(&record.client_secret, &secret_bound_to(&record.host));
        auth_provider::ActiveModel {
            id: existing.map_or(NotSet, |(id, _)| Unchanged(id)),
            host: Set(record.host.clone()),
            kind: Set(record.kind.name().to_owned()),
            client_id: Set(record.client_id.clone()),
            client_secret_sealed: Set(sealed.bytes),
            key_id: Set(sealed.key_id),
            token_url: Set(record.token_url.as_ref().map(Url::to_string)),
            client_auth: Set(record.client_auth.map(|auth| auth.name().to_owned())),
            redirect_uri: Set(record.redirect_uri.clone()),
            username: Set(record.username.clone()),
            opportunistic_refresh: Set(record.opportunistic_refresh),
            opportunistic_refresh_window_secs: Set(record.opportunistic_refresh_window_secs.map(i64::from)),
            required_while_reserved: Set(record.required_while_reserved.map(|rule| rule.name().to_owned())),
            max_concurrent_refreshes: Set(record.max_concurrent_refreshes.map(i32::from)),
            // What it did under other settings says nothing about these.
            refusing_since: Set(None),
            created_at: existing.map_or(Set(now.as_millis()), |(_, created_at)| Unchanged(created_at)),
            updated_at: Set(now.as_millis()),
        }
    }
}

impl ProviderRecord {
    /// The provider that workers use: the kind's defaults where the record says nothing.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] where neither the record nor the kind says what must be known; `provider apply`
    /// lets no such record in.
    pub fn resolve(
        self,
        id: i64,
        updated_at: Timestamp,
        refusing_since: Option<Timestamp>,
    ) -> Result<Provider, StoreError> {
        let profile = self.kind.profile();
        let missing = |what: &str| StoreError::Corrupt {
            what: format!("auth_provider {id} ({})", self.host),
            reason: format!("kind {} has no default {what}; set it in the provider file", self.kind),
        };
        Ok(Provider {
            id,
            token_url: self
                .token_url
                .clone()
                .or_else(|| default_token_url(self.kind, &self.host))
                .ok_or_else(|| missing("token_url"))?,
            client_auth: self.client_auth.or(profile.client_auth).ok_or_else(|| missing("client_auth"))?,
            username: self.username.unwrap_or_else(|| profile.username.to_owned()),
            kills_old_token: profile.kills_old_token,
            opportunistic_refresh: self.opportunistic_refresh.unwrap_or(profile.opportunistic_refresh),
            opportunistic_refresh_window: self
                .opportunistic_refresh_window_secs
                .map(|secs| Duration::from_secs(secs.into())),
            required_while_reserved: self.required_while_reserved.unwrap_or_default(),
            max_concurrent_refreshes: self
                .max_concurrent_refreshes
                .map_or(profile.max_concurrent_refreshes, usize::from),
            host: self.host,
            kind: self.kind,
            client_id: self.client_id,
            client_secret: self.client_secret,
            redirect_uri: self.redirect_uri,
            updated_at,
            refusing_since,
        })
    }

    fn differences(&self, after: &Self) -> Vec<(&'static str, String, String)> {
        let shown = |value: Option<String>| value.unwrap_or_else(|| "(default)".to_owned());
        let mut changes = Vec::new();
        let mut compare = |name, before: String, after: String| {
            if before != after {
                changes.push((name, before, after));
            }
        };
        compare("kind", self.kind.to_string(), after.kind.to_string());
        compare("client_id", self.client_id.clone(), after.client_id.clone());
        compare(
            "token_url",
            shown(self.token_url.as_ref().map(Url::to_string)),
            shown(after.token_url.as_ref().map(Url::to_string)),
        );
        compare(
            "client_auth",
            shown(self.client_auth.map(|auth| auth.name().to_owned())),
            shown(after.client_auth.map(|auth| auth.name().to_owned())),
        );
        compare("redirect_uri", shown(self.redirect_uri.clone()), shown(after.redirect_uri.clone()));
        compare("username", shown(self.username.clone()), shown(after.username.clone()));
        compare(
            "opportunistic_refresh",
            shown(self.opportunistic_refresh.map(|on| on.to_string())),
            shown(after.opportunistic_refresh.map(|on| on.to_string())),
        );
        compare(
            "opportunistic_refresh_window_secs",
            shown(self.opportunistic_refresh_window_secs.map(|secs| secs.to_string())),
            shown(after.opportunistic_refresh_window_secs.map(|secs| secs.to_string())),
        );
        compare(
            "required_while_reserved",
            shown(self.required_while_reserved.map(|rule| rule.name().to_owned())),
            shown(after.required_while_reserved.map(|rule| rule.name().to_owned())),
        );
        compare(
            "max_concurrent_refreshes",
            shown(self.max_concurrent_refreshes.map(|max| max.to_string())),
            shown(after.max_concurrent_refreshes.map(|max| max.to_string())),
        );
        if self.client_secret.expose_secret() != after.client_secret.expose_secret() {
            changes.push(("client_secret", "(secret)".to_owned(), "(another secret)".to_owned()));
        }
        changes
    }
}

/// What a client secret's ciphertext is bound to.
fn secret_bound_to(host: &str) -> String {
    format!("auth_provider/client_secret_sealed/{host}")
}
