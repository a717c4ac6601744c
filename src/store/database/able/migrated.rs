//! Whether the tables are those of this version.

use std::collections::BTreeSet;

use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, Statement};
use tokenkeeper_migration::{Migrator, MigratorTrait};

use super::{MIGRATIONS, failed, may_use_schemas};
use crate::domain::problem::Problem;
use crate::store::database::{Fault, Place, Unable};

/// What to think of migrations that this version does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Newer {
    /// At start: this version is the wrong one.
    Refused,
    /// Later: workers go on running while the tables are migrated for the next version.
    Fine,
}

/// Whether the tables are those of this version. Only reads: a worker's user need not be allowed to make tables.
///
/// # Errors
/// Migrations are missing, or newer ones are there and `newer` refuses them.
pub async fn is_migrated(db: &DatabaseConnection, place: &Place, newer: Newer) -> Result<(), Unable> {
    let Migrations { missing, unknown, all } = Migrations::of(db, place).await?;
    if unknown > 0 && newer == Newer::Refused {
        return Err(is_newer(place, unknown));
    }
    if missing == 0 {
        return Ok(());
    }
    if missing == all {
        // Tables in a schema that the user may not use look as if they were missing.
        may_use_schemas(db, place).await?;
    }
    Err(Unable { fault: Fault::NoTable, problem: lacks_migrations(place.url(), missing, all) })
}

/// Whether this version knows all migrations that the database has.
///
/// # Errors
/// A newer version migrated the database.
pub async fn is_no_newer(db: &DatabaseConnection, place: &Place) -> Result<(), Unable> {
    match Migrations::of(db, place).await?.unknown {
        0 => Ok(()),
        unknown => Err(is_newer(place, unknown)),
    }
}

/// The migrations of a database beside those of this version, counted.
struct Migrations {
    missing: usize,
    unknown: usize,
    all: usize,
}

impl Migrations {
    async fn of(db: &DatabaseConnection, place: &Place) -> Result<Self, Unable> {
        let ours: BTreeSet<String> =
            Migrator::migrations().iter().map(|migration| migration.name().to_owned()).collect();
        let applied = applied_migrations(db).await.map_err(|error| failed(place, &error))?;
        let (missing, unknown) = (ours.difference(&applied).count(), applied.difference(&ours).count());
        Ok(Self { missing, unknown, all: ours.len() })
    }
}

fn is_newer(place: &Place, unknown: usize) -> Unable {
    let migrations = if unknown == 1 { "migration" } else { "migrations" };
    let problem = Problem::new(
        format!(
            "the database {} has {unknown} {migrations} that this version does not know (database.url)",
            place.url()
        ),
        "a newer version of tokenkeeper migrated it",
        "run that version or a newer one, or take them back with it: tokenkeeper migrate down",
    );
    Unable { fault: Fault::NoTable, problem }
}

fn lacks_migrations(url: &str, missing: usize, of: usize) -> Problem {
    let cause = if missing == of {
        "it has no tables of tokenkeeper yet"
    } else {
        "this version of tokenkeeper is newer than its tables"
    };
    let what = format!("the database {url} lacks {missing} of {of} migrations (database.url)");
    Problem::new(what, cause, "tokenkeeper migrate up")
}

async fn applied_migrations(db: &DatabaseConnection) -> Result<BTreeSet<String>, DbErr> {
    let question =
        Statement::from_string(db.get_database_backend(), format!("SELECT version FROM {MIGRATIONS}"));
    match db.query_all_raw(question).await {
        Ok(rows) => rows.iter().map(|row| row.try_get("", "version")).collect(),
        Err(error) if Fault::of(&error) == Fault::NoTable => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::problem::documented;
    use crate::settings::Settings;
    use crate::store::database;
    use crate::store::database::able::prove;

    async fn empty() -> (tempfile::TempDir, DatabaseConnection, Place) {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("t.db").display());
        let environment = [("DATABASE_URL".to_owned(), url)];
        let settings = Settings::load_from(None, environment.into()).unwrap().database;
        let db = database::open(&settings).await.unwrap();
        (folder, db, Place::new(&settings))
    }

    #[tokio::test]
    async fn missing_and_unknown_migrations_are_counted() {
        let (_folder, db, place) = empty().await;
        let told = |unable: Unable| unable.problem.to_string();
        let missing = told(prove(&db, &place, Newer::Fine).await.unwrap_err());
        let all = Migrator::migrations().len();
        assert!(missing.contains(&format!("lacks {all} of {all} migrations")), "{missing}");
        assert!(
            missing.ends_with("it has no tables of tokenkeeper yet; next: tokenkeeper migrate up"),
            "{missing}"
        );
        database::migrate(&db).await.unwrap();
        let newer = format!("INSERT INTO {MIGRATIONS} (version, applied_at) VALUES ('m2099_later', 1)");
        db.execute_unprepared(&newer).await.unwrap();
        let unknown = told(prove(&db, &place, Newer::Refused).await.unwrap_err());
        assert!(unknown.contains("has 1 migration that this version does not know"), "{unknown}");
        prove(&db, &place, Newer::Fine).await.unwrap();
    }

    #[test]
    fn what_an_operator_reads_of_migrations_stands_in_the_documentation() {
        let place = Place::of_url("postgres://tk:***@db.example.org/tokens");
        documented("database not migrated", &lacks_migrations(place.url(), 18, 18));
        documented("database of a newer version", &is_newer(&place, 2).problem);
        documented("database of an older version", &lacks_migrations(place.url(), 2, 18));
    }
}
