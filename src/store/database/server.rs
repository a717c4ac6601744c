//! Which of its servers a database is used at: the first one that takes writes.
//!
//! `database.url` may name several, and a name may have several addresses. Each is tried in turn, and has its own share of the
//! time. The pools then connect there, until that server does not take writes any more.

use std::net::IpAddr;
use std::time::Duration;

use sea_orm::sqlx::mysql::MySqlConnectOptions;
use sea_orm::sqlx::postgres::PgConnectOptions;
use sea_orm::sqlx::{self, ConnectOptions, Connection, MySqlConnection, PgConnection};
use sea_orm::{DatabaseBackend, DatabaseConnection, DbErr};
use secrecy::ExposeSecret;
use tokio::net::lookup_host;
use tokio::time::{Instant, timeout};

use super::greeting::kind_of_server;
use super::link::{mysql_takes_writes, postgres_takes_writes};
use super::place::{Place, Unable};
use super::tls;
use super::{Fault, in_words};
use crate::settings::{self, ServerUrl};
use crate::tls::LinkTls;

/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// A server that answered, and how to connect there.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) target: Target,
    pub(super) takes_writes: bool,
    /// As an operator knows it.
    pub(super) name: String,
}

/// What a driver connects by.
#[derive(Debug, Clone)]
pub(super) enum Target {
    Postgres(PgConnectOptions),
    MySql(MySqlConnectOptions),
    /// A file, which is opened by its URL.
    File,
}

/// Finds the first server that takes writes, else the first one that answers. All together may take as long as `patience`.
///
/// # Errors
/// [`Unable`]: what is wrong with each, without a password, and the next command.
pub(super) async fn find(settings: &settings::Database, patience: Duration) -> Result<Server, Unable> {
    match look(settings, patience).await {
        Err(Useless { read_only: Some(server), .. }) => Ok(server),
        found => found.map_err(|useless| useless.together(&Place::new(settings))),
    }
}

/// Finds the first server that takes writes.
///
/// # Errors
/// As [`find`], and that none takes writes.
pub(super) async fn find_writable(
    settings: &settings::Database,
    patience: Duration,
) -> Result<Server, Unable> {
    look(settings, patience).await.map_err(|useless| useless.together(&Place::new(settings)))
}

/// The servers that were tried, of which none takes writes.
#[derive(Default)]
struct Useless {
    /// The first one that answered.
    read_only: Option<Server>,
    /// What is wrong with each, by its name.
    unables: Vec<(String, Unable)>,
}

impl Useless {
    fn together(self, place: &Place) -> Unable {
        let faults = || self.unables.iter().map(|(_, unable)| unable.fault);
        let problems = || self.unables.iter().map(|(_, unable)| &unable.problem);
        // The one that answered is the nearest to being of use.
        let fault = faults().find(|fault| fault.is_of_wrong_server()).or_else(|| faults().next());
        let fault = fault.unwrap_or(Fault::Unexpected);
        // One server, perhaps at several addresses.
        if let Some(problem) = problems().next()
            && problems().all(|other| other == problem)
        {
            return Unable { fault, problem: problem.clone() };
        }
        let causes = self.unables.iter().map(|(name, unable)| format!("{name}: {}", unable.fault.words()));
        Unable { fault, problem: place.useless(&causes.collect::<Vec<_>>()) }
    }
}

async fn look(settings: &settings::Database, patience: Duration) -> Result<Server, Useless> {
    let (place, tls) = (Place::new(settings), &settings.tls);
    if place.is_file() {
        return Ok(Server { target: Target::File, takes_writes: true, name: place.url().to_owned() });
    }
    let mut useless = Useless::default();
    // The driver tells of an unreadable file as of a server that is not there.
    if let Err(error) = tls.check() {
        let unable = Unable { fault: Fault::TlsFile, problem: error.problem() };
        useless.unables.push((place.url().to_owned(), unable));
        return Err(useless);
    }
    let until = Instant::now() + patience;
    let servers = settings.url.servers();
    for (url, left) in servers.iter().zip((1..=servers.len()).rev()) {
        let place = Place::of_server(url);
        let until = Instant::now() + share_of(until, left);
        let targets = match targets_of(url, &place, tls, until).await {
            Ok(targets) => targets,
            Err(unable) => {
                useless.unables.push((place.address(), unable));
                continue;
            }
        };
        let count = targets.len();
        for ((target, name), left) in targets.into_iter().zip((1..=count).rev()) {
            // Boxed: the future that opens a connection takes 14 kB.
            match Box::pin(takes_writes(&target, &place, share_of(until, left))).await {
                Ok(true) => return Ok(Server { target, takes_writes: true, name }),
                Ok(false) => {
                    useless.unables.push((name.clone(), place.unable(Fault::ReadOnly, "")));
                    useless.read_only.get_or_insert(Server { target, takes_writes: false, name });
                }
                Err(unable) => useless.unables.push((name, unable)),
            }
        }
    }
    Err(useless)
}

/// The time that each of those that are left may take.
fn share_of(until: Instant, left: usize) -> Duration {
    until.saturating_duration_since(Instant::now()) / u32::try_from(left).unwrap_or(u32::MAX).max(1)
}

