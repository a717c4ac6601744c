//! What `migrate down` would lose.

use sea_orm::sea_query::{Alias, Asterisk, Expr, ExprTrait, Query};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr};
use tokenkeeper_migration::{Dropped, SchemaManager, dropped_by};

/// What reverting these migrations drops, with the number of rows in it, as `table token_entry (3 rows)`. Empty tables and
/// columns without values are left out.
pub(super) async fn losses(db: &DatabaseConnection, migrations: &[String]) -> Result<Vec<String>, DbErr> {
    let mut losses = Vec::new();
    for dropped in migrations.iter().flat_map(|migration| dropped_by(migration)) {
        let rows = rows_of(db, &dropped).await?;
        if rows > 0 {
            losses.push(format!("{dropped} ({rows} {})", if rows == 1 { "row" } else { "rows" }));
        }
    }
    Ok(losses)
}

/// The rows with a value. 0: a later migration has dropped it already.
async fn rows_of(db: &DatabaseConnection, dropped: &Dropped) -> Result<i64, DbErr> {
    let schema = SchemaManager::new(db);
    let (table, is_there, counted) = match dropped {
        Dropped::Table(table) => (table, schema.has_table(table).await?, Expr::col(Asterisk)),
        Dropped::Column { table, column } => {
            let is_there = schema.has_table(table).await? && schema.has_column(table, column).await?;
            (table, is_there, Expr::col(Alias::new(column)))
        }
    };
    if !is_there {
        return Ok(0);
    }
    let count = Query::select().expr_as(counted.count(), "counted").from(Alias::new(table)).to_owned();
    let row = db.query_one(&count).await?;
    row.ok_or_else(|| DbErr::RecordNotFound("a count".to_owned()))?.try_get("", "counted")
}
