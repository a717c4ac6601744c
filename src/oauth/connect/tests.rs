use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;
use futures_util::future::join_all;
use http_body_util::Full;
use rustix::io::Errno;
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
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
            lookup: system_lookup,
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
    let mut connection = proxy.connector().connect(&token_url(), Reach::Public).await.unwrap();
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
        let error = proxy.connector().connect(&token_url(), Reach::Public).await.unwrap_err();
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
    let error = connector.connect(&token_url(), Reach::Public).await.unwrap_err();
    assert!(matches!(error, ConnectError::Local { cause: LocalCause::Proxy, .. }), "{error:?}");
}

#[tokio::test]
async fn a_proxy_that_does_not_answer_is_given_up_in_time() {
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxies = Matcher::builder().https(format!("http://{}", mute.local_addr().unwrap())).build();
    let patience = Duration::from_millis(100);
    let connector = Connector { proxies, patience, ..Proxy::answering("").await.connector() };
    let url = token_url();
    let connecting = connector.connect(&url, Reach::Public);
    let error = tokio::time::timeout(Duration::from_secs(30), connecting).await.unwrap().unwrap_err();
    assert!(matches!(error, ConnectError::Local { cause: LocalCause::Proxy, .. }), "{error:?}");
}

#[tokio::test]
async fn plain_http_and_excluded_hosts_use_no_proxy() {
    let proxy = Proxy::answering("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let loopback = Url::parse(&format!("http://{}/token", listener.local_addr().unwrap())).unwrap();
    proxy.connector().connect(&loopback, Reach::Loopback).await.unwrap();
    let loopback = Url::parse("https://127.0.0.1/token").unwrap();
    assert!(proxy.connector().proxy(&loopback, Reach::Loopback).unwrap().is_none());
    let direct = Url::parse("https://direct.example.org/token").unwrap();
    assert!(proxy.connector().proxy(&direct, Reach::Public).unwrap().is_none());
    assert_eq!(proxy.asked.lock().unwrap().len(), 0);
    let for_all =
        Connector { proxies: Matcher::builder().all(proxy.url.as_str()).build(), ..proxy.connector() };
    let without_tls = Url::parse("http://git.example.org/token").unwrap();
    assert!(for_all.proxy(&without_tls, Reach::Public).unwrap().is_none());
    assert!(for_all.proxy(&direct, Reach::Public).unwrap().is_some());
}

#[tokio::test]
async fn only_so_many_names_are_looked_up_at_once() {
    static RUNNING: AtomicUsize = AtomicUsize::new(0);
    static MOST: AtomicUsize = AtomicUsize::new(0);
    let connector = connector_with(|_, _| {
        async {
            MOST.fetch_max(RUNNING.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
            RUNNING.fetch_sub(1, Ordering::Relaxed);
            Ok(Vec::new())
        }
        .boxed()
    })
    .await;
    let asked = (0..8).map(|_| connected(&connector, "https://git.example.org/token", Reach::Public));
    assert!(join_all(asked).await.iter().all(Result::is_err));
    assert_eq!(MOST.load(Ordering::Relaxed), 1, "a test's connector looks up one name at a time");
}

/// A connector whose name service is `lookup`, and that uses no proxy.
async fn connector_with(lookup: Lookup) -> Connector {
    let proxies = Matcher::builder().build();
    Connector { proxies, lookup, ..Proxy::answering("").await.connector() }
}

async fn connected(connector: &Connector, url: &str, reach: Reach) -> Result<(), ConnectError> {
    connector.connect(&Url::parse(url).unwrap(), reach).await.map(drop)
}

#[tokio::test]
async fn a_name_that_leads_to_a_private_address_is_not_connected_to_unless_that_is_allowed() {
    let connector = connector_with(|_, port| {
        async move {
                Ok(vec![SocketAddr::from(([127, 0, 0, 1], port)), SocketAddr::from(([10, 0, 0, 1], port))])
            }
            .boxed()
    })
    .await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://git.example.org:{}/token", listener.local_addr().unwrap().port());
    let Err(ConnectError::NotPermitted { detail }) = connected(&connector, &url, Reach::Public).await else {
        panic!("a public provider is not on this machine")
    };
    assert!(detail.contains("git.example.org leads to a loopback address"), "{detail}");
    assert!(detail.contains("add allow_private_network = true"), "{detail}");
    assert!(!detail.contains("127.0.0.1"), "requesters read it: {detail}");
    connected(&connector, &url, Reach::Private).await.unwrap();
}

#[test]
fn of_several_addresses_only_the_permitted_ones_are_tried() {
    let found =
        ["169.254.169.254", "10.255.255.1", "8.8.8.8", "::ffff:10.255.255.1", "127.0.0.1", "2606:4700::1"];
    let found = found.map(|address| SocketAddr::new(address.parse().unwrap(), 443));
    for (reach, tried) in [
        (Reach::Public, &[2, 5][..]),
        (Reach::Private, &[1, 2, 3, 4, 5]),
        (Reach::Loopback, &[4]),
        (Reach::Any, &[0, 1, 2, 3, 4, 5]),
    ] {
        let tried: Vec<SocketAddr> = tried.iter().map(|&index| found[index]).collect();
        assert_eq!(permitted(found.to_vec(), "git.example.org", reach).unwrap(), tried, "{reach:?}");
    }
}

#[tokio::test]
async fn the_address_that_was_checked_is_the_one_that_is_connected_to() {
    static LOOKUPS: AtomicUsize = AtomicUsize::new(0);
    // A name that changes its address between two lookups (DNS rebinding).
    let connector = connector_with(|_, port| {
        let is_first = LOOKUPS.fetch_add(1, Ordering::Relaxed) == 0;
        let address = if is_first { [127, 0, 0, 1] } else { [169, 254, 169, 254] };
        async move { Ok(vec![SocketAddr::from((address, port))]) }.boxed()
    })
    .await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://git.example.org:{}/token", listener.local_addr().unwrap().port());
    connected(&connector, &url, Reach::Private).await.unwrap();
    assert_eq!(LOOKUPS.load(Ordering::Relaxed), 1, "a name is looked up once for a connection");
    let refused = connected(&connector, &url, Reach::Private).await;
    assert!(
        matches!(refused, Err(ConnectError::NotPermitted { .. })),
        "checked for each connection: {refused:?}"
    );
}

#[tokio::test]
async fn a_proxy_may_have_a_private_address_and_an_address_in_the_url_is_checked_before_it_is_asked() {
    let proxy = Proxy::answering("HTTP/1.1 200 OK\r\n\r\n").await;
    for url in ["https://10.1.2.3/token", "https://[::ffff:169.254.169.254]/token"] {
        let refused = connected(&proxy.connector(), url, Reach::Public).await;
        assert!(matches!(refused, Err(ConnectError::NotPermitted { .. })), "{url}: {refused:?}");
    }
    assert_eq!(proxy.asked.lock().unwrap().len(), 0);
    proxy.connector().connect(&token_url(), Reach::Public).await.unwrap();
}

#[tokio::test]
async fn a_server_is_offered_http_1_alone() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/token", listener.local_addr().unwrap());
    let connector = Connector::new(Duration::from_secs(10), &ClientTls::default()).unwrap();
    let connecting = tokio::spawn(async move { connected(&connector, &url, Reach::Loopback).await });
    let (mut tcp, _) = listener.accept().await.unwrap();
    let mut hello = vec![0; 4096];
    let length = tcp.read(&mut hello).await.unwrap();
    let offers = |protocol: &[u8]| hello[..length].windows(protocol.len()).any(|window| window == protocol);
    // Application-layer protocol negotiation (RFC 7301): each name behind its length.
    assert!(offers(b"\x08http/1.1") && !offers(b"\x02h2"));
    drop(tcp);
    connecting.await.unwrap().unwrap_err();
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
