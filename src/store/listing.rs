//! What operators may see of identities and their tokens: everything but the tokens.
//!
//! Nothing here reads a ciphertext, so nothing here needs a key.

use sea_orm::sea_query::Expr;
use sea_orm::{
    ColumnTrait, DatabaseConnection, EntityTrait, FromQueryResult, JoinType, QueryFilter, QueryOrder,
    QuerySelect, RelationTrait,
};
use serde::Serialize;
use tokenkeeper_entity::{auth_provider, identity, token_entry};

use super::StoreError;
use crate::domain::clock::Timestamp;

/// The identities of one database, as lists show them.
#[derive(Debug, Clone)]
pub struct Listing {
    db: DatabaseConnection,
}

/// Which identities to list. A field that is not set does not filter.
#[derive(Debug, Clone, Default)]
pub struct ListingFilter {
    /// Of this user.
    pub user_id: Option<String>,
    /// At this provider.
    pub host: Option<String>,
}

/// An identity, and its token entry without the tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedIdentity {
    /// Row id: where the next page begins.
    #[serde(skip)]
    pub id: i64,
    /// The platform's user.
    pub user_id: String,
    /// The provider's host.
    pub host: String,
    /// The account's id at the provider.
    pub auth_id: String,
    /// The account's display name at the provider.
    pub auth_name: Option<String>,
    /// None: the identity has no token.
    pub token: Option<ListedToken>,
}

/// A token entry without its tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedToken {
    /// Counts the pairs stored here.
    pub generation: i64,
    /// Git user name that goes with the token; none: the provider's.
    pub username: Option<String>,
    /// The scopes that were granted.
    pub scopes: Vec<String>,
    /// When this pair was stored.
    pub updated_at: Timestamp,
    /// When the access token expires; none: never.
    pub expires_at: Option<Timestamp>,
    /// Whether there is a refresh token.
    pub refreshable: bool,
    /// When the refresh token expires, where it is known.
    pub refresh_token_expires_at: Option<Timestamp>,
    /// The lifetime that the provider granted, in seconds, where it is known.
    pub granted_lifetime_secs: Option<i64>,
    /// Until then nobody refreshes it opportunistically.
    pub reserved_until: Option<Timestamp>,
    /// Who refreshes it; over where its time is.
    pub lease: Option<ListedLease>,
    /// Whether the outcome of a refresh of this pair is unknown, unless its lease is live.
    pub in_doubt: bool,
    /// When somebody reported that the host rejects the access token; none: nobody did.
    pub reported_at: Option<Timestamp>,
    /// How the last refresh of this pair failed, if one did.
    pub failure: Option<ListedFailure>,
}

/// A refresh lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedLease {
    /// Which flight holds it.
    pub holder: String,
    /// Until when it is live.
    pub until: Timestamp,
}

/// A refresh that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedFailure {
    /// What kind of failure.
    pub code: String,
    /// What it was, in words; never a secret.
    pub message: String,
    /// When it failed.
    pub at: Timestamp,
}

impl Listing {
    /// The listing of this database.
    pub const fn new(db: DatabaseConnection) -> Self {
        Self { db }
    }

