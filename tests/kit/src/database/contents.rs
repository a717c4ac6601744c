//! Everything that a database holds, to be searched.

use std::path::PathBuf;

use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseBackend, DatabaseConnection};
use url::Url;

use super::{close, statement};

/// What SQLite keeps beside a database.
const FILES_OF_SQLITE: [&str; 4] = ["", "-wal", "-shm", "-journal"];

/// All of a database, each part with its name: the bytes of SQLite's files, or each row of each table of a server as text. The
/// files of a server are the server's.
pub async fn contents(url: &str) -> Vec<(String, Vec<u8>)> {
    if let Some(file) = file_of(url) {
        let paths = FILES_OF_SQLITE.map(|suffix| PathBuf::from(format!("{file}{suffix}")));
        let read = |path: PathBuf| Some((path.display().to_string(), std::fs::read(&path).ok()?));
        return paths.into_iter().filter_map(read).collect();
    }
    let mut options = ConnectOptions::new(url);
    options.max_connections(1).sqlx_logging(false);
    let connection = Database::connect(options).await.expect("connect to a test's database");
    let rows = match connection.get_database_backend() {
        DatabaseBackend::Postgres => rows_of_postgres(&connection).await,
        _ => rows_of_mariadb(&connection).await,
    };
    close(connection).await;
    rows
}

fn file_of(url: &str) -> Option<String> {
    let url = Url::parse(url).ok().filter(|url| url.scheme() == "sqlite")?;
    Some(url.path().to_owned())
}

/// A binary column is written in hexadecimal digits.
async fn rows_of_postgres(connection: &DatabaseConnection) -> Vec<(String, Vec<u8>)> {
    let tables = "select quote_ident(schemaname) || '.' || quote_ident(tablename) from pg_tables \
                  where schemaname not in ('pg_catalog', 'information_schema')";
    let mut rows = Vec::new();
    for table in texts(connection, tables).await {
        let text = texts(connection, &format!("select t::text from {table} t")).await.join("\n");
        rows.push((table, text.into_bytes()));
    }
    rows
}

/// A binary column is written as it is.
async fn rows_of_mariadb(connection: &DatabaseConnection) -> Vec<(String, Vec<u8>)> {
    let tables = "select concat('`', table_name, '` ', group_concat('`', column_name, '`')) from information_schema.columns \
                  where table_schema = database() group by table_name";
    let mut rows = Vec::new();
    for table in texts(connection, tables).await {
        let (table, columns) = table.split_once(' ').expect("a table and its columns");
        let select = format!("select cast(concat_ws('|', {columns}) as binary) from {table}");
        let found = connection.query_all_raw(statement(connection, select)).await.expect("read a table");
        let row = |row: &sea_orm::QueryResult| -> Vec<u8> { row.try_get_by_index(0).expect("bytes") };
        rows.push((table.to_owned(), found.iter().map(row).collect::<Vec<_>>().join(&b'\n')));
    }
    rows
}

pub(super) async fn texts(connection: &DatabaseConnection, select: &str) -> Vec<String> {
    let rows = connection.query_all_raw(statement(connection, select.to_owned())).await;
    let rows = rows.unwrap_or_else(|error| panic!("{select}: {error}"));
    rows.iter().map(|row| row.try_get_by_index(0).expect("a text")).collect()
}
