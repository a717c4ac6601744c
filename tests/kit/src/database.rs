//! An operator's database, empty and for one test alone.

mod contents;
mod schema;

use std::{env, fmt, path::Path, time::Duration};

use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbErr};
use tempfile::TempDir;
use tokio::net::TcpStream;
use url::Url;
use uuid::Uuid;

pub use self::contents::contents;
pub use self::schema::Schema;
use crate::wait::{PATIENCE, within};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The databases that tokenkeeper runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file in a temporary folder.
    Sqlite,
    /// A database on the server at `TEST_POSTGRES_URL`.
    Postgres,
    /// A database on the server at `TEST_MARIADB_URL`.
    MariaDb,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Sqlite, Self::Postgres, Self::MariaDb];

    /// The server that databases of this kind are made on; `None` for files.
    fn server(self) -> Option<Server> {
        match self {
            Self::Sqlite => None,
            Self::Postgres => Some(Server::new(Engine::Postgres, "TEST_POSTGRES_URL")),
            Self::MariaDb => Some(Server::new(Engine::MariaDb, "TEST_MARIADB_URL")),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sqlite => "SQLite",
            Self::Postgres => "PostgreSQL",
            Self::MariaDb => "MariaDB",
        })
    }
}

/// An empty database that is dropped with this value, also when the test panics.
pub struct TestDatabase {
    url: String,
    _folder: Option<TempDir>,
    _created: Option<Created>,
}

impl TestDatabase {
    /// Makes one. Panics, and says what to start, where the server does not answer.
    pub async fn create(kind: Kind) -> Self {
        match kind.server() {
            None => Self::create_file(),
            Some(server) => Self::create_on(server).await,
        }
    }

    /// A database that somebody else made, and drops.
    pub fn at(url: String) -> Self {
        Self { url, _folder: None, _created: None }
    }

    /// What tokenkeeper takes as `DATABASE_URL`.
    pub fn url(&self) -> &str {
        &self.url
    }

    fn create_file() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder for a database");
        let url = sqlite_url(&folder.path().join("tokenkeeper.db"));
        Self { url, _folder: Some(folder), _created: None }
    }

    async fn create_on(server: Server) -> Self {
        let name = format!("tk_test_{}", Uuid::new_v4().simple());
        server.create(&name).await;
        let mut url = server.url.clone();
        url.set_path(&name);
        Self { url: url.into(), _folder: None, _created: Some(Created { server, name }) }
    }
}

/// A database on a server, to be dropped.
struct Created {
    server: Server,
    name: String,
}

impl Drop for Created {
    fn drop(&mut self) {
        let (server, name) = (self.server.clone(), self.name.clone());
        // A thread with a runtime of its own: the test's may be the one that is going down.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime to drop a database").block_on(within(
                "a test database to be dropped",
                PATIENCE,
                server.drop_database(&name),
            ));
        });
        let dropped = dropping.join();
        assert!(dropped.is_ok() || std::thread::panicking(), "the test database {} is left over", self.name);
    }
}

/// A database server.
#[derive(Clone)]
struct Server {
    engine: Engine,
    variable: &'static str,
    url: Url,
}

#[derive(Clone, Copy)]
enum Engine {
    Postgres,
    MariaDb,
}

impl Engine {
    fn default_url(self) -> &'static str {
        match self {
            Self::Postgres => "postgres://postgres@127.0.0.1:5432/postgres",
            Self::MariaDb => "mysql://root@127.0.0.1:3306/test",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Postgres => 5432,
            Self::MariaDb => 3306,
        }
    }
}

impl Server {
    /// The server that the environment variable names, else the one on this machine.
    fn new(engine: Engine, variable: &'static str) -> Self {
        let url = env::var(variable).unwrap_or_else(|_| engine.default_url().to_owned());
        let url = Url::parse(&url).unwrap_or_else(|error| panic!("{variable} is not a URL: {error}"));
        Self { engine, variable, url }
    }

    async fn create(&self, name: &str) {
        let encoding = match self.engine {
            Engine::Postgres => "",
            Engine::MariaDb => " character set utf8mb4",
        };
        let connection = self.connect().await;
        let created = connection.execute_unprepared(&format!("create database {name}{encoding}")).await;
        created.unwrap_or_else(|error| panic!("create the database {name} on {self}: {error}"));
        close(connection).await;
    }

    /// Drops the database although somebody may still be connected to it.
    async fn drop_database(&self, name: &str) {
        let connection = self.connect().await;
        let dropped = match self.engine {
            Engine::Postgres => {
                connection.execute_unprepared(&format!("drop database if exists {name} with (force)")).await
            }
            Engine::MariaDb => drop_mariadb(&connection, name).await,
        };
        dropped.unwrap_or_else(|error| panic!("drop the database {name} on {self}: {error}"));
        close(connection).await;
    }