/// How to connect to each address of a server, and its name.
async fn targets_of(
    url: &ServerUrl,
    place: &Place,
    tls: &LinkTls,
    until: Instant,
) -> Result<Vec<(Target, String)>, Unable> {
    let target = Target::of_url(url, place, tls).map_err(|error| refused(place, error))?;
    let name = place.address();
    let Some((host, port)) = target.host() else { return Ok(vec![(target, name)]) };
    // Where a name has one address, each connection looks it up again: a server that moved is found without an outage.
    let addresses: Vec<IpAddr> = match timeout(share_of(until, 1), lookup_host((host, port))).await {
        Ok(Ok(addresses)) => addresses.map(|address| address.ip()).collect(),
        Ok(Err(error)) => return Err(refused(place, sqlx::Error::Io(error))),
        Err(_) => return Err(place.unable(Fault::NoAnswer, "")),
    };
    Ok(match addresses.as_slice() {
        [] | [_] => vec![(target, name)],
        several => several.iter().map(|at| (target.clone().at(*at), format!("{name} ({at})"))).collect(),
    })
}

/// Connects, asks, and hangs up.
async fn takes_writes(target: &Target, place: &Place, patience: Duration) -> Result<bool, Unable> {
    let asked = timeout(patience, async {
        match target {
            Target::Postgres(options) => {
                let mut connection = PgConnection::connect_with(options).await?;
                let answer = postgres_takes_writes(&mut connection).await;
                drop(timeout(FAREWELL, connection.close()).await);
                answer
            }
            Target::MySql(options) => {
                let mut connection = MySqlConnection::connect_with(options).await?;
                let answer = mysql_takes_writes(&mut connection).await;
                drop(timeout(FAREWELL, connection.close()).await);
                answer
            }
            // Opening the pool opens the file.
            Target::File => Ok(true),
        }
    });
    let unable = match asked.await {
        Ok(Ok(takes_writes)) => return Ok(takes_writes),
        Ok(Err(error)) => refused(place, error),
        Err(_) => place.unable(Fault::NoAnswer, ""),
    };
    // PostgreSQL waits for the first word, and so does a client of MariaDB: both would wait for ever.
    if matches!(unable.fault, Fault::NoAnswer | Fault::OtherProtocol)
        && let Some((host, port)) = place.server()
        && let Some(kind) = kind_of_server(host, port).await
        && kind != place.backend()
    {
        return Err(place.unable(Fault::OtherKind, ""));
    }
    Err(unable)
}

/// Why a connection was refused.
fn refused(place: &Place, error: sqlx::Error) -> Unable {
    let fault = match Fault::of_driver(&error) {
        // PostgreSQL has one code for a right on a table and one on the database.
        Fault::Denied => Fault::DatabaseDenied,
        fault => fault,
    };
    let error = DbErr::Conn(sea_orm::RuntimeErr::SqlxError(error.into()));
    place.unable(fault, &in_words(&error))
}

impl Target {
    fn of_url(url: &ServerUrl, place: &Place, tls: &LinkTls) -> Result<Self, sqlx::Error> {
        let url = url.expose_secret();
        // Statements are logged with their values otherwise, and some of those are users.
        Ok(match place.backend() {
            DatabaseBackend::Postgres => {
                let options: PgConnectOptions = url.parse()?;
                let host = without_brackets(options.get_host()).to_owned();
                Self::Postgres(tls::of_postgres(options.host(&host), tls).disable_statement_logging())
            }
            DatabaseBackend::MySql => {
                let options: MySqlConnectOptions = url.parse()?;
                let host = without_brackets(options.get_host()).to_owned();
                Self::MySql(tls::of_mysql(options.host(&host), tls).disable_statement_logging())
            }
            _ => Self::File,
        })
    }

    /// Where the connections of this pool go.
    pub(super) fn of_pool(db: &DatabaseConnection) -> Self {
        match db.get_database_backend() {
            DatabaseBackend::Postgres => {
                Self::Postgres(PgConnectOptions::clone(&db.get_postgres_connection_pool().connect_options()))
            }
            DatabaseBackend::MySql => {
                Self::MySql(MySqlConnectOptions::clone(&db.get_mysql_connection_pool().connect_options()))
            }
            _ => Self::File,
        }
    }

    /// Lets this pool open its next connections here.
    pub(super) fn set_on(&self, db: &DatabaseConnection) {
        match self {
            Self::Postgres(options) => db.get_postgres_connection_pool().set_connect_options(options.clone()),
            Self::MySql(options) => db.get_mysql_connection_pool().set_connect_options(options.clone()),
            Self::File => {}
        }
    }

    /// Host and port. None: a file, or a socket of this machine.
    fn host(&self) -> Option<(&str, u16)> {
        match self {
            Self::Postgres(options) => {
                options.get_socket().is_none().then(|| (options.get_host(), options.get_port()))
            }
            Self::MySql(options) => {
                options.get_socket().is_none().then(|| (options.get_host(), options.get_port()))
            }
            Self::File => None,
        }
    }

    /// The same server at one of the addresses of its name. TLS verifies the name: vendor/sqlx-core/README.md.
    fn at(self, address: IpAddr) -> Self {
        match self {
            Self::Postgres(options) => {
                let host = format!("{}@{address}", options.get_host());
                Self::Postgres(options.host(&host))
            }
            Self::MySql(options) => {
                let host = format!("{}@{address}", options.get_host());
                Self::MySql(options.host(&host))
            }
            Self::File => Self::File,
        }
    }
}

/// A URL has an IPv6 address in brackets, and so has the driver's host, which then is no address.
fn without_brackets(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}
