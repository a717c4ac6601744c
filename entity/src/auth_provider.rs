//! One SCM installation: what `tokenkeeper provider apply` wrote.
//!
//! The nullable settings are the operator's overrides; none means the default of the kind, so a default that a
//! later version mends reaches installations that were applied before.

use sea_orm::entity::prelude::*;

/// A row of `auth_provider`.
#[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "auth_provider")]
pub struct Model {
    /// Row id.
    #[sea_orm(primary_key)]
    pub id: i64,
    /// As it stands in clone URLs, with a port where there is one. Unique.
    pub host: String,
    /// `github`, `gitlab`, `bitbucket`, `bitbucket_server`, `gitea`, `azure_devops` or `generic`.
    pub kind: String,
    /// OAuth client id.
    pub client_id: String,
    /// OAuth client secret, encrypted.
    pub client_secret_sealed: Vec<u8>,
    /// Other client secrets that are tried after it, as a JSON array, encrypted; none: there are none.
    pub spare_client_secrets_sealed: Option<Vec<u8>>,
    /// Which key sealed the secrets.
    pub key_id: String,
    /// Token endpoint, where it is not the kind's.
    #[sea_orm(column_type = "Text", nullable)]
    pub token_url: Option<String>,
    /// `body` or `basic`, where it is not the kind's.
    pub client_auth: Option<String>,
    /// The redirect URI that is sent with a refresh.
    #[sea_orm(column_type = "Text", nullable)]
    pub redirect_uri: Option<String>,
    /// Git user name, where it is not the kind's.
    pub username: Option<String>,
    /// Whether still valid tokens are refreshed when nobody holds them, where it is not the kind's.
    pub opportunistic_refresh: Option<bool>,
    /// Seconds before expiry from which on an opportunistic refresh is due; none: always.
    pub opportunistic_refresh_window_secs: Option<i64>,
    /// `refresh`, `wait` or `grant_remaining`; none: `refresh`.
    pub required_while_reserved: Option<String>,
    /// Refreshes in flight at once in one worker, where it is not the kind's.
    pub max_concurrent_refreshes: Option<i32>,
    /// What else the operator overrides, as a JSON object; none: nothing.
    #[sea_orm(column_type = "Text", nullable)]
    pub overrides: Option<String>,
    /// Since when it has refused the refresh tokens of everybody, in ms since the epoch; none: it does not.
    pub refusing_since: Option<i64>,
    /// When it was first applied, in ms since the epoch.
    pub created_at: i64,
    /// When it was last changed, in ms since the epoch.
    pub updated_at: i64,
}

/// What points at a provider.
#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {
    /// Its users' accounts.
    #[sea_orm(has_many = "super::identity::Entity")]
    Identity,
}

impl Related<super::identity::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::Identity.def()
    }
}

impl ActiveModelBehavior for ActiveModel {}
