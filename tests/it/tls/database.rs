use std::net::{Ipv4Addr, SocketAddr};

use tokenkeeper_testkit::authority::{Authority, Signed};
use tokenkeeper_testkit::database::TestDatabase;
use tokenkeeper_testkit::servers::{MariaDb, Postgres};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::{Trust, can_run_servers};
use crate::cli::{Cli, Ended};
use crate::harness::{Kind, PATIENCE, eventually};

const USER: &str = "tokenkeeper";

async fn migrate(url: &str, settings: Vec<(String, String)>) -> Ended {
    let environment = settings.into_iter().chain([("DATABASE_URL".to_owned(), url.to_owned())]);
    Cli::with(environment).run(&["migrate", "up"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_is_used_by_certificate_and_each_way_to_fail_is_one_line_with_its_cause() {
    if !can_run_servers() {
        return;
    }
    let trust = Trust::new();
    let shown = trust.known.sign_server("localhost");
    let postgres = Postgres::start(trust.folder(), Some(&trust.of_server(&shown))).await.unwrap();
    postgres.query("postgres", "create role tokenkeeper login").await.unwrap();
    postgres.query("postgres", "create database tokens owner tokenkeeper").await.unwrap();
    let client = trust.known.sign_client(USER);
    let settings = |trusted: &Authority, shown: Option<&Signed>| trust.settings("DATABASE", trusted, shown);
    let url = postgres.url_by_certificate("localhost", USER, "tokens");

    migrate(&url, settings(&trust.known, Some(&client))).await.good();

    let told = migrate(&url, settings(&trust.unknown, Some(&client))).await;
    told.with_code(1).says("is not trusted (database.tls_ca_file)");

    let by_address = postgres.url_by_certificate("127.0.0.1", USER, "tokens");
    let told = migrate(&by_address, settings(&trust.known, Some(&client))).await;
    told.with_code(1).says("is for another name (database.url): it does not name 127.0.0.1");

    let told = migrate(&url, settings(&trust.known, None)).await;
    told.with_code(1).says("without TLS or without a client certificate").says("set database.tls_cert_file");

    let told = migrate(&url, settings(&trust.known, Some(&trust.unknown.sign_client(USER)))).await;
    told.with_code(1).says("refuses our client certificate (database.tls_cert_file)");

    let told = migrate(&url, vec![("TOKENKEEPER__DATABASE__TLS".to_owned(), "off".to_owned())]).await;
    told.with_code(1).says("without TLS or without a client certificate");

    let expired = trust.known.sign_expired_server("localhost");
    postgres.change_certificate(&trust.of_server(&expired)).await.unwrap();
    // PostgreSQL reads its files some time after it was told to.
    let told = eventually("the other certificate", PATIENCE, async || {
        let ended = migrate(&url, settings(&trust.known, Some(&client))).await;
        (ended.code != 0).then_some(ended)
    });
    told.await.with_code(1).says("has expired (database.url)");
}

/// A server that says that it has no TLS, and what it was told after that.
async fn server_without_tls() -> (SocketAddr, JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let heard = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        // SSLRequest: https://www.postgresql.org/docs/current/protocol-message-formats.html
        client.read_exact(&mut [0; 8]).await.unwrap();
        client.write_all(b"N").await.unwrap();
        let mut rest = Vec::new();
        // It may hang up without a farewell.
        let _ = client.read_to_end(&mut rest).await;
        rest
    });
    (address, heard)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_says_it_has_no_tls_is_told_neither_user_nor_password() {
    let (address, heard) = server_without_tls().await;
    let url = format!("postgres://tk:s3cret@{address}/tokens");
    let told = migrate(&url, vec![("TOKENKEEPER__DATABASE__TLS".to_owned(), "verify".to_owned())]).await;
    told.with_code(1).says("offers no TLS (database.tls)").says("database.tls = \"off\"");
    assert_eq!(heard.await.unwrap(), b"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mariadb_without_tls_is_told_apart() {
    let database = TestDatabase::create(Kind::MariaDb).await;
    let verify = ("TOKENKEEPER__DATABASE__TLS".to_owned(), "verify".to_owned());
    migrate(database.url(), vec![verify])
        .await
        .with_code(1)
        .says("MariaDB at ")
        .says("offers no TLS (database.tls)");
}

const PASSWORD: &str = "mariadb-password-that-nobody-tells";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::print_stderr, reason = "a test that looks at nothing must say so")]
async fn a_mariadb_is_used_by_certificate_and_each_way_to_fail_is_one_line_with_its_cause() {
    if !MariaDb::is_installed() {
        eprintln!("SKIPPED: MariaDB is not installed here (Debian: apt-get install mariadb-server)");
        return;
    }
    let trust = Trust::new();
    let shown = trust.known.sign_server("localhost");
    let mariadb = MariaDb::start(trust.folder(), &trust.of_server(&shown)).await.unwrap();
    mariadb.add_user(USER, PASSWORD, "tokens").await.unwrap();
    let client = trust.known.sign_client(USER);
    let settings = |trusted: &Authority, shown: Option<&Signed>| trust.settings("DATABASE", trusted, shown);
    let url_at = |host: &str| format!("mysql://{USER}:{PASSWORD}@{}/tokens", mariadb.address(host));
    let url = url_at("localhost");
    let told = async |url: &str, settings| {
        let ended = migrate(url, settings).await;
        assert!(!format!("{ended:?}").contains(PASSWORD), "{ended:?}");
        ended
    };

    told(&url, settings(&trust.known, Some(&client))).await.good();

    let unknown = told(&url, settings(&trust.unknown, Some(&client))).await;
    unknown.with_code(1).says("is not trusted (database.tls_ca_file)");

    let by_address = told(&url_at("127.0.0.1"), settings(&trust.known, Some(&client))).await;
    by_address.with_code(1).says("is for another name (database.url): it does not name 127.0.0.1");

    let nothing_shown = told(&url, settings(&trust.known, None)).await;
    nothing_shown.with_code(1).says("without TLS or a client certificate").says("set database.tls_cert_file");

    let of_others = trust.unknown.sign_client(USER);
    let refused = told(&url, settings(&trust.known, Some(&of_others))).await;
    refused.with_code(1).says("refuses our client certificate (database.tls_cert_file)");

    let plain = told(&url, vec![("TOKENKEEPER__DATABASE__TLS".to_owned(), "off".to_owned())]).await;
    plain.with_code(1).says("without TLS or a client certificate");

    let expired = trust.known.sign_expired_server("localhost");
    mariadb.change_certificate(&trust.of_server(&expired)).await.unwrap();
    told(&url, settings(&trust.known, Some(&client))).await.with_code(1).says("has expired (database.url)");
}
