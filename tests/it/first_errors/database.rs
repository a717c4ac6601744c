//! A database server that is away, refuses us, or is not ready for a worker.

use std::net::{Ipv4Addr, SocketAddr};

use sea_orm::{ConnectionTrait, Database};
use tokenkeeper_migration::{Migrator, MigratorTrait};
use tokenkeeper_testkit::database::TestDatabase;
use tokenkeeper_testkit::proxy::FaultProxy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{assert_told_once, launch_at, next, not_ready_because};
use crate::cli::Cli;
use crate::harness::{Dialect, Kind, PATIENCE, World, eventually};

/// A port that nothing listens on.
async fn closed_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    listener.local_addr().unwrap().port()
}

/// PostgreSQL's answers to a login: no TLS, and then an error with this SQLSTATE.
fn refusal(code: &str) -> Vec<Vec<u8>> {
    let fields = format!("SFATAL\0C{code}\0Mno words that anybody reads\0\0");
    let length = u32::try_from(fields.len() + 4).unwrap().to_be_bytes();
    vec![b"N".to_vec(), [&b"E"[..], &length, fields.as_bytes()].concat()]
}

/// A server that sends these bytes to everybody who has said something, and hangs up.
async fn server_that_says(answers: Vec<Vec<u8>>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let answers = answers.clone();
            tokio::spawn(async move {
                let mut heard = [0; 1024];
                for answer in &answers {
                    let _ = client.read(&mut heard).await;
                    let _ = client.write_all(answer).await;
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_cannot_be_reached_or_refuses_us_is_waited_for_and_told_once_with_its_cause() {
    let closed = closed_port().await;
    let refusing = server_that_says(refusal("28P01")).await;
    let starting = server_that_says(refusal("57P03")).await;
    let http = server_that_says(vec![b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()]).await;
    for (url, told) in [
        (
            format!("postgres://tk:pw@127.0.0.1:{closed}/x"),
            "nothing listens there; next: start PostgreSQL there",
        ),
        (format!("mysql://tk:pw@127.0.0.1:{closed}/x"), "nothing listens there; next: start MariaDB there"),
        ("postgres://tk:pw@no-such-host.invalid/x".to_owned(), "next: getent hosts no-such-host.invalid"),
        (
            format!("postgres://tk:pw@{refusing}/x"),
            "refuses the login of tk (database.url): the password is wrong",
        ),
        (format!("postgres://tk:pw@{starting}/x"), "it is starting, stopping or recovering"),
        (format!("postgres://tk:pw@{http}/x"), "is not PostgreSQL (database.url): another program"),
        ("postgres://no_such_role@127.0.0.1/postgres".to_owned(), "next: CREATE ROLE no_such_role LOGIN"),
        ("postgres://postgres@127.0.0.1/tk_no_such".to_owned(), "next: CREATE DATABASE tk_no_such"),
        ("mysql://root:wrong@127.0.0.1/test".to_owned(), "refuses the login of root"),
        ("mysql://root@127.0.0.1/tk_no_such".to_owned(), "next: CREATE DATABASE tk_no_such"),
    ] {
        let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
        let worker = launch_at(&mut world, &url).await;

        let line = not_ready_because(&worker, told).await;

        assert!(line.starts_with("database: ") && !line.contains("pw"), "{line}");
        assert_eq!(worker.get("healthz").await.0, 200);
        // A few tries later it has still told once.
        tokio::time::sleep(std::time::Duration::from_millis(700)).await;
        assert_told_once(&worker);
        worker.stop(&world).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_starts_after_its_worker_is_waited_for() {
    let mut world = World::new(Kind::Postgres, Dialect::BitbucketServer).await;
    let direct = world.environment()["DATABASE_URL"].clone();
    let proxy = FaultProxy::start_for_url(&direct, 5432).await;
    proxy.refuse();
    let worker = launch_at(&mut world, &proxy.url(&direct)).await;
    not_ready_because(&worker, "database: ").await;

    proxy.accept();

    worker.wait_until_ready().await;
    worker.wait_for_log("the database is usable again", 1).await;
    world.user_with_token("jdoe").await;
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_migrated_after_the_worker_started_is_waited_for() {
    for kind in [Kind::Postgres, Kind::MariaDb] {
        let mut world = World::new(kind, Dialect::BitbucketServer).await;
        let empty = TestDatabase::create(kind).await;
        let worker = launch_at(&mut world, empty.url()).await;
        let line = not_ready_because(&worker, "it has no tables of tokenkeeper yet").await;
        let count = Migrator::migrations().len();
        assert!(line.contains(&format!("lacks {count} of {count} migrations")), "{line}");
        assert_eq!(next(&line), "tokenkeeper migrate up");
        assert_told_once(&worker);

        Cli::with([("DATABASE_URL".to_owned(), empty.url().to_owned())]).run(&["migrate", "up"]).await.good();

        worker.wait_until_ready().await;
        worker.stop(&world).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_or_becomes_read_only_is_told_and_work_goes_on_when_it_takes_writes_again() {
    let mut world = World::new(Kind::Postgres, Dialect::BitbucketServer).await;
    let url = world.environment()["DATABASE_URL"].clone();
    let name = url.rsplit('/').next().unwrap().to_owned();
    // From another database, which stays as it is.
    let mut elsewhere = url::Url::parse(&url).unwrap();
    elsewhere.set_path("postgres");
    let admin = Database::connect(elsewhere.as_str()).await.unwrap();
    let set = async |value: &str| {
        let set = format!("ALTER DATABASE {name} SET default_transaction_read_only = {value}");
        admin.execute_unprepared(&set).await.unwrap();
    };
    // A session keeps the setting that it began with.
    let end_sessions =
        format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
    set("on").await;
    let worker = launch_at(&mut world, &url).await;
    let line = not_ready_because(&worker, "is read-only (database.url)").await;
    assert!(next(&line).contains("SET default_transaction_read_only = off"), "{line}");
    set("off").await;
    worker.wait_until_ready().await;
    world.user_with_expired_token("jdoe").await;

    set("on").await;
    admin.execute_unprepared(&end_sessions).await.unwrap();
    let asked = world.send("jdoe").await;
    not_ready_because(&worker, "is read-only (database.url)").await;
    set("off").await;

    worker.wait_until_ready().await;
    eventually("jdoe to be served", PATIENCE, async || {
        (world.request("jdoe").await["status"] == "ok").then_some(())
    })
    .await;
    drop(asked);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_waits_for_its_first_database_stops_when_it_is_told_to() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let url = format!("postgres://127.0.0.1:{}/x", closed_port().await);
    let worker = launch_at(&mut world, &url).await;
    not_ready_because(&worker, "nothing listens there").await;
    worker.stop(&world).await;
}
