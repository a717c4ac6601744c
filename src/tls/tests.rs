use std::io;
use std::path::Path;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use tempfile::TempDir;
use tokenkeeper_testkit::authority::{Authority, Signed};
use tokenkeeper_testkit::program::write_private;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

fn file(folder: &TempDir, setting: &'static str, text: &str) -> TlsFile {
    let path = folder.path().join(setting);
    write_private(&path, text).unwrap();
    TlsFile { setting, path }
}

const PRIVATE: FileRule = FileRule { require_private: true };

fn identity(folder: &TempDir, Signed { cert, key }: &Signed) -> Identity {
    Identity { cert: file(folder, "cert", cert), key: file(folder, "key", key), rule: PRIVATE }
}

fn server(shown: &Signed, client_ca: Option<&Authority>) -> TlsAcceptor {
    let crypto = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&crypto));
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(ca.pem().as_bytes()).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), crypto).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
    };
    let chain = vec![CertificateDer::from_pem_slice(shown.cert.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(shown.key.as_bytes()).unwrap();
    TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).unwrap()))
}

/// Connects to `git.example.org`, and says a word each way: only then a client hears what the server thinks of it.
async fn connect(acceptor: TlsAcceptor, tls: &ClientTls, ca_file: CaFile) -> Result<(), TlsFault> {
    let (ours, theirs) = duplex(65_536);
    let serve = async {
        let mut stream = acceptor.accept(theirs).await?;
        stream.write_u8(b'!').await?;
        stream.flush().await
    };
    let ask = async {
        let connector = TlsConnector::from(Arc::new(tls.config(ca_file).unwrap()));
        let name = ServerName::try_from("git.example.org").unwrap();
        connector.connect(name, ours).await?.read_u8().await.map(drop)
    };
    let (_, asked): (io::Result<()>, io::Result<()>) = tokio::join!(serve, ask);
    asked.map_err(|error| TlsFault::of_io(&error).unwrap())
}

