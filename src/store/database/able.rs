//! Proves that a worker can do its job on a database: it may read and write every table it needs, the database is not
//! read-only, and it is migrated. No proof changes a row.

mod migrated;

use std::collections::BTreeSet;

use sea_orm::{ConnectionTrait, DatabaseBackend, DatabaseConnection, DbErr, Statement};

pub use self::migrated::{Newer, is_migrated, is_no_newer};
use super::fault::{Fault, in_words};
use super::link::POSTGRES_IS_READ_ONLY;
use super::place::{Place, Unable};
use crate::domain::problem::Problem;

/// What a worker does with a table.
struct Need {
    table: &'static str,
    /// As GRANT names them.
    rights: &'static [&'static str],
    /// A column that an UPDATE may name.
    column: &'static str,
}

const MIGRATIONS: &str = "seaql_migrations";

/// Every table. `provider apply` and `provider remove` need INSERT and DELETE beside these.
static NEEDS: [Need; 8] = [
    Need { table: "auth_provider", rights: &["SELECT", "UPDATE"], column: "updated_at" },
    Need { table: "identity", rights: &["SELECT", "INSERT", "UPDATE"], column: "updated_at" },
    Need { table: "token_entry", rights: &["SELECT", "INSERT", "UPDATE", "DELETE"], column: "updated_at" },
    Need { table: "duty", rights: &["SELECT", "INSERT", "UPDATE"], column: "lease_until" },
    Need { table: "worker", rights: &["SELECT", "INSERT", "UPDATE", "DELETE"], column: "last_seen_at" },
    Need { table: "key_canary", rights: &["SELECT", "INSERT", "UPDATE", "DELETE"], column: "in_use_since" },
    Need { table: "journal_mark", rights: &["SELECT", "INSERT", "UPDATE"], column: "moved_at" },
    Need { table: MIGRATIONS, rights: &["SELECT"], column: "version" },
];

/// All proofs, in the order in which their causes hide one another.
///
/// # Errors
/// [`Unable`]: what is wrong, and the next command.
pub async fn prove(db: &DatabaseConnection, place: &Place, newer: Newer) -> Result<(), Unable> {
    may_be_written(db, place).await?;
    may_be_used(db, place).await?;
    is_migrated(db, place, newer).await
}

/// Whether the database takes writes at all.
///
/// # Errors
/// It is read-only, or does not answer.
pub async fn may_be_written(db: &DatabaseConnection, place: &Place) -> Result<(), Unable> {
    match db.get_database_backend() {
        DatabaseBackend::Postgres => {
            if asked::<bool>(db, place, POSTGRES_IS_READ_ONLY).await? {
                return Err(place.unable(Fault::ReadOnly, ""));
            }
            Ok(())
        }
        // An UPDATE tells more than the variable `read_only`, which some users may ignore.
        _ => match db.execute_unprepared(&update(&NEEDS[0])).await {
            // What holds the lock writes, and the tables and rights have proofs of their own.
            Err(error) if matches!(Fault::of(&error), Fault::Locked | Fault::NoTable | Fault::Denied) => {
                Ok(())
            }
            tried => tried.map(drop).map_err(|error| failed(place, &error)),
        },
    }
}

/// Whether the user may do with each table what a worker does. A table that is missing is passed over.
///
/// # Errors
/// A right is missing: the error names the GRANT.
pub async fn may_be_used(db: &DatabaseConnection, place: &Place) -> Result<(), Unable> {
    let (user, denied) = match db.get_database_backend() {
        DatabaseBackend::Postgres => postgres_denied(db, place).await?,
        DatabaseBackend::MySql => mysql_denied(db, place).await?,
        // A file has no users but the system's.
        _ => return Ok(()),
    };
    if denied.tables.is_empty() && denied.schemas.is_empty() {
        return Ok(());
    }
    Err(Unable { fault: Fault::Denied, problem: lacks_rights(place, &user, &denied) })
}

