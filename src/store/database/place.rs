//! Where the database is, and what an operator reads when something is wrong there.

mod tls;

use std::path::Path;

use sea_orm::DatabaseBackend;
use url::Url;

use super::fault::Fault;
use crate::domain::problem::Problem;
use crate::settings::{self, ServerUrl};

/// Why a worker or a command cannot use the database.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct Unable {
    pub fault: Fault,
    pub problem: Problem,
}

/// The parts of `database.url` that may be shown.
#[derive(Debug, Clone)]
pub struct Place {
    backend: DatabaseBackend,
    /// Without password and parameters.
    url: String,
    host: String,
    /// None: the server's usual one.
    port: Option<u16>,
    user: String,
    /// The database's name, or the path of an `SQLite` file.
    name: String,
}

impl Place {
    /// With several servers: host and port are the first one's, and the URL names all of them.
    pub fn new(settings: &settings::Database) -> Self {
        let first = settings.url.servers().first().map(ServerUrl::redacted).unwrap_or_default();
        Self { url: settings.display_url().to_owned(), ..Self::of_url(first) }
    }

    pub(super) fn of_server(server: &ServerUrl) -> Self {
        Self::of_url(server.redacted())
    }

    pub(super) fn of_url(url: &str) -> Self {
        let parsed = Url::parse(url).ok();
        let backend = match parsed.as_ref().map(Url::scheme) {
            Some("postgres" | "postgresql") => DatabaseBackend::Postgres,
            Some("mysql") => DatabaseBackend::MySql,
            _ => DatabaseBackend::Sqlite,
        };
        let part =
            |read: fn(&Url) -> Option<&str>| parsed.as_ref().and_then(read).unwrap_or_default().to_owned();
        let name = match backend {
            DatabaseBackend::Sqlite => url.trim_start_matches("sqlite:").trim_start_matches("//").to_owned(),
            _ => part(|url| url.path().strip_prefix('/')),
        };
        let (host, user) = (part(Url::host_str), part(|url| Some(url.username())));
        Self { backend, url: url.to_owned(), host, port: parsed.as_ref().and_then(Url::port), user, name }
    }

    pub const fn backend(&self) -> DatabaseBackend {
        self.backend
    }

    pub const fn is_file(&self) -> bool {
        matches!(self.backend, DatabaseBackend::Sqlite)
    }

    /// The path of an `SQLite` file.
    pub fn file(&self) -> Option<&Path> {
        self.is_file().then(|| Path::new(&self.name))
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Host and port of a server. None: a file, or a socket of this machine.
    pub(super) fn server(&self) -> Option<(&str, u16)> {
        let default_port = match self.backend {
            DatabaseBackend::Postgres => 5432,
            DatabaseBackend::MySql => 3306,
            _ => return None,
        };
        (!self.host.is_empty()).then_some((self.host.as_str(), self.port.unwrap_or(default_port)))
    }

    /// Host and port as the URL has them.
    pub(super) fn address(&self) -> String {
        match (self.host.is_empty(), self.port) {
            (true, _) => self.url.clone(),
            (false, None) => self.host.clone(),
            (false, Some(port)) => format!("{}:{port}", self.host),
        }
    }

    /// Of several servers, or addresses of one, none can be used: what is wrong with each.
    pub(super) fn useless(&self, causes: &[String]) -> Problem {
        let Self { url, .. } = self;
        Problem::new(
            format!("none of the {} servers of {url} takes writes (database.url)", causes.len()),
            causes.join("; "),
            "start or promote one of them, or correct database.url",
        )
    }

    /// The folder of an `SQLite` file.
    pub fn folder(&self) -> &Path {
        match Path::new(&self.name).parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        }
    }