#[tokio::test]
async fn a_file_of_authorities_is_trusted_alone_or_beside_those_of_this_machine() {
    let (folder, known, unknown) =
        (TempDir::new().unwrap(), Authority::new("known"), Authority::new("unknown"));
    let tls = ClientTls { ca: Some(file(&folder, "ca", known.pem())), ..ClientTls::default() };
    for ca_file in [CaFile::Replaces, CaFile::Adds] {
        let shown = known.sign_server("git.example.org");
        assert_eq!(connect(server(&shown, None), &tls, ca_file).await, Ok(()), "{ca_file:?}");
        let shown = unknown.sign_server("git.example.org");
        let refused = connect(server(&shown, None), &tls, ca_file).await;
        assert_eq!(refused, Err(TlsFault::UnknownAuthority), "{ca_file:?}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_told_apart() {
    let (folder, ca) = (TempDir::new().unwrap(), Authority::new("known"));
    let tls = ClientTls { ca: Some(file(&folder, "ca", ca.pem())), ..ClientTls::default() };
    let expired = ca.sign_expired_server("git.example.org");
    assert_eq!(connect(server(&expired, None), &tls, CaFile::Replaces).await, Err(TlsFault::Expired));
    let other = ca.sign_server("other.example.org");
    assert_eq!(connect(server(&other, None), &tls, CaFile::Replaces).await, Err(TlsFault::WrongName));
}

#[tokio::test]
async fn a_client_certificate_is_shown_and_its_refusal_is_told_apart() {
    let (folder, ca, unknown) = (TempDir::new().unwrap(), Authority::new("known"), Authority::new("unknown"));
    let shown = ca.sign_server("git.example.org");
    let mut tls = ClientTls { ca: Some(file(&folder, "ca", ca.pem())), ..ClientTls::default() };
    let asked = connect(server(&shown, Some(&ca)), &tls, CaFile::Replaces).await;
    assert_eq!(asked, Err(TlsFault::WantsCertificate));
    tls.identity = Some(identity(&folder, &unknown.sign_client("tokenkeeper")));
    let asked = connect(server(&shown, Some(&ca)), &tls, CaFile::Replaces).await;
    assert_eq!(asked, Err(TlsFault::RefusesCertificate));
    tls.identity = Some(identity(&folder, &ca.sign_client("tokenkeeper")));
    assert_eq!(connect(server(&shown, Some(&ca)), &tls, CaFile::Replaces).await, Ok(()));
}

#[test]
fn a_file_that_cannot_be_used_is_told_with_its_setting_and_not_with_its_content() {
    let (folder, ca) = (TempDir::new().unwrap(), Authority::new("known"));
    let (client, other) = (ca.sign_client("tokenkeeper"), ca.sign_client("other"));
    let reason = |tls: ClientTls| {
        let error = tls.check().unwrap_err();
        assert!(!error.to_string().contains("BEGIN"), "{error}");
        format!("{}: {}", error.setting, error.reason)
    };
    let of_ca = |ca| reason(ClientTls { ca: Some(ca), ..ClientTls::default() });
    let of_pair = |cert, key| {
        let identity = Some(Identity { cert, key, rule: PRIVATE });
        reason(ClientTls { identity, ..ClientTls::default() })
    };
    let missing = TlsFile { setting: "ca", path: Path::new("/nowhere/ca.pem").to_owned() };
    assert_eq!(of_ca(missing), "ca: cannot be read: No such file or directory");
    assert_eq!(of_ca(file(&folder, "ca", "no PEM")), "ca: holds no certificate in PEM");
    assert_eq!(of_ca(file(&folder, "ca", &client.key)), "ca: holds no certificate in PEM");
    let damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert_eq!(of_ca(file(&folder, "ca", damaged)), "ca: holds a certificate that is damaged");
    let cut = &ca.pem()[..ca.pem().len() / 2];
    assert_eq!(of_ca(file(&folder, "ca", cut)), "ca: is damaged: it is not PEM to its end");
    let cert = || file(&folder, "cert", &client.cert);
    assert_eq!(
        of_pair(cert(), file(&folder, "key", &client.cert)),
        "key: holds no private key in PEM; one with a password cannot be used"
    );
    let in_der = file(&folder, "key", "");
    std::fs::write(&in_der.path, [0x30, 0x82, 0xff]).unwrap();
    assert_eq!(
        of_pair(cert(), in_der),
        "key: holds no private key in PEM; one with a password cannot be used"
    );
    assert!(
        of_pair(cert(), file(&folder, "key", &other.key))
            .starts_with("key: is not the key of the certificate in ")
    );
    let good = identity(&folder, &client);
    let ca = Some(file(&folder, "ca", ca.pem()));
    assert_eq!(ClientTls { ca, identity: Some(good), server_name: None }.check(), Ok(()));
}

/// For each connection, and not at the start alone: the next one reads the file again.
#[test]
fn a_private_key_that_others_may_read_is_refused_each_time_it_is_read_with_the_command_that_mends_it() {
    use std::os::unix::fs::PermissionsExt;
    let (folder, ca) = (TempDir::new().unwrap(), Authority::new("known"));
    let mut identity = identity(&folder, &ca.sign_client("tokenkeeper"));
    let path = identity.key.path.clone();
    let of = |identity: &Identity| ClientTls { identity: Some(identity.clone()), ..ClientTls::default() };
    assert_eq!(of(&identity).check(), Ok(()));
    for mode in [0o644, 0o604, 0o602, 0o622] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let expected = format!(
            "is not private: other users of this machine may read or change it (mode {mode:04o}); next: chmod 600 {}, \
             or files.require_private = false in the settings",
            path.display()
        );
        assert_eq!(of(&identity).check().unwrap_err().reason, expected);
        let TlsError::File(refused) = of(&identity).config(CaFile::Adds).unwrap_err() else {
            panic!("it is about the file")
        };
        assert_eq!((refused.setting, refused.reason), ("key", expected));
    }
    identity.rule = FileRule { require_private: false };
    assert_eq!(of(&identity).check(), Ok(()));
}

#[test]
fn an_error_that_is_not_one_of_tls_is_none_of_ours() {
    assert_eq!(TlsFault::of_io(&io::ErrorKind::ConnectionReset.into()), None);
    let not_tls = rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType);
    assert_eq!(TlsFault::of_io(&io::Error::new(io::ErrorKind::InvalidData, not_tls)), Some(TlsFault::NotTls));
}