/// Whether the user may use the schemas that have our tables.
async fn may_use_schemas(db: &DatabaseConnection, place: &Place) -> Result<(), Unable> {
    if db.get_database_backend() != DatabaseBackend::Postgres {
        return Ok(());
    }
    let (user, denied) = postgres_denied(db, place).await?;
    if denied.schemas.is_empty() {
        return Ok(());
    }
    Err(Unable { fault: Fault::Denied, problem: lacks_rights(place, &user, &denied) })
}

fn lacks_rights(place: &Place, user: &str, denied: &Denied) -> Problem {
    Problem::new(
        format!(
            "{user} may not use what a worker needs of {} at {} (database.url)",
            place.product(),
            place.url()
        ),
        format!("it lacks rights on {}", denied.names().join(", ")),
        denied.grants(user).join("; "),
    )
}

/// What the user may not use.
#[derive(Default)]
struct Denied {
    schemas: BTreeSet<String>,
    /// Tables as a GRANT names them, by the rights that a worker needs there.
    tables: Vec<(&'static Need, String)>,
}

impl Denied {
    fn names(&self) -> Vec<String> {
        let mut tables: Vec<&str> = self.tables.iter().map(|(need, _)| need.table).collect();
        tables.sort_unstable();
        let schemas = self.schemas.iter().map(|schema| format!("schema {schema}"));
        schemas.chain(tables.into_iter().map(str::to_owned)).collect()
    }

