//! What an error of the database means to an operator. It is told by the error's kind and code, and not by the server's words,
//! which may be in any language.

use std::io;

use sea_orm::sqlx::error::DatabaseError;
use sea_orm::sqlx::mysql::MySqlDatabaseError;
use sea_orm::sqlx::postgres::PgDatabaseError;
use sea_orm::sqlx::sqlite::SqliteError;
use sea_orm::{ConnAcquireErr, DbErr, RuntimeErr, sqlx};

use crate::domain::escape;
use crate::tls::TlsFault;

/// The kinds of error that have a name of their own. `place.rs` says what to do about each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    NothingListens,
    UnknownHost,
    /// The network refuses or cuts the connection.
    Unreachable,
    NoAnswer,
    /// The server starts, stops, or is no part of its cluster at the moment.
    NotTaking,
    TooManyConnections,
    /// The user has as many connections as it may.
    UserLimit,
    /// The database has as many connections as it may.
    DatabaseLimit,
    Password,
    /// The server does not let the user in from this machine.
    Login,
    /// The server does not know the user, or the user may not log in at all.
    NoLogin,
    NoDatabase,
    /// The user may not use the database at all.
    DatabaseDenied,
    /// The user may not do what the statement does.
    Denied,
    ReadOnly,
    /// A table or a column is missing.
    NoTable,
    DiskFull,
    /// A file of the database cannot be read or written.
    DiskFails,
    /// There is no `SQLite` file, and the command does not make one.
    NoFile,
    /// The folder of an `SQLite` file does not exist.
    NoFolder,
    /// An `SQLite` file cannot be opened or made.
    CannotOpen,
    /// A file that is no `SQLite` database, or a damaged one.
    NotSqlite,
    /// Another process holds the lock that the statement needs.
    Locked,
    /// The server has no TLS, and ours must have it.
    NoTls,
    Tls(TlsFault),
    /// A file that TLS needs cannot be used.
    TlsFile,
    /// What answers speaks another protocol.
    OtherProtocol,
    /// What answers is the other kind of database server.
    OtherKind,
    /// The URL has a parameter that the driver does not take.
    Url,
    /// Anything else.
    Unexpected,
}

impl Fault {
    pub fn of(error: &DbErr) -> Self {
        match error {
            DbErr::Conn(RuntimeErr::SqlxError(error))
            | DbErr::Exec(RuntimeErr::SqlxError(error))
            | DbErr::Query(RuntimeErr::SqlxError(error)) => Self::of_driver(error),
            DbErr::ConnectionAcquire(ConnAcquireErr::Timeout) => Self::NoAnswer,
            _ => Self::Unexpected,
        }
    }

