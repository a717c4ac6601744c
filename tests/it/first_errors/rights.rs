//! A user of the database with too few rights is told which to grant, and not to migrate.

use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection};
use tokenkeeper_testkit::database::TestDatabase;
use uuid::Uuid;

use super::{as_user, assert_told_once, launch_at, next, not_ready_because};
use crate::cli::Cli;
use crate::harness::{Dialect, Kind, World};

/// A login without any right, dropped by [`Login::drop_it`].
struct Login {
    kind: Kind,
    name: String,
    admin: DatabaseConnection,
}

impl Login {
    async fn create(kind: Kind, database: &TestDatabase) -> Self {
        let name = format!("tk_{}", &Uuid::new_v4().simple().to_string()[..12]);
        let mut options = ConnectOptions::new(database.url());
        options.max_connections(1).sqlx_logging(false);
        let admin = Database::connect(options).await.unwrap();
        let login = Self { kind, name, admin };
        let create = match kind {
            Kind::Postgres => format!("CREATE ROLE {} LOGIN PASSWORD 'pw'", login.name),
            _ => format!("CREATE USER '{}'@'127.0.0.1' IDENTIFIED BY 'pw'", login.name),
        };
        login.run(&create).await;
        login
    }

    async fn run(&self, statements: &str) {
        for statement in statements.split("; ") {
            self.admin
                .execute_unprepared(statement)
                .await
                .unwrap_or_else(|error| panic!("{statement}: {error}"));
        }
    }

    async fn drop_it(self) {
        match self.kind {
            Kind::Postgres => self.run(&format!("DROP OWNED BY {0}; DROP ROLE {0}", self.name)).await,
            _ => self.run(&format!("DROP USER '{}'@'127.0.0.1'", self.name)).await,
        }
    }
}

async fn migrated(kind: Kind) -> TestDatabase {
    let database = TestDatabase::create(kind).await;
    Cli::with([("DATABASE_URL".to_owned(), database.url().to_owned())]).run(&["migrate", "up"]).await.good();
    database
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgresql_user_is_told_the_grants_and_they_are_enough() {
    let database = migrated(Kind::Postgres).await;
    let login = Login::create(Kind::Postgres, &database).await;
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = launch_at(&mut world, &as_user(&database, &login.name, "pw")).await;

    let line = not_ready_because(&worker, "may not use what a worker needs").await;
    assert!(
        line.contains("it lacks rights on auth_provider, duty, identity, key_canary, seaql_migrations, token_entry, worker"),
        "{line}"
    );
    assert_told_once(&worker);
    login.run(next(&line)).await;
    worker.wait_until_ready().await;

    // A right that is lost while it runs keeps messages in their queues.
    login.run(&format!("REVOKE SELECT ON auth_provider FROM {}", login.name)).await;
    let waiting = world.send("jdoe").await;
    let line = not_ready_because(&worker, "it lacks rights on auth_provider").await;
    login.run(next(&line)).await;
    worker.wait_until_ready().await;
    assert_eq!(waiting.reply().await.body["error"]["code"], "unknown_host", "it was answered after all");
    worker.stop(&world).await;

    login.run("REVOKE USAGE ON SCHEMA public FROM PUBLIC").await;
    login.run(&format!("REVOKE DELETE ON token_entry FROM {}", login.name)).await;
    let worker = world.launch_worker_process().await;
    let line = not_ready_because(&worker, "it lacks rights on schema public, token_entry").await;
    login.run(next(&line)).await;
    worker.wait_until_ready().await;
    worker.stop(&world).await;
    login.drop_it().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mariadb_user_is_told_the_grants_and_they_are_enough() {
    let database = migrated(Kind::MariaDb).await;
    let login = Login::create(Kind::MariaDb, &database).await;
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = launch_at(&mut world, &as_user(&database, &login.name, "pw")).await;
    let name = database.url().rsplit('/').next().unwrap();

    let line = not_ready_because(&worker, "does not let").await;
    assert!(line.contains(&format!("or GRANT ALL ON {name}.*")), "{line}");
    assert_told_once(&worker);
    login.run(&format!("GRANT SELECT ON {name}.duty TO '{}'@'127.0.0.1'", login.name)).await;
    let line = not_ready_because(&worker, "may not use what a worker needs").await;
    assert!(
        line.contains("it lacks rights on auth_provider, duty, identity, key_canary, seaql_migrations, token_entry, worker"),
        "{line}"
    );
    login.run(next(&line)).await;

    worker.wait_until_ready().await;
    worker.stop(&world).await;
    login.drop_it().await;
}