    fn grants(&self, user: &str) -> Vec<String> {
        let schemas = self.schemas.iter().map(|schema| format!("GRANT USAGE ON SCHEMA {schema} TO {user}"));
        let tables = self
            .tables
            .iter()
            .map(|(need, table)| format!("GRANT {} ON {table} TO {user}", need.rights.join(", ")));
        schemas.chain(tables).collect()
    }
}

/// The current user, and what the catalog says of it.
async fn postgres_denied(db: &DatabaseConnection, place: &Place) -> Result<(String, Denied), Unable> {
    // A schema that the user may not use is passed over when a table is looked for, so its tables look as if they were missing.
    const QUESTION: &str = "\
        SELECT c.relname::text AS name, quote_ident(n.nspname) AS schema, c.oid::bigint AS id, \
               has_schema_privilege(n.oid, 'USAGE') AS usable, pg_table_is_visible(c.oid) AS visible \
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
        WHERE c.relkind IN ('r', 'p') AND n.nspname = ANY (string_to_array(translate(replace( \
              current_setting('search_path'), '$user', current_user::text), '\" ', ''), ','))";
    let user: String = asked(db, place, "SELECT quote_ident(current_user::text) AS yes").await?;
    let backend = db.get_database_backend();
    let read = async {
        let mut denied = Denied::default();
        let rows = db.query_all_raw(Statement::from_string(backend, QUESTION)).await?;
        for row in rows {
            let name: String = row.try_get("", "name")?;
            let Some(need) = NEEDS.iter().find(|need| need.table == name) else { continue };
            let (schema, usable): (String, bool) = (row.try_get("", "schema")?, row.try_get("", "usable")?);
            if !usable {
                denied.schemas.insert(schema.clone());
            } else if !row.try_get::<bool>("", "visible")? {
                continue;
            }
            let id: i64 = row.try_get("", "id")?;
            let rights: Vec<String> = need
                .rights
                .iter()
                .map(|right| format!("has_table_privilege({id}::oid, '{right}')"))
                .collect();
            let question = format!("SELECT {} AS yes", rights.join(" AND "));
            let row = db.query_one_raw(Statement::from_string(backend, question)).await?;
            if !row.map_or(Ok(true), |row| row.try_get("", "yes"))? {
                denied.tables.push((need, format!("{schema}.{name}")));
            }
        }
        Ok::<_, DbErr>(denied)
    };
    let denied = read.await.map_err(|error| failed(place, &error))?;
    Ok((user, denied))
}

/// The current user, and which harmless statements are refused.
async fn mysql_denied(db: &DatabaseConnection, place: &Place) -> Result<(String, Denied), Unable> {
    let user: String = asked(db, place, "SELECT CURRENT_USER() AS yes").await?;
    let user = match user.rsplit_once('@') {
        Some((name, host)) => format!("'{name}'@'{host}'"),
        None => user,
    };
    let database: Option<String> = asked(db, place, "SELECT DATABASE() AS yes").await?;
    let mut denied = Denied::default();
    for need in &NEEDS {
        for right in need.rights {
            match db.execute_unprepared(&harmless(need, right)).await {
                Ok(_) => {}
                Err(error) => match Fault::of(&error) {
                    Fault::Denied => {
                        let database = database.as_deref().unwrap_or_default();
                        denied.tables.push((need, format!("{database}.{}", need.table)));
                        break;
                    }
                    Fault::NoTable => break,
                    Fault::Locked => {}
                    _ => return Err(failed(place, &error)),
                },
            }
        }
    }
    Ok((user, denied))
}

/// A statement that needs the right and touches no row.
fn harmless(need: &Need, right: &str) -> String {
    let table = need.table;
    match right {
        "INSERT" => format!("INSERT INTO {table} SELECT * FROM {table} WHERE 1 = 0"),
        "UPDATE" => update(need),
        "DELETE" => format!("DELETE FROM {table} WHERE 1 = 0"),
        _ => format!("SELECT 1 FROM {table} WHERE 1 = 0"),
    }
}

fn update(need: &Need) -> String {
    let Need { table, column, .. } = need;
    format!("UPDATE {table} SET {column} = {column} WHERE 1 = 0")
}

/// The one value, called `yes`, that a question gives.
async fn asked<T: sea_orm::TryGetable>(
    db: &DatabaseConnection,
    place: &Place,
    question: &str,
) -> Result<T, Unable> {
    let read = async {
        let row = db.query_one_raw(Statement::from_string(db.get_database_backend(), question)).await?;
        row.ok_or_else(|| DbErr::RecordNotFound("an answer".to_owned()))?.try_get("", "yes")
    };
    read.await.map_err(|error| failed(place, &error))
}

pub(super) fn failed(place: &Place, error: &DbErr) -> Unable {
    place.unable(Fault::of(error), &in_words(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::problem::documented;
    use crate::settings::Settings;
    use crate::store::database;

    async fn empty() -> (tempfile::TempDir, DatabaseConnection, Place) {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("t.db").display());
        let environment = [("DATABASE_URL".to_owned(), url)];
        let settings = Settings::load_from(None, environment.into()).unwrap().database;
        let db = database::open(&settings).await.unwrap();
        (folder, db, Place::new(&settings))
    }

    #[tokio::test]
    async fn every_table_of_the_migrations_is_proved() {
        let (_folder, db, place) = empty().await;
        database::migrate(&db).await.unwrap();
        let question = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'";
        let rows = db.query_all_raw(Statement::from_string(DatabaseBackend::Sqlite, question)).await.unwrap();
        let tables: BTreeSet<String> = rows.iter().map(|row| row.try_get("", "name").unwrap()).collect();
        assert_eq!(tables, NEEDS.iter().map(|need| need.table.to_owned()).collect());
        for (need, right) in NEEDS.iter().flat_map(|need| need.rights.iter().map(move |right| (need, right)))
        {
            db.execute_unprepared(&harmless(need, right)).await.unwrap();
        }
        prove(&db, &place, Newer::Refused).await.unwrap();
    }

    #[test]
    fn what_an_operator_reads_of_rights_stands_in_the_documentation() {
        let place = Place::of_url("postgres://tk:***@db.example.org/tokens");
        let mut denied = Denied::default();
        denied.tables.push((&NEEDS[3], "public.duty".to_owned()));
        documented("user without rights on a table", &lacks_rights(&place, "tk", &denied));
    }

    #[test]
    fn the_rights_that_the_documentation_names_are_those_that_are_proved() {
        let documentation = include_str!("../../../docs/operating.md");
        for need in &NEEDS {
            let row = format!("| `{}` | {} |", need.table, need.rights.join(", "));
            assert!(documentation.contains(&row), "docs/operating.md lacks the row:\n{row}");
        }
    }
}
