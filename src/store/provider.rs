//! Providers as `tokenkeeper provider apply` keeps them.

mod seal;
mod stake;

use sea_orm::ActiveValue::NotSet;
use sea_orm::{
    ActiveModelTrait, ColumnTrait, DbErr, EntityTrait, IntoActiveModel, PaginatorTrait, QueryFilter,
    QueryOrder, TransactionTrait,
};
use serde::Serialize;
use tokenkeeper_entity::{auth_provider, identity};
use url::Url;

pub(super) use self::seal::{SecretColumn, seal};
pub use self::stake::{Move, Stake};
use super::{Store, StoreError};
use crate::domain::clock::Timestamp;
use crate::domain::provider::{Change, Overrides, Provider, ProviderRecord};
use crate::domain::secret::{ExposeSecret, OpenError, SecretString};
use crate::telemetry;

/// The effect of applying a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProviderChange {
    /// The provider is new.
    Created,
    /// These settings changed. Secrets are not shown.
    Updated(Vec<Change>),
    /// Nothing changed.
    Unchanged,
}

/// The effect of removing a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoveProvider {
    /// Removed, with this many identities and their tokens.
    Removed(u64),
    NotFound,
    /// Not removed: the provider has this many identities.
    HasIdentities(u64),
}

impl Store {
    /// The provider that serves a host, with its kind's defaults.
    pub async fn provider(&self, host: &str) -> Result<Option<Provider>, StoreError> {
        let row = match self.provider_row(host).await? {
            Some(row) => Some(row),
            None => self.provider_row_of_other_host(host).await?,
        };
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

    /// The providers whose rows can be used. One that somebody changed must not keep the others from being cared for.
    pub async fn usable_providers(&self) -> Result<Vec<Provider>, StoreError> {
        let rows = auth_provider::Entity::find()
            .all(&self.db)
            .await
            .map_err(StoreError::database("list the providers"))?;
        let read = rows.into_iter().map(|row| self.read_provider(row));
        Ok(read.filter_map(|read| read.inspect_err(|error| telemetry::row_unusable(error)).ok()).collect())
    }

    /// Creates or updates the provider of the record's host.
    pub async fn put_provider(
        &self,
        record: &ProviderRecord,
        now: Timestamp,
    ) -> Result<ProviderChange, StoreError> {
        let Some(row) = self.provider_row(&record.host).await? else {
            self.insert_record(record, now).await.map_err(StoreError::database("create a provider"))?;
            return Ok(ProviderChange::Created);
        };
        let (id, created_at) = (row.id, row.created_at);
        let changes = match self.read_record(row) {
            Ok((_, before)) => before.differences(record),
            // What somebody else wrote there is overwritten, and its secrets with it.
            Err(StoreError::Sealed { source: OpenError::Tampered(_), .. }) => vec![changed_outside()],
            Err(error) => return Err(error),
        };
        if changes.is_empty() {
            return Ok(ProviderChange::Unchanged);
        }
        // Twice: before, so that a command that dies half way is run again with effect, since then there is still a
        // change to apply; and after, for what workers recorded meanwhile who knew the old settings.
        self.forget_failures(id).await?;
        let row = auth_provider::Model { id, created_at, ..row_of(record, now) };
        self.seal_row(row, record)
            .into_active_model()
            .reset_all()
            .update(&self.db)
            .await
            .map_err(StoreError::database("update a provider"))?;
        self.forget_failures(id).await?;
        Ok(ProviderChange::Updated(changes))
    }

    /// Removes a provider. With `cascade` also its identities and their tokens.
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

    /// A scan is enough: few providers have other hosts.
    async fn provider_row_of_other_host(
        &self,
        host: &str,
    ) -> Result<Option<auth_provider::Model>, StoreError> {
        let rows = auth_provider::Entity::find()
            .filter(auth_provider::Column::Overrides.is_not_null())
            .all(&self.db)
            .await
            .map_err(StoreError::database("look a provider up"))?;
        for row in rows {
            if overrides(&row)?.other_hosts.iter().any(|other| other == host) {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }

    /// The hosts of these records that other providers serve already, each with that provider's host.
    pub async fn taken_hosts(&self, records: &[ProviderRecord]) -> Result<Vec<(String, String)>, StoreError> {
        let rows = auth_provider::Entity::find()
            .all(&self.db)
            .await
            .map_err(StoreError::database("list the providers"))?;
        let mut taken = Vec::new();
        for row in rows.iter().filter(|row| records.iter().all(|record| record.host != row.host)) {
            let others = overrides(row)?.other_hosts;
            let has = |host: &str| row.host == host || others.iter().any(|other| other == host);
            let hosts = records.iter().flat_map(ProviderRecord::hosts).filter(|host| has(host));
            taken.extend(hosts.map(|host| (host.to_owned(), row.host.clone())));
        }
        Ok(taken)
    }

    pub(super) fn read_provider(&self, row: auth_provider::Model) -> Result<Provider, StoreError> {
        let updated_at = Timestamp::from_millis(row.updated_at);
        let refusing_since = row.refusing_since.map(Timestamp::from_millis);
        let (id, record) = self.read_record(row)?;
        let what = format!("auth_provider {id} ({})", record.host);
        let provider = record.resolve(id, updated_at, refusing_since);
        provider.map_err(|error| StoreError::Corrupt { what, reason: error.to_string() })
    }

    fn read_record(&self, row: auth_provider::Model) -> Result<(i64, ProviderRecord), StoreError> {
        let corrupt = |column: &str, reason: String| StoreError::Corrupt {
            what: format!("column {column} of auth_provider {}", row.id),
            reason,
        };
        let open = |column: SecretColumn, sealed: &[u8]| {
            self.keys.open(&row.key_id, sealed, column.binding(&row)).map_err(|source| {
                let what = format!("column {} of auth_provider {} ({})", column.name(), row.id, row.host);
                StoreError::Sealed { what, source }
            })
        };
        let client_secret = open(SecretColumn::ClientSecret, &row.client_secret_sealed)?;
        let spare = row.spare_client_secrets_sealed.as_deref();
        let spare = spare.map(|sealed| open(SecretColumn::SpareClientSecrets, sealed)).transpose()?;
        let spare = spare.map(|spare| serde_json::from_str::<Vec<String>>(spare.expose_secret())).transpose();
        let spare = spare.map_err(|_| corrupt("spare_client_secrets_sealed", "is no list".to_owned()))?;
        let record = ProviderRecord {
            overrides: overrides(&row)?,
            spare_client_secrets: spare.unwrap_or_default().into_iter().map(SecretString::from).collect(),
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

    /// Its secrets are bound to its id, which is known after the row is there. Nobody sees it in between.
    async fn insert_record(&self, record: &ProviderRecord, now: Timestamp) -> Result<(), DbErr> {
        let transaction = self.db.begin().await?;
        let row = row_of(record, now);
        let unsealed =
            auth_provider::ActiveModel { id: NotSet, ..row.clone().into_active_model().reset_all() };
        let id = auth_provider::Entity::insert(unsealed).exec(&transaction).await?.last_insert_id;
        let sealed = self.seal_row(auth_provider::Model { id, ..row }, record);
        sealed.into_active_model().reset_all().update(&transaction).await?;
        transaction.commit().await
    }
}

/// A row that was not written by tokenkeeper. What it had before is unknown.
fn changed_outside() -> Change {
    ("(all)", "(changed from outside)".to_owned(), "(as in the file)".to_owned())
}

/// The record's row without its secrets, before it has an id.
fn row_of(record: &ProviderRecord, now: Timestamp) -> auth_provider::Model {
    let overrides = (record.overrides != Overrides::default()).then(|| json(&record.overrides));
    auth_provider::Model {
        id: 0,
        host: record.host.clone(),
        kind: record.kind.name().to_owned(),
        client_id: record.client_id.clone(),
        client_secret_sealed: Vec::new(),
        spare_client_secrets_sealed: None,
        key_id: String::new(),
        overrides,
        token_url: record.token_url.as_ref().map(Url::to_string),
        client_auth: record.client_auth.map(|auth| auth.name().to_owned()),
        redirect_uri: record.redirect_uri.clone(),
        username: record.username.clone(),
        opportunistic_refresh: record.opportunistic_refresh,
        opportunistic_refresh_window_secs: record.opportunistic_refresh_window_secs.map(i64::from),
        required_while_reserved: record.required_while_reserved.map(|rule| rule.name().to_owned()),
        max_concurrent_refreshes: record.max_concurrent_refreshes.map(i32::from),
        // What it did under other settings says nothing about these.
        refusing_since: None,
        created_at: now.as_millis(),
        updated_at: now.as_millis(),
    }
}

/// The row's JSON column.
fn overrides(row: &auth_provider::Model) -> Result<Overrides, StoreError> {
    let read = row.overrides.as_deref().map(serde_json::from_str).transpose();
    read.map(Option::unwrap_or_default).map_err(|error| StoreError::Corrupt {
        what: format!("column overrides of auth_provider {}", row.id),
        reason: error.to_string(),
    })
}

#[expect(clippy::expect_used, reason = "texts, numbers and lists of them have a JSON form")]
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("JSON")
}
