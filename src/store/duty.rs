//! Duties: what one worker at a time does for all of them.

use std::time::Duration;

use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter};
use tokenkeeper_entity::duty::{ActiveModel, Column, Entity as Duty};

use super::login::is_duplicate;
use super::{Guarded, Store, StoreError};
use crate::domain::clock::Timestamp;

impl Store {
    /// Takes a free duty, or keeps an own one, for `ttl` from `now`. `Moved`: somebody else has the duty.
    pub async fn take_duty(
        &self,
        name: &str,
        holder: &str,
        now: Timestamp,
        ttl: Duration,
    ) -> Result<Guarded, StoreError> {
        let until = now.plus(ttl).as_millis();
        let updated = Duty::update_many()
            .col_expr(Column::Holder, Expr::value(holder))
            .col_expr(Column::LeaseUntil, Expr::value(until))
            .filter(Column::Name.eq(name))
            .filter(
                Condition::any().add(Column::LeaseUntil.lte(now.as_millis())).add(Column::Holder.eq(holder)),
            )
            .exec(&self.db)
            .await
            .map_err(StoreError::database("take a duty"))?;
        if updated.rows_affected > 0 {
            return Ok(Guarded::Done);
        }
        // The very first time there is no row. Where there is one, it is somebody else's.
        let first = ActiveModel {
            name: Set(name.to_owned()),
            holder: Set(holder.to_owned()),
            lease_until: Set(until),
        };
        match Duty::insert(first).exec_without_returning(&self.db).await {
            Ok(_) => Ok(Guarded::Done),
            Err(error) if is_duplicate(&error) => Ok(Guarded::Moved),
            Err(source) => Err(StoreError::Database { action: "take a duty for the first time", source }),
        }
    }
}
