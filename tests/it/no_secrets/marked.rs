//! Logins at broker and database whose passwords can be searched for. Those of the tests' own logins are everyday words.

use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection};
use url::Url;
use uuid::Uuid;

use crate::harness::accounts::{self, Accounts};
use crate::harness::{Kind, World};

/// The password of both.
pub(super) const PASSWORD: &str = accounts::PASSWORD;

/// Logins for a world's workers.
pub(super) struct Marked {
    pub(super) broker_url: String,
    pub(super) database_url: String,
    login: Option<(DatabaseConnection, Vec<String>)>,
    _accounts: Accounts,
}

impl Marked {
    /// A login at the broker, and one at the database unless that is a file.
    pub(super) async fn passwords(world: &World, kind: Kind) -> Self {
        let everything = [".*", ".*", ".*"].map(str::to_owned);
        let accounts = Accounts::create(world, &[("marked", Some(everything))]).await;
        let (database_url, login) = database_login(world.database_url(), kind).await;
        Self { broker_url: accounts.url("marked"), database_url, login, _accounts: accounts }
    }

    /// Drops the login at the database. The world that used it must be gone.
    pub(super) async fn drop_them(self) {
        let Some((admin, statements)) = self.login else { return };
        run(&admin, &statements).await;
        admin.close().await.unwrap();
    }
}

/// The database's URL with a login of its own, and what drops that login again.
async fn database_login(url: &str, kind: Kind) -> (String, Option<(DatabaseConnection, Vec<String>)>) {
    let name = format!("tk_{}", &Uuid::new_v4().simple().to_string()[..12]);
    let mut marked = Url::parse(url).unwrap();
    let mut server = marked.clone();
    let database = marked.path().trim_start_matches('/').to_owned();
    let (create, drop) = match kind {
        Kind::Sqlite => return (url.to_owned(), None),
        Kind::Postgres => {
            let create = format!(
                "CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'; GRANT USAGE ON SCHEMA public TO {name}; \
                 GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}; \
                 GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {name}"
            );
            (create, format!("DROP ROLE {name}"))
        }
        Kind::MariaDb => {
            let login = format!("'{name}'@'127.0.0.1'");
            let create = format!(
                "CREATE USER {login} IDENTIFIED BY '{PASSWORD}'; GRANT ALL ON {database}.* TO {login}"
            );
            (create, format!("DROP USER {login}"))
        }
    };
    let statements = |text: String| text.split("; ").map(str::to_owned).collect::<Vec<_>>();
    let granting = connect(marked.as_str()).await;
    run(&granting, &statements(create)).await;
    granting.close().await.unwrap();
    // The world's database is gone before the login is.
    server.set_path(if kind == Kind::Postgres { "postgres" } else { "" });
    marked.set_username(&name).unwrap();
    marked.set_password(Some(PASSWORD)).unwrap();
    (marked.into(), Some((connect(server.as_str()).await, statements(drop))))
}

async fn connect(url: &str) -> DatabaseConnection {
    let mut options = ConnectOptions::new(url);
    options.max_connections(1).sqlx_logging(false);
    Database::connect(options).await.unwrap()
}

async fn run(connection: &DatabaseConnection, statements: &[String]) {
    for statement in statements {
        let done = connection.execute_unprepared(statement).await;
        done.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
}
