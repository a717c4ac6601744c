//! The schema of a MariaDB database, as statements that make it again.

use sea_orm::{ConnectionTrait, DatabaseConnection};

use super::contents::texts;

/// Tables with their rows. MariaDB writes each statement of a migration to disk: to make ten tables is several times faster than
/// to migrate.
#[derive(Debug, Clone)]
pub struct Schema(String);

impl Schema {
    /// The schema of this database, which is to be small.
    pub async fn of(connection: &DatabaseConnection) -> Self {
        let tables = "select table_name from information_schema.tables where table_schema = database()";
        // Tables refer to each other.
        let mut statements = vec!["set foreign_key_checks = 0".to_owned()];
        for table in texts(connection, tables).await {
            let create = format!("show create table `{table}`");
            let rows = connection.query_all_raw(super::statement(connection, create)).await;
            let rows = rows.expect("what makes a table");
            statements.push(rows[0].try_get_by_index(1).expect("the statement that makes a table"));
            statements.extend(insert(connection, &table).await);
        }
        statements.push("set foreign_key_checks = 1".to_owned());
        Self(statements.join(";\n"))
    }

    /// Makes it in an empty database.
    pub async fn make_in(&self, connection: &DatabaseConnection) {
        connection.execute_unprepared(&self.0).await.expect("make the tables of another database");
    }
}

/// The statement that puts all rows into a table, if it has any.
async fn insert(connection: &DatabaseConnection, table: &str) -> Option<String> {
    let columns = format!(
        "select column_name from information_schema.columns \
         where table_schema = database() and table_name = '{table}' order by ordinal_position"
    );
    let quoted =
        texts(connection, &columns).await.iter().map(|name| format!("quote(`{name}`)")).collect::<Vec<_>>();
    let rows = format!("select concat('(', concat_ws(',', {}), ')') from `{table}`", quoted.join(", "));
    let rows = texts(connection, &rows).await;
    (!rows.is_empty()).then(|| format!("insert into `{table}` values {}", rows.join(", ")))
}
