//! What the drivers are told of TLS. They read the files for each connection, so that the next one shows a renewed certificate.

use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls::RootCertStore;
use sea_orm::sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};
use sea_orm::sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::tls::{ClientTls, Identity, LinkTls};

pub(super) fn of_postgres(options: PgConnectOptions, tls: &LinkTls) -> PgConnectOptions {
    let ClientTls { ca, identity, .. } = match tls {
        LinkTls::AsOffered => return options,
        LinkTls::Off { .. } => return options.ssl_mode(PgSslMode::Disable),
        LinkTls::Verified(tls) => tls,
    };
    let options = options.ssl_mode(PgSslMode::VerifyFull);
    let options = match ca {
        Some(file) => options.ssl_root_cert(&file.path),
        None => options.ssl_root_cert_from_pem(of_this_machine().to_vec()),
    };
    match identity {
        Some(Identity { cert, key, .. }) => options.ssl_client_cert(&cert.path).ssl_client_key(&key.path),
        None => options,
    }
}

pub(super) fn of_mysql(options: MySqlConnectOptions, tls: &LinkTls) -> MySqlConnectOptions {
    let ClientTls { ca, identity, .. } = match tls {
        LinkTls::AsOffered => return options,
        LinkTls::Off { .. } => return options.ssl_mode(MySqlSslMode::Disabled),
        LinkTls::Verified(tls) => tls,
    };
    let options = options.ssl_mode(MySqlSslMode::VerifyIdentity);
    let options = match ca {
        Some(file) => options.ssl_ca(&file.path),
        None => options.ssl_ca_from_pem(of_this_machine().to_vec()),
    };
    match identity {
        Some(Identity { cert, key, .. }) => options.ssl_client_cert(&cert.path).ssl_client_key(&key.path),
        None => options,
    }
}

/// The authorities that this machine trusts, in PEM. By itself, the driver trusts only a list that it was built with.
///
/// Read once, because there are hundreds of files. A certificate that TLS cannot use would make the driver refuse all of them.
fn of_this_machine() -> &'static [u8] {
    static AUTHORITIES: OnceLock<Vec<u8>> = OnceLock::new();
    AUTHORITIES.get_or_init(|| {
        let mut usable = RootCertStore::empty();
        let mut pem = String::new();
        for certificate in rustls_native_certs::load_native_certs().certs {
            let text = BASE64.encode(&certificate);
            if usable.add(certificate).is_ok() {
                pem.extend(["-----BEGIN CERTIFICATE-----\n", text.as_str(), "\n-----END CERTIFICATE-----\n"]);
            }
        }
        pem.into_bytes()
    })
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    use super::*;

    const VERIFIED: LinkTls = LinkTls::Verified(ClientTls { ca: None, identity: None, server_name: None });

    #[test]
    fn a_verified_link_accepts_no_other_server_and_one_without_tls_asks_for_none() {
        let postgres = |tls| of_postgres(PgConnectOptions::new_without_pgpass(), tls).get_ssl_mode();
        assert!(matches!(postgres(&VERIFIED), PgSslMode::VerifyFull));
        assert!(matches!(postgres(&LinkTls::Off { crosses_network: true }), PgSslMode::Disable));
        let mysql = |tls| of_mysql(MySqlConnectOptions::new(), tls).get_ssl_mode();
        assert!(matches!(mysql(&VERIFIED), MySqlSslMode::VerifyIdentity));
        assert!(matches!(mysql(&LinkTls::Off { crosses_network: true }), MySqlSslMode::Disabled));
    }

    #[test]
    fn what_this_machine_trusts_reads_as_it_was() {
        let read: Result<Vec<CertificateDer<'_>>, _> =
            CertificateDer::pem_slice_iter(of_this_machine()).collect();
        let read = read.unwrap();
        let all = rustls_native_certs::load_native_certs().certs;
        assert!(read.iter().all(|certificate| all.contains(certificate)));
        assert_eq!(read.is_empty(), all.is_empty());
    }
}
