//! What an operator reads when the database and this program do not agree on TLS.

use sea_orm::DatabaseBackend;

use super::Place;
use crate::domain::problem::Problem;
use crate::tls::TlsFault;

impl Place {
    pub(super) fn no_tls(&self) -> Problem {
        let Self { url, .. } = self;
        let product = self.product();
        Problem::new(
            format!("{product} at {url} offers no TLS (database.tls)"),
            "it has none, and passwords and tokens must not cross a network in plain text",
            format!(
                "{}, or, on a network that nobody else reads, database.tls = \"off\"",
                match self.backend {
                    DatabaseBackend::Postgres => "set ssl = on in postgresql.conf",
                    _ => "set ssl_cert and ssl_key in its configuration",
                }
            ),
        )
    }

    pub(super) fn tls(&self, fault: TlsFault) -> Problem {
        let Self { url, host, .. } = self;
        let product = self.product();
        let at = format!("{product} at {url}");
        let of_certificate = |state: &str, cause: &str, next: &str| {
            let what = format!("the certificate of {at} {state}");
            Problem::new(what, cause, format!("{next}; {}", self.show_certificate()))
        };
        match fault {
            TlsFault::NotTls => Problem::new(
                format!("what answers at {url} does not speak TLS (database.url)"),
                "another program listens on that port, or something in between speaks for the server",
                "correct host and port in database.url",
            ),
            TlsFault::UnknownAuthority => of_certificate(
                "is not trusted (database.tls_ca_file)",
                "it is signed by no authority that is trusted here",
                "name its authority's certificate in database.tls_ca_file",
            ),
            TlsFault::Expired => of_certificate(
                "has expired (database.url)",
                "nobody has renewed it, or this machine's clock is wrong",
                "renew it there",
            ),
            TlsFault::NotYetValid => of_certificate(
                "is not valid yet (database.url)",
                "this machine's clock is wrong, or that of its authority",
                "date",
            ),
            TlsFault::WrongName => of_certificate(
                "is for another name (database.url)",
                &format!("it does not name {host}"),
                "write a name that it has into database.url",
            ),
            TlsFault::BadCertificate => of_certificate(
                "is not accepted (database.url)",
                "it was revoked, is damaged, or is not one for a server",
                "renew it there",
            ),
            TlsFault::WantsCertificate => Problem::new(
                format!("{at} wants a client certificate (database.tls_cert_file)"),
                "it was shown none",
                "set database.tls_cert_file and database.tls_key_file",
            ),
            TlsFault::RefusesCertificate => Problem::new(
                format!("{at} refuses our client certificate (database.tls_cert_file)"),
                match self.backend {
                    DatabaseBackend::Postgres => {
                        "it has expired, or its authority is not in ssl_ca_file there"
                    }
                    _ => "it has expired, or its authority is not in ssl_ca there",
                },
                "openssl x509 -noout -issuer -dates -in FILE",
            ),
            TlsFault::NothingInCommon => Problem::new(
                format!("{at} and this machine agree on no TLS (database.url)"),
                "it offers neither TLS 1.2 nor 1.3, or misses a client certificate",
                format!("the log of {product}; database.tls_cert_file where it wants a certificate"),
            ),
            TlsFault::NoAuthorities => Problem::new(
                format!("no encrypted connection to {at} (database.tls_ca_file)"),
                "this machine trusts no certificate authority",
                "name its authority's certificate in database.tls_ca_file",
            ),
        }
    }

    /// The command that shows the server's certificate.
    fn show_certificate(&self) -> String {
        let (protocol, port) = match self.backend {
            DatabaseBackend::Postgres => ("postgres", 5432),
            _ => ("mysql", 3306),
        };
        let port = self.port.unwrap_or(port);
        format!("openssl s_client -starttls {protocol} -connect {}:{port} </dev/null", self.host)
    }
}
