//! What hangs on a provider: what its users would lose with it.

use sea_orm::{ColumnTrait, EntityTrait, PaginatorTrait, QueryFilter};
use tokenkeeper_entity::{identity, token_entry};

use super::super::{Store, StoreError};
use crate::domain::provider::{Change, ProviderRecord};
use crate::domain::secret::OpenError;

/// What a provider's users have stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stake {
    pub identities: u64,
    pub tokens: u64,
    /// Those of the tokens that can be refreshed.
    pub refreshable: u64,
}

/// Changes by which a provider may refuse the refresh tokens that it issued before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    pub host: String,
    /// At least one.
    pub changes: Vec<Change>,
    /// How many refresh tokens there are. At least one.
    pub refresh_tokens: u64,
}

impl Store {
    /// None: no provider has this host.
    pub async fn stake(&self, host: &str) -> Result<Option<Stake>, StoreError> {
        match self.provider_row(host).await? {
            Some(row) => self.stake_of(row.id).await.map(Some),
            None => Ok(None),
        }
    }

    /// The changes in these records that could make stored refresh tokens useless.
    pub async fn moves(&self, records: &[ProviderRecord]) -> Result<Vec<Move>, StoreError> {
        let mut moves = Vec::new();
        for record in records {
            let Some(row) = self.provider_row(&record.host).await? else { continue };
            let (id, before) = match self.read_record(row) {
                Ok(read) => read,
                // What it was before nobody knows. It is mended by the record.
                Err(StoreError::Sealed { source: OpenError::Tampered(_), .. }) => continue,
                Err(error) => return Err(error),
            };
            let changes = before.moves(record);
            if changes.is_empty() {
                continue;
            }
            let refresh_tokens = self.stake_of(id).await?.refreshable;
            if refresh_tokens > 0 {
                moves.push(Move { host: record.host.clone(), changes, refresh_tokens });
            }
        }
        Ok(moves)
    }

    async fn stake_of(&self, provider_id: i64) -> Result<Stake, StoreError> {
        let of_provider = identity::Column::ProviderId.eq(provider_id);
        let identities = identity::Entity::find().filter(of_provider.clone());
        let tokens = token_entry::Entity::find().inner_join(identity::Entity).filter(of_provider);
        let refreshable = tokens.clone().filter(token_entry::Column::RefreshTokenSealed.is_not_null());
        let count = async {
            Ok(Stake {
                identities: identities.count(&self.db).await?,
                tokens: tokens.count(&self.db).await?,
                refreshable: refreshable.count(&self.db).await?,
            })
        };
        count.await.map_err(StoreError::database("count the tokens of a provider"))
    }
}
