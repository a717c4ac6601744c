//! REPORT: a requester says that the host rejects a token.

use sea_orm::sea_query::Expr;
use sea_orm::{EntityTrait, QueryFilter};
use tokenkeeper_entity::token_entry::{Column, Entity as TokenEntry};

use super::{Entry, Guarded, Store, StoreError};
use crate::domain::clock::Timestamp;

impl Store {
    /// Records that the host rejects this access token. A new pair clears the report. The first report's date stays.
    pub async fn report(&self, entry: &Entry, now: Timestamp) -> Result<Guarded, StoreError> {
        let mut current = entry.clone();
        loop {
            let record = current.record.with_report(now);
            let updated = TokenEntry::update_many()
                .col_expr(Column::ReportedAt, Expr::value(record.reported_at))
                .col_expr(Column::RecordMac, Expr::value(self.mac_of(&current, &record)?))
                .filter(current.has_record_as_loaded())
                .exec(&self.db)
                .await
                .map_err(StoreError::database("put a report on record"))?;
            if updated.rows_affected > 0 {
                return Ok(Guarded::Done);
            }
            // A refresh of the pair may have failed meanwhile.
            match self.reload_for_record(entry).await? {
                Some(again) => current = again,
                None => return Ok(Guarded::Moved),
            }
        }
    }

    /// The entry with the record that it has now, to write another one. None: it has another pair, or is gone.
    pub(super) async fn reload_for_record(&self, entry: &Entry) -> Result<Option<Entry>, StoreError> {
        let current = self.reload(entry.id).await?;
        let Some(current) = current.filter(|current| current.generation == entry.generation) else {
            return Ok(None);
        };
        // What is written next must not make a forged record good.
        self.check(&current)?;
        Ok(Some(current))
    }
}