    pub fn of_driver(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(error) => Self::of_server(&**error),
            sqlx::Error::Io(error) => Self::of_io(error),
            // The driver's word for a server without TLS. A certificate that fails is an error of I/O.
            sqlx::Error::Tls(_) => Self::NoTls,
            sqlx::Error::Protocol(_) => Self::OtherProtocol,
            sqlx::Error::PoolTimedOut => Self::NoAnswer,
            sqlx::Error::Configuration(_) => Self::Url,
            _ => Self::Unexpected,
        }
    }

    fn of_server(error: &dyn DatabaseError) -> Self {
        if let Some(error) = error.try_downcast_ref::<MySqlDatabaseError>() {
            return Self::of_mysql(error.number());
        }
        let code = error.code().unwrap_or_default();
        if let Some(error) = error.try_downcast_ref::<SqliteError>() {
            return Self::of_sqlite(code.parse().unwrap_or_default(), error.message());
        }
        let error = error.try_downcast_ref::<PgDatabaseError>();
        Self::of_postgres(&code, error.and_then(PgDatabaseError::routine).unwrap_or_default())
    }

    /// By SQLSTATE: <https://www.postgresql.org/docs/current/errcodes-appendix.html>. Where one has several meanings, also by the
    /// routine of the server that reports it.
    fn of_postgres(code: &str, routine: &str) -> Self {
        match code {
            "28P01" => Self::Password,
            "28000" if routine == "InitializeSessionUserId" => Self::NoLogin,
            "28000" => Self::Login,
            // Not there, and dropped.
            "3D000" | "57P04" => Self::NoDatabase,
            "42501" => Self::Denied,
            "25006" => Self::ReadOnly,
            "42P01" | "42703" | "3F000" => Self::NoTable,
            "53100" => Self::DiskFull,
            "58030" => Self::DiskFails,
            "53300" if routine == "InitializeSessionUserId" => Self::UserLimit,
            "53300" if routine == "CheckMyDatabase" => Self::DatabaseLimit,
            "53300" => Self::TooManyConnections,
            // Class 57, operator intervention: shut down, crashed, starting.
            "57P01" | "57P02" | "57P03" => Self::NotTaking,
            "57P05" => Self::Unreachable,
            // Class 08, connection exception. A pooler has these for a server that it does not reach.
            _ if code.starts_with("08") => Self::Unreachable,
            // A lock that was not had in time, a deadlock, and a conflict of transactions.
            "55P03" | "40P01" | "40001" => Self::Locked,
            _ => Self::Unexpected,
        }
    }

    /// By number, because many of them share a SQLSTATE: <https://mariadb.com/kb/en/mariadb-error-code-reference/>,
    /// <https://dev.mysql.com/doc/mysql-errors/9.0/en/server-error-reference.html>
    const fn of_mysql(number: u16) -> Self {
        match number {
            1045 => Self::Password,
            1129 | 1130 | 1698 | 1862 => Self::Login,
            // The account is locked: of MySQL, and of MariaDB.
            3118 | 4151 => Self::NoLogin,
            1049 => Self::NoDatabase,
            1044 => Self::DatabaseDenied,
            1142 | 1143 | 1227 | 1370 => Self::Denied,
            // `read_only` or `super_read_only`, a read-only transaction, `read_only` on another way, `innodb_read_only`.
            1290 | 1792 | 1836 | 1036 => Self::ReadOnly,
            1054 | 1146 => Self::NoTable,
            1021 | 1114 => Self::DiskFull,
            1040 => Self::TooManyConnections,
            1203 | 1226 => Self::UserLimit,
            // A Galera node without its cluster, a shutdown, MySQL's offline mode and its group replication.
            1047 | 1053 | 3032 | 3100 => Self::NotTaking,
            // The server ended the session: MariaDB, and MySQL after an idle time.
            1927 | 4031 => Self::Unreachable,
            // A lock that was not had in time, and a deadlock.
            1205 | 1213 => Self::Locked,
            _ => Self::Unexpected,
        }
    }

    /// By result code: <https://www.sqlite.org/rescode.html>. Its lowest byte is the kind. `SQLITE_ERROR` says more in words alone,
    /// which are the library's own and always English.
    fn of_sqlite(code: i32, message: &str) -> Self {
        const SHARED_MEMORY_SIZE: i32 = 4874;
        match code & 0xff {
            3 | 23 => Self::Denied,
            5 | 6 => Self::Locked,
            8 => Self::ReadOnly,
            13 => Self::DiskFull,
            _ if code == SHARED_MEMORY_SIZE => Self::DiskFull,
            10 => Self::DiskFails,
            14 => Self::CannotOpen,
            11 | 26 => Self::NotSqlite,
            1 if message.starts_with("no such table") || message.starts_with("no such column") => {
                Self::NoTable
            }
            _ => Self::Unexpected,
        }
    }

    fn of_io(error: &io::Error) -> Self {
        use io::ErrorKind::{ConnectionRefused, NotFound, TimedOut};
        if let Some(fault) = TlsFault::of_io(error) {
            return Self::Tls(fault);
        }
        match error.kind() {
            // NotFound: the socket of a server on this machine.
            ConnectionRefused | NotFound => Self::NothingListens,
            TimedOut => Self::NoAnswer,
            // The standard library has no kind for a failed name lookup.
            _ if error.to_string().contains("failed to lookup address") => Self::UnknownHost,
            _ => Self::Unreachable,
        }
    }

    /// Whether it is the whole server's, so that any other statement meets it there, too.
    pub const fn is_of_server(self) -> bool {
        match self {
            Self::NothingListens
            | Self::UnknownHost
            | Self::Unreachable
            | Self::NoAnswer
            | Self::NotTaking
            | Self::TooManyConnections
            | Self::UserLimit
            | Self::DatabaseLimit
            | Self::Password
            | Self::Login
            | Self::NoLogin
            | Self::NoDatabase
            | Self::DatabaseDenied
            | Self::ReadOnly
            | Self::DiskFull
            | Self::DiskFails
            | Self::NoTls
            | Self::Tls(_)
            | Self::TlsFile
            | Self::OtherProtocol
            | Self::OtherKind => true,
            Self::Denied
            | Self::NoTable
            | Self::NoFile
            | Self::NoFolder
            | Self::CannotOpen
            | Self::NotSqlite
            | Self::Locked
            | Self::Url
            | Self::Unexpected => false,
        }
    }

    /// Whether the server answers, and takes no writes. Another one may take them, so no connection to this one is kept. Of a
    /// file, a new connection tells more.
    pub const fn is_of_wrong_server(self) -> bool {
        matches!(self, Self::ReadOnly | Self::NotTaking | Self::DiskFails)
    }

    /// In a few words, for the end of a sentence: `cannot store a token: …`.
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::NothingListens => "the database does not run",
            Self::UnknownHost => "the database's host is unknown",
            Self::Unreachable => "the connection to the database broke",
            Self::NoAnswer => "the database does not answer in time",
            Self::NotTaking => "the database is starting or stopping",
            Self::TooManyConnections => "the database's limit of connections is reached",
            Self::UserLimit => "the database takes no more connections of this user",
            Self::DatabaseLimit => "the database has as many connections as it may",
            Self::Password => "the database refuses the password",
            Self::Login | Self::NoLogin => "the database refuses the user",
            Self::NoDatabase => "there is no such database",
            Self::DatabaseDenied => "the user may not use the database",
            Self::Denied => "the database's user lacks a right",
            Self::ReadOnly => "the database is read-only; `tokenkeeper doctor` says why",
            Self::NoTable => "a table or column is missing; run `tokenkeeper migrate up`",
            Self::DiskFull => "the database's disk is full; make room there (df -h)",
            Self::DiskFails => "the database's disk fails; its log, or this machine's (dmesg), says more",
            Self::NoFile => "there is no database file",
            Self::NoFolder => "the folder of the database file does not exist",
            Self::CannotOpen => "the database file cannot be opened",
            Self::NotSqlite => "the database file is damaged, or no SQLite database",
            Self::Locked => "another process locks the row or the database",
            Self::NoTls => "the database offers no TLS",
            Self::Tls(_) => "the database and this machine do not agree on TLS",
            Self::TlsFile => "a file of the database's TLS cannot be used",
            Self::OtherProtocol | Self::OtherKind => "what answers is not this kind of database",
            Self::Url => "database.url has a wrong parameter",
            Self::Unexpected => "an unexpected error",
        }
    }
}

