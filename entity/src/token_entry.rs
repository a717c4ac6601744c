//! The current token pair of an identity, with its reservation, its refresh lease and its last failure.
//!
//! Every UPDATE that changes state is guarded by `generation`, which counts the pairs stored here.

use sea_orm::entity::prelude::*;

/// A row of `token_entry`.
#[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "token_entry")]
pub struct Model {
    /// Row id.
    #[sea_orm(primary_key)]
    pub id: i64,
    /// Whose pair it is. Unique: one current entry an identity.
    pub identity_id: i64,
    /// The user of that identity. Unique with `provider_id`: the index every token is found by.
    pub user_id: String,
    /// The provider of that identity.
    pub provider_id: i64,
    /// Counts the pairs stored here; grows by one with each.
    pub generation: i64,
    /// The access token, encrypted.
    pub access_token_sealed: Vec<u8>,
    /// The refresh token, encrypted; none: not refreshable.
    pub refresh_token_sealed: Option<Vec<u8>>,
    /// Which key sealed the pair.
    pub key_id: String,
    /// Git user name that goes with the token; none: the provider's.
    pub username: Option<String>,
    /// Scopes as a JSON array of strings.
    #[sea_orm(column_type = "Text")]
    pub scopes: String,
    /// When the access token expires, in ms since the epoch; none: never.
    pub expires_at: Option<i64>,
    /// When the refresh token expires, in ms since the epoch; none: never, or not known.
    pub refresh_token_expires_at: Option<i64>,
    /// The lifetime the provider granted, in ms; known for a pair that a refresh issued.
    pub granted_lifetime_ms: Option<i64>,
    /// Until then nobody refreshes this token opportunistically, in ms since the epoch.
    pub reserved_until: Option<i64>,
    /// Which flight holds the refresh lease.
    pub lease_holder: Option<String>,
    /// Until when the lease is live, in ms since the epoch.
    pub lease_until: Option<i64>,
    /// Fingerprint of the refresh token that a refresh sends, from before the provider is asked until it is known
    /// what came of it. Left behind by a worker that died, or got no answer: the provider may have acted.
    pub attempt_fingerprint: Option<String>,
    /// When that refresh token was sent first, in ms since the epoch; says nothing without `attempt_fingerprint`.
    pub attempted_at: Option<i64>,
    /// When somebody reported that the host rejects the access token, in ms since the epoch; none: nobody did.
    pub reported_at: Option<i64>,
    /// The error code of the last refresh that failed, as in replies.
    pub failure_code: Option<String>,
    /// What it was, in words; never a secret.
    #[sea_orm(column_type = "Text", nullable)]
    pub failure_message: Option<String>,
    /// Fingerprint of the refresh token that was sent.
    pub failure_fingerprint: Option<String>,
    /// When it failed, in ms since the epoch.
    pub failed_at: Option<i64>,
    /// Authenticates what is on record against the pair, failure and report; none: the pair is sealed in format 1.
    pub record_mac: Option<Vec<u8>>,
    /// Fingerprint of the tokens that a login flow stored last, kept over refreshes: tells a login that is repeated from
    /// another one.
    pub login_fingerprint: Option<String>,
    /// When the provider issued this pair, in ms since the epoch; known of an imported pair only.
    pub issued_at: Option<i64>,
    /// When the provider was asked for this pair, in ms since the epoch; none: it came from a login.
    pub refreshed_at: Option<i64>,
    /// When the first pair was stored, in ms since the epoch.
    pub created_at: i64,
    /// When this pair was stored, in ms since the epoch.
    pub updated_at: i64,
}

/// What an entry points at.
#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {
    /// The identity whose pair it is.
    #[sea_orm(
        belongs_to = "super::identity::Entity",
        from = "Column::IdentityId",
        to = "super::identity::Column::Id",
        on_delete = "Cascade"
    )]
    Identity,
}

impl Related<super::identity::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::Identity.def()
    }
}

impl ActiveModelBehavior for ActiveModel {}
