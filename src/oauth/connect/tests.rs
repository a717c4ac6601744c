use std::sync::Mutex;

use http_body_util::Full;
use rustix::io::Errno;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

/// A proxy that gives one answer to CONNECT, and then speaks TLS as `git.example.org`.
struct Proxy {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
    client: ClientConfig,
}

impl Proxy {
    async fn answering(answer: &'static str) -> Self {
        let key = rcgen::generate_simple_self_signed(["git.example.org".to_owned()]).unwrap();
        let der = key.cert.der().clone();
        let mut roots = RootCertStore::empty();
        roots.add(der.clone()).unwrap();
        let crypto = Arc::new(ring::default_provider());
        let client = ClientConfig::builder_with_provider(Arc::clone(&crypto))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let private = rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
        let server = ServerConfig::builder_with_provider(crypto)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![der], private)
            .unwrap();
        let tls = TlsAcceptor::from(Arc::new(server));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://jdoe:s3cret@{}", listener.local_addr().unwrap());
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let all = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((mut tcp, _)) = listener.accept().await {
                let head = read_head(&mut tcp).await;
                all.lock().unwrap().push(head);
                tcp.write_all(answer.as_bytes()).await.unwrap();
                if let Ok(mut stream) = tls.accept(tcp).await {
                    read_head(&mut stream).await;
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                }
            }
        });
        Self { url, asked, client }
    }

    fn connector(&self) -> Connector {
        Connector {
            tls: TlsConnector::from(Arc::new(self.client.clone())),
            proxies: Matcher::builder().https(self.url.as_str()).no("direct.example.org").build(),
            lookups: Arc::new(Semaphore::new(1)),
            patience: Duration::from_secs(10),
        }
    }
}

async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte.into()),
            Err(_) => break,
        }
    }
    head
}

fn token_url() -> Url {
    Url::parse("https://git.example.org/token").unwrap()
}

#[tokio::test]
async fn a_proxy_is_asked_for_a_tunnel_and_sees_no_plain_text() {
    let proxy = Proxy::answering("HTTP/1.1 200 OK\r\n\r\n").await;
    let mut connection = proxy.connector().connect(&token_url()).await.unwrap();
    let post = Request::post("/token").header(HOST, "git.example.org").body(Full::new(Bytes::new())).unwrap();
    assert_eq!(connection.send(post).await.unwrap().status(), 200);
    let asked = proxy.asked.lock().unwrap().clone();
    let [head] = &asked[..] else { panic!("{asked:?}") };
    assert!(head.starts_with("CONNECT git.example.org:443 HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("proxy-authorization: Basic amRvZTpzM2NyZXQ=\r\n"), "{head}");
}

#[tokio::test]
async fn a_refusal_by_the_proxy_is_local_unless_it_reports_the_host() {
    for (answer, is_local) in [
        ("HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n", true),
        ("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n", true),
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n", true),
        ("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n", false),
        ("HTTP/1.1 504 Gateway Timeout\r\ncontent-length: 0\r\n\r\n", false),
    ] {
        let proxy = Proxy::answering(answer).await;
        let error = proxy.connector().connect(&token_url()).await.unwrap_err();
        match &error {
            ConnectError::Local { cause: LocalCause::Proxy, .. } => assert!(is_local, "{answer}: {error:?}"),
            ConnectError::Host { .. } => assert!(!is_local, "{answer}: {error:?}"),
            other => panic!("{answer}: {other:?}"),
        }
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    }
}

#[tokio::test]
async fn an_unreachable_proxy_is_a_local_failure() {
    let proxy = Proxy::answering("").await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let proxies = Matcher::builder().https(format!("http://{closed}")).build();
    let connector = Connector { proxies, ..proxy.connector() };
    let error = connector.connect(&token_url()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Local { cause: LocalCause::Proxy, .. }), "{error:?}");
}

#[tokio::test]
async fn plain_http_and_excluded_hosts_use_no_proxy() {
    let proxy = Proxy::answering("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let loopback = Url::parse(&format!("http://{}/token", listener.local_addr().unwrap())).unwrap();
    proxy.connector().connect(&loopback).await.unwrap();
    let direct = Url::parse("https://direct.example.org/token").unwrap();
    assert!(proxy.connector().proxy(&direct).unwrap().is_none());
    assert_eq!(proxy.asked.lock().unwrap().len(), 0);
}

#[test]
fn of_two_errors_the_hosts_own_is_reported() {
    let error = |errno: Errno| io::Error::from(errno);
    let told = |one, other| Errno::from_io_error(&telling(error(one), error(other)));
    assert_eq!(told(Errno::NETUNREACH, Errno::CONNREFUSED), Some(Errno::CONNREFUSED));
    assert_eq!(told(Errno::CONNREFUSED, Errno::NETUNREACH), Some(Errno::CONNREFUSED));
    assert_eq!(told(Errno::MFILE, Errno::MFILE), Some(Errno::MFILE));
}

#[tokio::test]
async fn the_other_address_family_is_tried_if_the_preferred_one_fails() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let there = listener.local_addr().unwrap();
    let nowhere: SocketAddr = "[::1]:1".parse().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    assert_eq!(dial(&[nowhere, there], deadline).await.unwrap().peer_addr().unwrap(), there);
}
