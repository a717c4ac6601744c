//! A user's account at a provider. Unique by (user, provider). Neither ever changes: the token entry repeats both.

use sea_orm::entity::prelude::*;

/// A row of `identity`.
#[derive(Debug, Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "identity")]
pub struct Model {
    /// Row id.
    #[sea_orm(primary_key)]
    pub id: i64,
    /// The platform's user, compared byte for byte.
    pub user_id: String,
    /// Whose account it is.
    pub provider_id: i64,
    /// The account's id at the provider.
    pub auth_id: String,
    /// The account's display name at the provider.
    pub auth_name: Option<String>,
    /// When it was first stored, in ms since the epoch.
    pub created_at: i64,
    /// When it was last changed, in ms since the epoch.
    pub updated_at: i64,
}

/// What an identity points at, and what points at it.
#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {
    /// The installation it is an account of.
    #[sea_orm(
        belongs_to = "super::auth_provider::Entity",
        from = "Column::ProviderId",
        to = "super::auth_provider::Column::Id",
        on_delete = "Restrict"
    )]
    AuthProvider,
    /// Its current token pair.
    #[sea_orm(has_one = "super::token_entry::Entity")]
    TokenEntry,
}

impl Related<super::auth_provider::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::AuthProvider.def()
    }
}

impl Related<super::token_entry::Entity> for Entity {
    fn to() -> RelationDef {
        Relation::TokenEntry.def()
    }
}

impl ActiveModelBehavior for ActiveModel {}