/// What an error says in plain words. An error that has no name of its own is told in the server's words, escaped.
pub fn in_words(error: &DbErr) -> String {
    match (Fault::of(error), error) {
        (
            Fault::Unexpected,
            DbErr::Conn(RuntimeErr::SqlxError(driver))
            | DbErr::Exec(RuntimeErr::SqlxError(driver))
            | DbErr::Query(RuntimeErr::SqlxError(driver)),
        ) => match &**driver {
            sqlx::Error::Database(server) => escape::line(server.message()).into_owned(),
            other => escape::line(&other.to_string()).into_owned(),
        },
        (Fault::Unexpected, other) => escape::line(&other.to_string()).into_owned(),
        (fault, _) => fault.words().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn postgresql_is_understood_by_its_sqlstate() {
        for (code, fault) in [
            ("28P01", Fault::Password),
            ("28000", Fault::Login),
            ("3D000", Fault::NoDatabase),
            ("42501", Fault::Denied),
            ("25006", Fault::ReadOnly),
            ("42P01", Fault::NoTable),
            ("53100", Fault::DiskFull),
            ("53300", Fault::TooManyConnections),
            ("57P03", Fault::NotTaking),
            ("57P01", Fault::NotTaking),
            ("57P02", Fault::NotTaking),
            ("57P04", Fault::NoDatabase),
            ("08006", Fault::Unreachable),
            ("08P01", Fault::Unreachable),
            ("55P03", Fault::Locked),
            ("XX000", Fault::Unexpected),
        ] {
            assert_eq!(Fault::of_postgres(code, ""), fault, "{code}");
        }
        for (code, routine, fault) in [
            ("28000", "ClientAuthentication", Fault::Login),
            ("28000", "InitializeSessionUserId", Fault::NoLogin),
            ("53300", "InitializeSessionUserId", Fault::UserLimit),
            ("53300", "CheckMyDatabase", Fault::DatabaseLimit),
            ("53300", "InitPostgres", Fault::TooManyConnections),
        ] {
            assert_eq!(Fault::of_postgres(code, routine), fault, "{code} {routine}");
        }
    }

    #[test]
    fn mariadb_is_understood_by_its_numbers() {
        for (number, fault) in [
            (1045, Fault::Password),
            (1698, Fault::Login),
            (1049, Fault::NoDatabase),
            (1044, Fault::DatabaseDenied),
            (1142, Fault::Denied),
            (1290, Fault::ReadOnly),
            (1792, Fault::ReadOnly),
            (1836, Fault::ReadOnly),
            (1036, Fault::ReadOnly),
            (1146, Fault::NoTable),
            (1021, Fault::DiskFull),
            (1040, Fault::TooManyConnections),
            (1226, Fault::UserLimit),
            (4151, Fault::NoLogin),
            (1047, Fault::NotTaking),
            (3100, Fault::NotTaking),
            (1927, Fault::Unreachable),
            (1205, Fault::Locked),
            (1064, Fault::Unexpected),
        ] {
            assert_eq!(Fault::of_mysql(number), fault, "{number}");
        }
    }

    #[test]
    fn sqlite_is_understood_by_the_lowest_byte_of_its_codes() {
        for (code, message, fault) in [
            (14, "unable to open database file", Fault::CannotOpen),
            (8, "attempt to write a readonly database", Fault::ReadOnly),
            (1032, "attempt to write a readonly database", Fault::ReadOnly),
            (13, "database or disk is full", Fault::DiskFull),
            (4874, "disk I/O error", Fault::DiskFull),
            (778, "disk I/O error", Fault::DiskFails),
            (5, "database is locked", Fault::Locked),
            (26, "file is not a database", Fault::NotSqlite),
            (1, "no such table: token_entry", Fault::NoTable),
            (1, "near \"SELEC\": syntax error", Fault::Unexpected),
        ] {
            assert_eq!(Fault::of_sqlite(code, message), fault, "{code} {message}");
        }
    }

    #[test]
    fn the_way_to_the_server_is_understood_by_the_kind_of_error() {
        let io = |kind| Fault::of_driver(&sqlx::Error::Io(io::Error::from(kind)));
        assert_eq!(io(io::ErrorKind::ConnectionRefused), Fault::NothingListens);
        assert_eq!(io(io::ErrorKind::ConnectionReset), Fault::Unreachable);
        assert_eq!(io(io::ErrorKind::UnexpectedEof), Fault::Unreachable);
        assert_eq!(Fault::of_driver(&sqlx::Error::PoolTimedOut), Fault::NoAnswer);
        let protocol = sqlx::Error::Protocol("unexpected response from SSLRequest: 0x64".to_owned());
        assert_eq!(Fault::of_driver(&protocol), Fault::OtherProtocol);
        let told = in_words(&DbErr::Conn(RuntimeErr::SqlxError(protocol.into())));
        assert_eq!(told, "what answers is not this kind of database");
    }

    #[tokio::test]
    async fn a_host_that_no_name_service_knows_is_unknown() {
        let error = tokio::net::lookup_host("no-such-host.invalid:1").await.map(drop).unwrap_err();
        assert_eq!(Fault::of_driver(&sqlx::Error::Io(error)), Fault::UnknownHost);
    }
}
