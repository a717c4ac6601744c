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
        line.contains("it lacks rights on auth_provider, duty, identity, journal_mark, key_canary, seaql_migrations, token_entry, worker"),
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
        line.contains("it lacks rights on auth_provider, duty, identity, journal_mark, key_canary, seaql_migrations, token_entry, worker"),
        "{line}"
    );
    login.run(next(&line)).await;

    worker.wait_until_ready().await;
    worker.stop(&world).await;
    login.drop_it().await;
}

/// What a command says of a database that it cannot use, in one line.
async fn told_by_a_command(url: &str) -> String {
    let cli = Cli::with([("DATABASE_URL".to_owned(), url.to_owned())])
        .set("TOKENKEEPER__DATABASE__ACQUIRE_TIMEOUT_SECS", "1");
    let ended = cli.run(&["token", "list"]).await.with_code(1);
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    ended.stderr
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgresql_role_that_may_not_log_in_or_has_no_connection_left_is_told_how_to_let_it() {
    let database = migrated(Kind::Postgres).await;
    let login = Login::create(Kind::Postgres, &database).await;
    let (role, url) = (&login.name, as_user(&database, &login.name, "pw"));
    login.run(&format!("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")).await;
    let name = url.rsplit('/').next().unwrap();
    for (of, limit, told) in [
        (format!("ROLE {role}"), "NOLOGIN", format!("does not let {role} log in")),
        (format!("ROLE {role}"), "CONNECTION LIMIT 0", format!("takes no more connections of {role}")),
        (
            format!("DATABASE {name}"),
            "CONNECTION LIMIT 0",
            format!("takes no more connections to the database {name}"),
        ),
    ] {
        login.run(&format!("ALTER {of} {limit}")).await;
        let line = told_by_a_command(&url).await;
        assert!(line.contains(&told), "{line}");
        let (_, mending) = next(line.trim_end()).split_once("ALTER ").expect("a statement");
        login.run(&format!("ALTER {}", mending.split(',').next().unwrap())).await;
        let cli = Cli::with([("DATABASE_URL".to_owned(), url.clone())]);
        cli.run(&["token", "list"]).await.good();
    }
    login.drop_it().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_the_role_may_not_use_is_told_to_a_command_and_it_need_not_migrate() {
    let database = migrated(Kind::Postgres).await;
    let login = Login::create(Kind::Postgres, &database).await;
    login.run("REVOKE USAGE ON SCHEMA public FROM PUBLIC").await;
    let line = told_by_a_command(&as_user(&database, &login.name, "pw")).await;
    assert!(line.contains("it lacks rights on schema public") && !line.contains("migrate"), "{line}");
    login.run(next(line.trim_end())).await;
    let cli = Cli::with([("DATABASE_URL".to_owned(), as_user(&database, &login.name, "pw"))]);
    cli.run(&["token", "list"]).await.good();
    login.drop_it().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_url_of_the_other_kind_of_server_is_told_what_answers() {
    let servers = [TestDatabase::create(Kind::Postgres).await, TestDatabase::create(Kind::MariaDb).await];
    let [postgres, mariadb] = servers.each_ref().map(|server| {
        let url = url::Url::parse(server.url()).unwrap();
        let default = if url.scheme() == "mysql" { 3306 } else { 5432 };
        format!("{}:{}", url.host_str().unwrap(), url.port().unwrap_or(default))
    });
    let line = told_by_a_command(&format!("mysql://tk:pw@{postgres}/x")).await;
    assert!(line.contains("is PostgreSQL, and not MariaDB (database.url)"), "{line}");
    let line = told_by_a_command(&format!("postgres://tk:pw@{mariadb}/x")).await;
    assert!(line.contains("is MariaDB or MySQL, and not PostgreSQL (database.url)"), "{line}");
}