    pub const fn product(&self) -> &'static str {
        match self.backend {
            DatabaseBackend::Postgres => "PostgreSQL",
            DatabaseBackend::MySql => "MariaDB",
            _ => "SQLite",
        }
    }

    pub fn unable(&self, fault: Fault, detail: &str) -> Unable {
        Unable { fault, problem: self.problem(fault, detail) }
    }

    /// `detail` is only told for what has no name of its own.
    #[expect(clippy::too_many_lines, reason = "a table with a row for each fault")]
    fn problem(&self, fault: Fault, detail: &str) -> Problem {
        let Self { url, host, user, name, .. } = self;
        let product = self.product();
        let folder = self.folder().display();
        let at = format!("{product} at {url}");
        let (what, cause, next) = match fault {
            Fault::NothingListens => (
                format!("{at} does not answer"),
                "nothing listens there".to_owned(),
                format!("start {product} there, or correct database.url"),
            ),
            Fault::UnknownHost => (
                format!("the host of {url} is unknown"),
                "its name has no address, or the name service does not answer".to_owned(),
                format!("getent hosts {host}, or correct database.url"),
            ),
            Fault::Unreachable => (
                format!("{at} cannot be reached"),
                "the network, or something in between, refuses or cuts the connection".to_owned(),
                format!("ping {host}, or correct database.url"),
            ),
            Fault::NoAnswer => (
                format!("{at} does not answer in time"),
                "it is overloaded or frozen, or something in between drops what is sent".to_owned(),
                format!("look at the load of {product} and at the network in between"),
            ),
            Fault::NotTaking => (
                format!("{at} takes no connections at the moment"),
                "it is starting, stopping or recovering".to_owned(),
                format!("wait for it; the log of {product} says more"),
            ),
            Fault::TooManyConnections => (
                format!("{at} has no connection left"),
                "its limit of connections is reached".to_owned(),
                "raise max_connections there, or lower database.max_connections here".to_owned(),
            ),
            Fault::UserLimit => (
                format!("{at} takes no more connections of {user}"),
                match self.backend {
                    DatabaseBackend::Postgres => "the CONNECTION LIMIT of the role is reached",
                    _ => "the MAX_USER_CONNECTIONS of the user, or another limit of it, is reached",
                }
                .to_owned(),
                match self.backend {
                    DatabaseBackend::Postgres => format!("ALTER ROLE {user} CONNECTION LIMIT -1"),
                    _ => format!("ALTER USER {user} WITH MAX_USER_CONNECTIONS 100"),
                } + ", or lower database.max_connections here",
            ),
            Fault::DatabaseLimit => (
                format!("{at} takes no more connections to the database {name}"),
                "the CONNECTION LIMIT of the database is reached".to_owned(),
                format!("ALTER DATABASE {name} CONNECTION LIMIT -1, or lower database.max_connections here"),
            ),
            Fault::Password => (
                format!("{at} refuses the login of {user}"),
                match self.backend {
                    DatabaseBackend::Postgres => "the password is wrong, or there is no such user",
                    // It has one error for all of these.
                    _ => {
                        "the password is wrong, there is no such user, or it may not log in without TLS or a client certificate"
                    }
                }
                .to_owned(),
                match self.backend {
                    DatabaseBackend::Postgres => "correct database.url, or set the password there: ",
                    _ => "correct database.url, set database.tls_cert_file, or set the password there: ",
                }
                .to_owned()
                    + &self.set_password(),
            ),
            Fault::Login => (
                format!("{at} refuses the user {user}"),
                match self.backend {
                    DatabaseBackend::Postgres => {
                        "pg_hba.conf does not let it in from this machine, without TLS or without a client certificate"
                    }
                    _ => "there is no such user, or it may not log in from this machine",
                }
                .to_owned(),
                match self.backend {
                    DatabaseBackend::Postgres => {
                        format!(
                            "add a line for {user} to pg_hba.conf, and then SELECT pg_reload_conf(); or set \
                             database.tls_cert_file"
                        )
                    }
                    _ => format!("CREATE USER {user} IDENTIFIED BY '…'"),
                },
            ),
            Fault::NoLogin => (
                format!("{at} does not let {user} log in"),
                match self.backend {
                    DatabaseBackend::Postgres => "there is no such role, or it may not log in (NOLOGIN)",
                    _ => "the account is locked",
                }
                .to_owned(),
                match self.backend {
                    DatabaseBackend::Postgres => {
                        format!("CREATE ROLE {user} LOGIN PASSWORD '…', or ALTER ROLE {user} LOGIN")
                    }
                    _ => format!("ALTER USER {user} ACCOUNT UNLOCK"),
                },
            ),
            Fault::NoDatabase => (
                format!("{at} has no database {name}"),
                "nobody has created it, or its name is misspelt".to_owned(),
                format!("CREATE DATABASE {name}, and then tokenkeeper migrate up; or correct database.url"),
            ),
            Fault::DatabaseDenied => (
                format!("{at} does not let {user} use the database {name}"),
                "there is no such database, or the user has no right on it".to_owned(),
                match self.backend {
                    DatabaseBackend::Postgres => format!("GRANT CONNECT ON DATABASE {name} TO {user}"),
                    _ => format!("CREATE DATABASE {name}, or GRANT ALL ON {name}.* TO {user}"),
                },
            ),
            Fault::Denied => (
                format!("{at} denies {user} what this needs"),
                "the user lacks a right on a table or a schema".to_owned(),
                "tokenkeeper doctor, which names the GRANT".to_owned(),
            ),
            Fault::ReadOnly => return self.read_only(),
            Fault::NoTable => (
                format!("the database {url} lacks a table or a column"),
                "it is not migrated".to_owned(),
                "tokenkeeper migrate up".to_owned(),
            ),
            Fault::DiskFull => (
                format!("the disk of the database {url} is full"),
                String::new(),
                "make room there: df -h".to_owned(),
            ),
            Fault::DiskFails => (
                format!("the disk of the database {url} fails"),
                "a file of it cannot be read or written".to_owned(),
                match self.backend {
                    DatabaseBackend::Sqlite => "look into this machine's log: dmesg".to_owned(),
                    _ => format!("look into the log of {product} and of its machine"),
                },
            ),
            Fault::NoFile => (
                format!("there is no database file {name}"),
                "nobody has made it yet, or its name is misspelt".to_owned(),
                "tokenkeeper migrate up, which makes it, or correct database.url".to_owned(),
            ),
            Fault::NoFolder => (
                format!("the database file {name} cannot be made"),
                format!("the folder {folder} does not exist"),
                format!("mkdir -p {folder}, or correct database.url"),
            ),
            Fault::CannotOpen if self.file().is_some_and(Path::is_dir) => (
                format!("the database file {name} cannot be opened"),
                "it is a folder".to_owned(),
                "name a file in database.url".to_owned(),
            ),
            Fault::CannotOpen => (
                format!("the database file {name} cannot be opened"),
                "this user may not write the file or its folder".to_owned(),
                format!("ls -ld {folder} {name}, and give both to the user that runs tokenkeeper"),
            ),
            Fault::NotSqlite => (
                format!("{name} cannot be read as a database"),
                "it is no SQLite file, or it is damaged".to_owned(),
                "correct database.url, or restore the file from a backup".to_owned(),
            ),
            Fault::Locked => (
                format!("the database {url} is locked"),
                "another process writes to it, or holds a transaction open".to_owned(),
                "wait until that has ended".to_owned(),
            ),
            Fault::NoTls => return self.no_tls(),
            Fault::Tls(fault) => return self.tls(fault),
            Fault::TlsFile => (
                format!("no encrypted connection to {at}"),
                "a file that it needs cannot be used".to_owned(),
                "tokenkeeper doctor, which names the file".to_owned(),
            ),
            Fault::OtherProtocol => (
                format!("what answers at {url} is not {product}"),
                "another program listens on that port".to_owned(),
                "correct host and port in database.url".to_owned(),
            ),
            Fault::OtherKind => {
                let (other, scheme) = match self.backend {
                    DatabaseBackend::Postgres => ("MariaDB or MySQL", "mysql://"),
                    _ => ("PostgreSQL", "postgres://"),
                };
                (
                    format!("what answers at {url} is {other}, and not {product}"),
                    "the URL begins for another kind of server, or has its port".to_owned(),
                    format!("let database.url begin with {scheme}, or correct its host and port"),
                )
            }
            Fault::Url => (
                format!("the database {url} cannot be opened"),
                "a parameter behind the ? is not one that the driver takes".to_owned(),
                "correct database.url".to_owned(),
            ),
            Fault::Unexpected => (
                format!("{at} gives an error that has no name here"),
                detail.to_owned(),
                format!("look into the log of {product}"),
            ),
        };
        Problem::new(what + " (database.url)", cause, next)
    }

    fn read_only(&self) -> Problem {
        let Self { url, name, .. } = self;
        let product = self.product();
        match self.backend {
            DatabaseBackend::Postgres => Problem::new(
                format!("{product} at {url} is read-only (database.url)"),
                "it is a standby, or default_transaction_read_only is on",
                format!(
                    "name the primary in database.url, or ALTER DATABASE {name} SET default_transaction_read_only = off"
                ),
            ),
            DatabaseBackend::MySql => Problem::new(
                format!("{product} at {url} is read-only (database.url)"),
                "read_only is on, as it is on a replica",
                "name the primary in database.url, or SET GLOBAL read_only = OFF",
            ),
            _ => Problem::new(
                format!("the database file {name} is read-only (database.url)"),
                "this user may not write it, or its file system is mounted read-only",
                format!(
                    "ls -ld {} {name}, and give both to the user that runs tokenkeeper",
                    self.folder().display()
                ),
            ),
        }
    }

    fn set_password(&self) -> String {
        match self.backend {
            DatabaseBackend::Postgres => format!("ALTER ROLE {} PASSWORD '…'", self.user),
            _ => format!("ALTER USER {} IDENTIFIED BY '…'", self.user),
        }
    }
}

#[cfg(test)]
mod tests;
