//! REPORT: a requester says that the host rejects a token.

use sea_orm::sea_query::{Expr, Func};
use sea_orm::{EntityTrait, QueryFilter};
use tokenkeeper_entity::token_entry::{Column, Entity as TokenEntry};

use super::{Entry, Guarded, Store, StoreError};
use crate::domain::clock::Timestamp;

impl Store {
    /// Records that the host rejects this access token. A new pair clears the report. The first report's date stays.
    pub async fn report(&self, entry: &Entry, now: Timestamp) -> Result<Guarded, StoreError> {
        let first = Func::coalesce([Expr::col(Column::ReportedAt), Expr::value(now.as_millis())]);
        let updated = TokenEntry::update_many()
            .col_expr(Column::ReportedAt, first.into())
            .filter(entry.is_unmoved())
            .exec(&self.db)
            .await
            .map_err(StoreError::database("put a report on record"))?;
        Ok(Guarded::from_rows(updated.rows_affected))
    }
}