    async fn connect(&self) -> DatabaseConnection {
        // sqlx asks a closed port again and again until its timeout; a missing server is told at once.
        if let Err(error) = TcpStream::connect(self.address()).await {
            self.is_missing(&error);
        }
        let mut options = ConnectOptions::new(self.url.as_str());
        options
            .max_connections(1)
            .sqlx_logging(false)
            .connect_timeout(CONNECT_TIMEOUT)
            .acquire_timeout(CONNECT_TIMEOUT);
        Database::connect(options).await.unwrap_or_else(|error| self.is_missing(&error))
    }

    fn is_missing(&self, error: &dyn fmt::Display) -> ! {
        panic!(
            "{self} does not answer: {error}\n\
             Start it with scripts/services.sh, or name another server in {}.",
            self.variable
        )
    }

    /// Host and port, without user and password.
    fn address(&self) -> String {
        let host = self.url.host_str().unwrap_or("127.0.0.1");
        format!("{host}:{}", self.url.port().unwrap_or(self.engine.default_port()))
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.engine {
            Engine::Postgres => Kind::Postgres,
            Engine::MariaDb => Kind::MariaDb,
        };
        write!(f, "{kind} at {}", self.address())
    }
}

/// MariaDB has no `with (force)`, and an open transaction's locks would block the drop.
async fn drop_mariadb(connection: &DatabaseConnection, name: &str) -> Result<sea_orm::ExecResult, DbErr> {
    let others = format!("select id from information_schema.processlist where db = '{name}'");
    for row in connection.query_all_raw(statement(connection, others)).await? {
        let id: i64 = row.try_get_by_index(0)?;
        // It fails for a connection that has ended by itself in the meantime.
        let _ = connection.execute_unprepared(&format!("kill connection {id}")).await;
    }
    connection.execute_unprepared(&format!("drop database if exists {name}")).await
}

fn statement(connection: &DatabaseConnection, sql: String) -> sea_orm::Statement {
    sea_orm::Statement::from_string(connection.get_database_backend(), sql)
}

async fn close(connection: DatabaseConnection) {
    // Nothing is lost with a connection that does not close well: all that was asked of it is done.
    let _ = connection.close().await;
}

fn sqlite_url(path: &Path) -> String {
    format!("sqlite://{}?mode=rwc", path.display())
}

#[cfg(test)]
mod tests {
    use sea_orm::TransactionTrait;

    use super::*;

    async fn connect(url: &str) -> Result<DatabaseConnection, DbErr> {
        let mut options = ConnectOptions::new(url);
        options.max_connections(1).sqlx_logging(false);
        Database::connect(options).await
    }

    async fn write_and_count(connection: &DatabaseConnection) -> i64 {
        for sql in ["create table t (id bigint primary key)", "insert into t values (1), (2)"] {
            connection.execute_unprepared(sql).await.expect(sql);
        }
        let rows = connection
            .query_all_raw(statement(connection, "select count(*) from t".to_owned()))
            .await
            .expect("count");
        rows[0].try_get_by_index(0).expect("a number")
    }

    #[tokio::test]
    async fn a_database_of_each_kind_is_empty_takes_writes_and_is_gone_afterwards_though_still_in_use() {
        for kind in Kind::ALL {
            let database = TestDatabase::create(kind).await;
            let other = TestDatabase::create(kind).await;
            let url = database.url().to_owned();
            let connection = connect(&url).await.expect("connect");
            assert_eq!(write_and_count(&connection).await, 2, "{kind}");
            assert_eq!(write_and_count(&connect(other.url()).await.expect("connect")).await, 2, "{kind}");

            let transaction = connection.begin().await.expect("begin");
            transaction.execute_unprepared("delete from t").await.expect("hold a lock");
            drop(database);
            let without_create = url.replace("?mode=rwc", "?mode=rw");
            assert!(connect(&without_create).await.is_err(), "the {kind} database is still there");
        }
    }

    #[test]
    fn a_database_is_dropped_when_the_test_panics() {
        let url = std::sync::Mutex::new(String::new());
        let panicked = std::panic::catch_unwind(|| {
            runtime().block_on(async {
                let database = TestDatabase::create(Kind::Postgres).await;
                url.lock().expect("url").push_str(database.url());
                panic!("the test fails");
            });
        });
        assert!(panicked.is_err());
        let url = url.lock().expect("url").clone();
        assert!(runtime().block_on(connect(&url)).is_err(), "the database is still there");
    }

    #[test]
    fn a_server_that_does_not_answer_is_named_without_its_password_and_with_what_to_do() {
        let url = Url::parse("postgres://me:hidden@127.0.0.1:1/x").expect("a URL");
        let server = Server { url, ..Server::new(Engine::Postgres, "TEST_UNSET_URL") };
        let panicked = std::panic::catch_unwind(|| runtime().block_on(server.create("never")));
        let text = *panicked.expect_err("no server there").downcast::<String>().expect("a text");
        assert!(text.contains("PostgreSQL at 127.0.0.1:1"), "{text}");
        assert!(text.contains("scripts/services.sh") && text.contains("TEST_UNSET_URL"), "{text}");
        assert!(!text.contains("hidden"), "{text}");
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
    }
}
