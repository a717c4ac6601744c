//! What an operator reads when the broker and this worker do not agree on TLS.

use super::login::{Login, word};
use crate::domain::problem::Problem;
use crate::tls::TlsFault;

pub(super) fn problem(fault: TlsFault, login: &Login) -> Problem {
    let (address, host) = (login.address(), &login.host);
    let show = |what: &str| {
        let (address, host) = (word(address), word(host));
        format!(
            "`openssl s_client -connect {address} -servername {host} </dev/null | openssl x509 -noout {what}`"
        )
    };
    match fault {
        TlsFault::NotTls => Problem::new(
            format!("what listens at {address} does not speak TLS (broker.url)"),
            "amqps:// wants the broker's port for TLS, and this is another one",
            "`rabbitmq-diagnostics listeners` shows the broker's ports; correct the setting",
        ),
        TlsFault::UnknownAuthority => Problem::new(
            format!("the certificate of {address} is not trusted (broker.tls_ca_file)"),
            "it is signed by no authority that is trusted here",
            format!("name its authority's certificate in broker.tls_ca_file; {}", show("-issuer")),
        ),
        TlsFault::Expired => Problem::new(
            format!("the certificate of {address} has expired (broker.url)"),
            "nobody has renewed it, or this machine's clock is wrong",
            format!("renew it where the broker runs; {}", show("-dates")),
        ),
        TlsFault::NotYetValid => Problem::new(
            format!("the certificate of {address} is not valid yet (broker.url)"),
            "this machine's clock is wrong, or that of its authority",
            format!("`date`; {}", show("-dates")),
        ),
        TlsFault::WrongName => Problem::new(
            format!("the certificate of {address} is for another name (broker.tls_server_name)"),
            format!("it does not name {}", login.server_name),
            format!(
                "write a name that it has into broker.url or broker.tls_server_name; {}",
                show("-ext subjectAltName")
            ),
        ),
        TlsFault::BadCertificate => Problem::new(
            format!("the certificate of {address} is not accepted (broker.url)"),
            "it was revoked, is damaged, or is not one for a server",
            show("-text"),
        ),
        TlsFault::WantsCertificate => Problem::new(
            format!("{address} wants a client certificate (broker.tls_cert_file)"),
            "the broker has ssl_options.fail_if_no_peer_cert, and was shown none",
            "set broker.tls_cert_file and broker.tls_key_file",
        ),
        TlsFault::RefusesCertificate => Problem::new(
            format!("{address} refuses our client certificate (broker.tls_cert_file)"),
            "it has expired, or its authority is not in ssl_options.cacertfile of the broker",
            "`openssl x509 -noout -issuer -dates -in FILE`; the broker's log says more",
        ),
        TlsFault::NothingInCommon => Problem::new(
            format!("{address} and this worker agree on no TLS (broker.url)"),
            "the broker offers neither TLS 1.2 nor 1.3, or misses a client certificate",
            "the broker's log; broker.tls_cert_file where it wants a certificate",
        ),
        TlsFault::NoAuthorities => Problem::new(
            "no encrypted connection (broker.tls_ca_file)",
            "this machine trusts no certificate authority",
            "`apt-get install ca-certificates`, or name the broker's authority in broker.tls_ca_file",
        ),
    }
}
