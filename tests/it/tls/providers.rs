use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokenkeeper_testkit::authority::Signed;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use url::Url;

use super::Trust;
use crate::cli::Cli;
use crate::harness::{Dialect, Kind, World};

/// A port that speaks TLS, and passes on to `backend` what it hears.
async fn tls_in_front_of(backend: String, Signed { cert, key }: Signed) -> u16 {
    let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let (acceptor, listener) =
        (TlsAcceptor::from(Arc::new(config)), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (acceptor, backend) = (acceptor.clone(), backend.clone());
            tokio::spawn(async move {
                let Ok(mut client) = acceptor.accept(client).await else { return };
                let mut server = TcpStream::connect(backend).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_behind_an_authority_of_its_own_is_asked_where_the_settings_name_it() {
    let mut world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    let trust = Trust::new();
    let mut token_url: Option<Url> = None;
    world.apply_provider(|provider| token_url.clone_from(&provider.token_url)).await;
    let mut token_url = token_url.expect("the simulated host says where its token endpoint is");
    let backend = format!("{}:{}", token_url.host_str().unwrap(), token_url.port().unwrap());
    let port = tls_in_front_of(backend, trust.known.sign_server("localhost")).await;
    token_url.set_scheme("https").unwrap();
    token_url.set_host(Some("localhost")).unwrap();
    token_url.set_port(Some(port)).unwrap();
    world.apply_provider(|provider| provider.token_url = Some(token_url)).await;

    let told = Cli::of(&world).run(&["doctor"]).await.with_code(1);
    let why = "its certificate is signed by no authority that is trusted here; name its authority in refresh.tls_ca_file";
    assert!(told.stdout.contains(why), "{}", told.stdout);

    world.set("refresh.tls_ca_file", trust.write("ca.pem", trust.known.pem()));
    let worker = world.start_worker().await;
    world.user_with_expired_token("jdoe").await;
    assert_eq!(world.request("jdoe").await["status"], "ok");
    assert_eq!(world.scm.refreshes("jdoe"), 1);
    worker.stop().await;
}