    /// The identities behind `after` (a row id; 0: from the first one on), at most `limit` of them. A list of any
    /// length is read page by page, so that neither side ever holds all of it.
    pub async fn page(
        &self,
        filter: &ListingFilter,
        after: i64,
        limit: u64,
    ) -> Result<Vec<ListedIdentity>, StoreError> {
        let mut rows = identity::Entity::find()
            .select_only()
            .columns([
                identity::Column::Id,
                identity::Column::UserId,
                identity::Column::AuthId,
                identity::Column::AuthName,
            ])
            .column(auth_provider::Column::Host)
            .columns([
                token_entry::Column::Generation,
                token_entry::Column::Username,
                token_entry::Column::Scopes,
                token_entry::Column::UpdatedAt,
                token_entry::Column::ExpiresAt,
                token_entry::Column::RefreshTokenExpiresAt,
                token_entry::Column::GrantedLifetimeMs,
                token_entry::Column::ReservedUntil,
                token_entry::Column::LeaseHolder,
                token_entry::Column::LeaseUntil,
                token_entry::Column::AttemptFingerprint,
                token_entry::Column::ReportedAt,
                token_entry::Column::FailureCode,
                token_entry::Column::FailureMessage,
                token_entry::Column::FailedAt,
            ])
            // A number, because the three databases give a comparison three different types.
            .expr_as(
                Expr::cust("CASE WHEN token_entry.refresh_token_sealed IS NULL THEN 0 ELSE 1 END"),
                "refreshable",
            )
            .join(JoinType::InnerJoin, identity::Relation::AuthProvider.def())
            .join(JoinType::LeftJoin, identity::Relation::TokenEntry.def())
            .filter(identity::Column::Id.gt(after))
            .order_by_asc(identity::Column::Id)
            .limit(limit);
        if let Some(user_id) = &filter.user_id {
            rows = rows.filter(identity::Column::UserId.eq(user_id.as_str()));
        }
        if let Some(host) = &filter.host {
            rows = rows.filter(auth_provider::Column::Host.eq(host.as_str()));
        }
        let rows: Vec<Row> =
            rows.into_model().all(&self.db).await.map_err(StoreError::database("list identities"))?;
        rows.into_iter().map(ListedIdentity::from_row).collect()
    }
}

#[derive(FromQueryResult)]
struct Row {
    id: i64,
    user_id: String,
    auth_id: String,
    auth_name: Option<String>,
    host: String,
    generation: Option<i64>,
    username: Option<String>,
    scopes: Option<String>,
    updated_at: Option<i64>,
    expires_at: Option<i64>,
    refresh_token_expires_at: Option<i64>,
    granted_lifetime_ms: Option<i64>,
    reserved_until: Option<i64>,
    lease_holder: Option<String>,
    lease_until: Option<i64>,
    attempt_fingerprint: Option<String>,
    reported_at: Option<i64>,
    failure_code: Option<String>,
    failure_message: Option<String>,
    failed_at: Option<i64>,
    refreshable: i32,
}

impl ListedIdentity {
    fn from_row(mut row: Row) -> Result<Self, StoreError> {
        let token = ListedToken::take_from(&mut row)?;
        Ok(Self {
            id: row.id,
            user_id: row.user_id,
            host: row.host,
            auth_id: row.auth_id,
            auth_name: row.auth_name,
            token,
        })
    }
}

impl ListedToken {
    /// None where the identity has no entry, so that its columns are all NULL.
    fn take_from(row: &mut Row) -> Result<Option<Self>, StoreError> {
        let Some((generation, scopes)) = row.generation.zip(row.scopes.as_deref()) else { return Ok(None) };
        let scopes = serde_json::from_str(scopes).map_err(|error| StoreError::Corrupt {
            what: format!("column scopes of the token entry of identity {}", row.id),
            reason: error.to_string(),
        })?;
        Ok(Some(Self {
            generation,
            username: row.username.take(),
            scopes,
            updated_at: Timestamp::from_millis(row.updated_at.unwrap_or_default()),
            expires_at: row.expires_at.map(Timestamp::from_millis),
            refreshable: row.refreshable == 1,
            refresh_token_expires_at: row.refresh_token_expires_at.map(Timestamp::from_millis),
            granted_lifetime_secs: row.granted_lifetime_ms.map(|ms| ms / 1_000),
            reserved_until: row.reserved_until.map(Timestamp::from_millis),
            lease: row
                .lease_holder
                .take()
                .zip(row.lease_until)
                .map(|(holder, until)| ListedLease { holder, until: Timestamp::from_millis(until) }),
            in_doubt: row.attempt_fingerprint.is_some(),
            reported_at: row.reported_at.map(Timestamp::from_millis),
            failure: row.failure_code.take().map(|code| ListedFailure {
                code,
                message: row.failure_message.take().unwrap_or_default(),
                at: Timestamp::from_millis(row.failed_at.unwrap_or_default()),
            }),
        }))
    }
}
