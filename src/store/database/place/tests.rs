use super::*;
use crate::domain::problem::documented;
use crate::tls::TlsFault;

const POSTGRES: &str = "postgres://tk:***@db.example.org/tokens";
const MARIADB: &str = "mysql://tk:***@db.example.org/tokens";
const SQLITE: &str = "sqlite:///var/lib/tk/tokens.db";

fn told(url: &str, fault: Fault) -> Problem {
    Place::of_url(url).unable(fault, "").problem
}

#[test]
fn what_an_operator_reads_of_the_database_stands_in_the_documentation() {
    let both = [("PostgreSQL", POSTGRES), ("MariaDB", MARIADB)];
    for (product, url) in both {
        for (event, fault) in [
            ("does not run", Fault::NothingListens),
            ("cannot be reached", Fault::Unreachable),
            ("does not answer", Fault::NoAnswer),
            ("is starting", Fault::NotTaking),
            ("has no connection left", Fault::TooManyConnections),
            ("takes no more of the user", Fault::UserLimit),
            ("refuses the password", Fault::Password),
            ("refuses the user", Fault::Login),
            ("does not let the user log in", Fault::NoLogin),
            ("has no such database", Fault::NoDatabase),
            ("does not let the user in", Fault::DatabaseDenied),
            ("refuses a statement", Fault::Denied),
            ("is read-only", Fault::ReadOnly),
            ("has a full disk", Fault::DiskFull),
            ("has a failing disk", Fault::DiskFails),
            ("offers no TLS", Fault::NoTls),
            ("does not speak TLS", Fault::Tls(TlsFault::NotTls)),
            ("has an untrusted certificate", Fault::Tls(TlsFault::UnknownAuthority)),
            ("has an expired certificate", Fault::Tls(TlsFault::Expired)),
            ("has a certificate that is not valid yet", Fault::Tls(TlsFault::NotYetValid)),
            ("has a certificate for another name", Fault::Tls(TlsFault::WrongName)),
            ("has a bad certificate", Fault::Tls(TlsFault::BadCertificate)),
            ("wants a client certificate", Fault::Tls(TlsFault::WantsCertificate)),
            ("refuses the client certificate", Fault::Tls(TlsFault::RefusesCertificate)),
            ("has no TLS in common", Fault::Tls(TlsFault::NothingInCommon)),
            ("needs an authority", Fault::Tls(TlsFault::NoAuthorities)),
            ("is another program", Fault::OtherProtocol),
            ("is another kind of server", Fault::OtherKind),
        ] {
            documented(&format!("{product} {event}"), &told(url, fault));
        }
    }
    documented("PostgreSQL takes no more to the database", &told(POSTGRES, Fault::DatabaseLimit));
    documented("host unknown", &told(POSTGRES, Fault::UnknownHost));
    documented("wrong parameter in the URL", &told(POSTGRES, Fault::Url));
    for (event, fault) in [
        ("file missing", Fault::NoFile),
        ("folder missing", Fault::NoFolder),
        ("file or folder not writable", Fault::CannotOpen),
        ("file read-only", Fault::ReadOnly),
        ("disk full", Fault::DiskFull),
        ("disk fails", Fault::DiskFails),
        ("another kind of file", Fault::NotSqlite),
        ("locked", Fault::Locked),
    ] {
        documented(&format!("SQLite {event}"), &told(SQLITE, fault));
    }
}

#[test]
fn what_an_operator_reads_of_several_servers_stands_in_the_documentation() {
    let place = Place { url: "postgres://tk:***@db-1,db-2/tokens".to_owned(), ..Place::of_url(POSTGRES) };
    let causes = [("db-1", Fault::ReadOnly), ("db-2", Fault::NothingListens)];
    let causes = causes.map(|(server, fault)| format!("{server}: {}", fault.words()));
    documented("no server takes writes", &place.useless(&causes));
}

#[test]
fn the_folder_of_a_file_is_where_it_is_or_would_be() {
    let folder = |url| Place::of_url(url).folder().to_owned();
    assert_eq!(folder(SQLITE), Path::new("/var/lib/tk"));
    assert_eq!(folder("sqlite://tokenkeeper.db"), Path::new("."));
    assert_eq!(folder("sqlite:data/tokenkeeper.db"), Path::new("data"));
}
