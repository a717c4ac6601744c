//! The admin endpoint: nobody keeps a probe out, and nobody sees more than the settings say.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use futures_util::future::join_all;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokenkeeper_testkit::http;
use tokenkeeper_testkit::program::write_private;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::harness::{Dialect, Kind, WorkerProcess, World, logs};

/// Opens so many connections that are of no use: a third silent, a third with a request that does not come to its end, a third
/// that have been used.
async fn useless_connections(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut connections = Vec::new();
    for number in 0..count {
        let mut connection = TcpStream::connect(address).await.expect("the port is open");
        // It may be closed by now, to make room for others.
        match number % 3 {
            0 => {}
            1 => drop(connection.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nx: ").await),
            _ => drop(connection.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await),
        }
        connections.push(connection);
    }
    connections
}

/// Sends a request as it is and reads until the connection is over.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // It may be cut off behind the answer, where something of the request was not read.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_useless_connections_do_not_block_other_clients() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = WorkerProcess::spawn_with_open_files(&world, 200, 200).await;
    world.user_with_token("bystander").await;
    let users: Vec<String> = (0..5).map(|number| format!("user-{number}")).collect();
    join_all(users.iter().map(|user| world.user_with_expired_token(user))).await;

    let connections = useless_connections(worker.address(), 360).await;

    for path in ["healthz", "readyz", "metrics"] {
        assert_eq!(worker.get(path).await.0, 200, "{path}");
    }
    assert_eq!(world.request("bystander").await["status"], "ok");
    for user in &users {
        assert_eq!(world.request(user).await["refresh"], "required");
    }
    assert!(worker.count("tokenkeeper_admin_connections_displaced_total").await >= 290);
    drop(connections);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_with_a_body_or_a_long_head_is_refused() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let address = worker.health().address().expect("it listens");
    let long = format!("x: {}\r\n", "a".repeat(20 * 1024));
    for (head, status) in [
        ("content-length: 5\r\n", "413"),
        ("transfer-encoding: chunked\r\n", "413"),
        (long.as_str(), "431"),
        ("connection: close\r\n", "200"),
    ] {
        let connection = TcpStream::connect(address).await.unwrap();
        let answer = exchange(connection, &format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{head}\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{status}: {answer}");
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_an_admin_token_only_healthz_answers_without_it() {
    let token = "an-admin-token-that-nobody-logs";
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("token");
    write_private(&file, &format!("{token}\n")).unwrap();
    for (key, value) in [("admin.token", token), ("admin.token_file", file.to_str().unwrap())] {
        let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
        world.set(key, value);
        let worker = world.start_worker().await;
        let address = worker.health().address().expect("it listens");
        let get = |path: &str| http::client().get(format!("http://{address}/{path}"));
        assert_eq!(get("healthz").send().await.unwrap().status(), 200);
        for path in ["metrics", "readyz", "elsewhere"] {
            let refused = get(path).send().await.unwrap();
            assert_eq!(refused.status(), 401, "{path}");
            assert!(refused.headers()["www-authenticate"].to_str().unwrap().starts_with("Bearer"));
            let refused = get(path).bearer_auth("an-admin-token-that-nobody-log5").send().await.unwrap();
            assert_eq!(refused.status(), 401, "{path}");
        }
        for path in ["metrics", "readyz"] {
            assert_eq!(get(path).bearer_auth(token).send().await.unwrap().status(), 200, "{path}");
        }
        worker.stop().await;
    }
    logs::assert_holds_none_of(logs::captured(), &[token.to_owned()], "a worker with an admin token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_certificate_https_works_beside_clients_that_never_finish_the_handshake() {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let folder = TempDir::new().unwrap();
    let (cert, key) = (folder.path().join("admin.crt"), folder.path().join("admin.key"));
    std::fs::write(&cert, certified.cert.pem()).unwrap();
    write_private(&key, &certified.signing_key.serialize_pem()).unwrap();
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("admin.tls_cert_file", cert.display()).set("admin.tls_key_file", key.display());
    let worker = world.start_worker().await;
    let address = worker.health().address().expect("it listens");
    let connections = useless_connections(address, 100).await;

    let mut roots = RootCertStore::empty();
    roots.add(certified.cert.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let tls = TlsConnector::from(Arc::new(client)).connect(name, tcp).await.unwrap();
    let answer = exchange(tls, "GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ready\n"), "{answer}");
    drop(connections);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unusable_token_or_certificate_file_stops_the_start_and_the_error_names_the_setting() {
    let folder = TempDir::new().unwrap();
    let (empty, missing) = (folder.path().join("empty"), folder.path().join("missing"));
    std::fs::write(&empty, "").unwrap();
    let cases: [(&[(&str, &Path)], &str); 5] = [
        (&[("admin.token_file", &missing)], "admin.token_file"),
        (&[("admin.token_file", &empty)], "admin.token_file"),
        (&[("admin.tls_cert_file", &missing), ("admin.tls_key_file", &empty)], "admin.tls_cert_file"),
        (&[("admin.tls_cert_file", &empty), ("admin.tls_key_file", &empty)], "admin.tls_cert_file"),
        (&[("admin.tls_cert_file", &empty), ("admin.tls_key_file", &missing)], "admin.tls_cert_file"),
    ];
    for (settings, named) in cases {
        let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
        for (key, file) in settings {
            world.set(key, file.display());
        }
        let error = format!("{:#}", world.try_start_worker().await.expect_err("it does not start"));
        assert!(error.contains(named), "{named}: {error}");
    }
}
