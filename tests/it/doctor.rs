//! `tokenkeeper doctor`: what a worker needs, looked at without one.

use std::net::Ipv4Addr;

use sea_orm::ConnectionTrait;
use serde_json::Value;
use tokenkeeper::domain::secret::{ExposeSecret, KeyRing};
use tokenkeeper_testkit::queues::{BasicProperties, TOKEN_REQUEST};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::cli::{Cli, Ended};
use crate::harness::{
    Dialect, Kind, PATIENCE, ScmOptions, SimulatedScm, World, eventually, on_every_database,
};
use crate::keys::rotating::parked;

/// The line of a check.
fn line<'a>(ended: &'a Ended, check: &str) -> &'a str {
    let of_check = |line: &&str| line.chars().skip(2).collect::<String>().starts_with(check);
    ended.stdout.lines().find(of_check).unwrap_or_else(|| panic!("no {check} in {ended:?}"))
}

on_every_database! {
    async fn where_all_is_well_every_check_is_good_and_no_token_is_spent(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        let worker = world.start_worker().await;
        world.user_with_token("jdoe").await;

        let ended = Cli::of(&world).run(&["doctor"]).await.good().keeps_secrets_of(&world);

        assert!(ended.stdout.lines().all(|line| line.starts_with("✓ ")), "{}", ended.stdout);
        for (check, told) in [
            ("database ", "answers in"),
            ("database writes", "takes them"),
            ("database rights", "all that a worker needs"),
            ("migrations", "all are applied"),
            ("clock", "beside the database's"),
            ("connections", ""),
            ("provider ", "its token endpoint answers"),
            ("users", "nobody must log in again"),
            ("keys", "all that rows are encrypted with"),
            ("workers", "1: tokenkeeper-"),
            ("broker", "RabbitMQ "),
            ("broker", "lets a worker publish, declare and consume"),
            ("broker alarms", "none"),
            ("queues", "with the arguments that a worker declares, 0 messages wait"),
            ("dead letters", "there are none"),
            ("parked pairs", "none waits"),
            ("audit log", "it is off"),
            ("spool folder", "can be written"),
            ("flags", "the defaults hold"),
            ("publishers", "only this machine reaches the broker"),
        ] {
            assert!(line(&ended, check).contains(told), "{}", ended.stdout);
        }
        assert_eq!(world.scm.refreshes("jdoe"), 0);
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_hangs_or_refuses_us_stops_no_other_check() {
    let mut world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let silent_url = format!("http://{}/token", silent.local_addr().unwrap());
    let other = SimulatedScm::start(ScmOptions::new(Dialect::GitHub)).await;
    world
        .apply(&other, |provider| {
            provider.host = "silent.example.org".to_owned();
            provider.token_url = Some(silent_url.parse().unwrap());
        })
        .await;
    world.apply(&other, |provider| provider.client_secret = "wrong".into()).await;
    world.set("refresh.total_timeout_secs", 1).set("refresh.connect_timeout_secs", 1);

    let ended = Cli::of(&world).run(&["doctor"]).await.with_code(1).keeps_secrets_of(&world);

    let silent = line(&ended, "provider silent.example.org");
    assert!(
        silent.starts_with("✗") && silent.contains("no answer within 1s") && silent.contains("curl -v"),
        "{silent}"
    );
    let refused = line(&ended, &format!("provider {}", other.host()));
    assert!(refused.contains("refuses our client_id or client_secret"), "{refused}");
    assert!(line(&ended, &format!("provider {}", world.scm.host())).starts_with("✓"), "{}", ended.stdout);
    assert!(line(&ended, "flags").starts_with("✓"), "{}", ended.stdout);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_depends_on_a_database_that_is_away_was_not_looked_at() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let cli = Cli::of(&world).set("DATABASE_URL", "postgres://tk:s3cret@127.0.0.1:1/x");

    let ended = cli.run(&["doctor", "--json"]).await.with_code(1);

    assert!(!ended.stdout.contains("s3cret"), "{ended:?}");
    let findings = ended.json();
    let of = |check: &str| -> Value {
        let findings = findings.as_array().unwrap();
        findings.iter().find(|finding| finding["check"] == check).cloned().unwrap_or_default()
    };
    assert_eq!(of("database")["verdict"], "problem");
    assert_eq!(of("database")["cause"], "nothing listens there");
    assert_eq!(of("database")["next"], "start PostgreSQL there, or correct database.url");
    assert_eq!(of("providers")["verdict"], "not_looked");
    assert_eq!(of("broker")["verdict"], "good");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_keys_the_providers_cannot_be_looked_at_which_is_no_problem_of_theirs() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let ended = Cli::of(&world).unset("TOKENKEEPER_KEYS").run(&["doctor"]).await.with_code(2);
    assert!(line(&ended, "providers").starts_with("? "), "{}", ended.stdout);
    assert!(line(&ended, "providers").contains("tokenkeeper keys generate"), "{}", ended.stdout);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_and_users_who_must_log_in_again_are_counted() {
    let world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    let worker = world.start_worker().await;
    world.user_with_expired_token("jdoe").await;
    world.scm.revoke("jdoe");
    assert_eq!(world.request("jdoe").await["status"], "error");
    world.broker.publish(TOKEN_REQUEST, "no JSON".to_owned(), BasicProperties::default()).await;
    eventually("the dead letter", PATIENCE, async || {
        (world.broker.queue_depth("dead-letters").await == 1).then_some(())
    })
    .await;

    let ended = Cli::of(&world).run(&["doctor"]).await.good().keeps_secrets_of(&world);

    let letters = line(&ended, "dead letters");
    assert!(letters.starts_with("! ") && letters.contains("1 dead letter: 1 invalid_request"), "{letters}");
    assert_eq!(world.broker.queue_depth("dead-letters").await, 1, "it is still there");
    let users = line(&ended, "users");
    assert!(users.contains(&format!("1 at {}", world.scm.host())), "{users}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_nobody_takes_and_a_worker_that_was_killed_are_told() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.spawn_worker().await;
    worker.signal("KILL").await;
    let long_ago = "UPDATE worker SET last_seen_at = last_seen_at - 120000";
    world.connection().await.execute_unprepared(long_ago).await.unwrap();
    let body = r#"{"user_id":"jdoe","host":"git.example.org"}"#.to_owned();
    world.broker.publish(TOKEN_REQUEST, body, BasicProperties::default()).await;
    let other_key = KeyRing::generate("other");
    let cli = Cli::of(&world).set("TOKENKEEPER_KEYS", other_key.expose_secret());

    // The broker needs a moment to notice that the worker is gone.
    let ended = eventually("a queue that nobody consumes", PATIENCE, async || {
        let ended = cli.run(&["doctor"]).await.with_code(1).keeps_secrets_of(&world);
        line(&ended, "queues").starts_with("! ").then_some(ended)
    })
    .await;

    assert!(line(&ended, "queues").contains("1 in "), "{}", ended.stdout);
    let workers = line(&ended, "workers");
    assert!(workers.starts_with("! ") && workers.contains("said nothing for over a minute"), "{workers}");
    let keys = line(&ended, "keys");
    assert!(keys.starts_with("✗ ") && keys.contains("lack `test`"), "{keys}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_makes_no_database_file() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let cli = Cli::of(&world).set("DATABASE_URL", "sqlite://tokenkeeper.db");
    let ended = cli.run(&["doctor"]).await.with_code(2);
    assert!(
        line(&ended, "database").contains("there is no database file tokenkeeper.db"),
        "{}",
        ended.stdout
    );
    assert!(!cli.folder.path().join("tokenkeeper.db").exists());
}

#[tokio::test]
async fn wrong_settings_are_a_finding_too_where_json_is_asked_for() {
    let cli = Cli::with([]).set("TOKENKEEPER__BROKER__PREFIXX", "x").set("AMQP_URL", "http://u:s3cret@host");
    let ended = cli.run(&["doctor", "--json"]).await.with_code(2);
    assert!(ended.stderr.is_empty() && !ended.stdout.contains("s3cret"), "{ended:?}");
    let findings = ended.json();
    let [finding] = &findings.as_array().unwrap()[..] else { panic!("one finding: {findings}") };
    assert_eq!((&finding["check"], &finding["verdict"]), (&"settings".into(), &"problem".into()));
    assert!(
        finding["what"].as_str().is_some_and(|what| what.contains("`broker.url` (AMQP_URL) must be")),
        "{finding}"
    );
    drop(cli.run(&["doctor"]).await.with_code(2).says("`broker.url` (AMQP_URL) must be"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pairs_that_wait_another_queue_and_an_audit_log_that_cannot_be_written_are_told() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let spool = tempfile::tempdir().unwrap();
    world.set("worker.spool_dir", spool.path().display());
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    worker.stop().await;
    std::fs::write(spool.path().join("1-1-x.parked"), parked(&world, "jdoe").await).unwrap();
    let queued = parked(&world, "jdoe").await;
    world.broker.send_to_queue("parked-pairs", &queued, BasicProperties::default()).await;

    world.set("audit.to", "file").set("audit.file", spool.path().join("audit.jsonl").display());
    let ended = Cli::of(&world).run(&["doctor"]).await.good().keeps_secrets_of(&world);
    let pairs = line(&ended, "parked pairs");
    assert!(pairs.starts_with("! ") && pairs.contains("1 on the queue, 1 in "), "{pairs}");
    assert!(line(&ended, "audit log").contains("audit.jsonl can be written"), "{}", ended.stdout);
    assert!(!spool.path().join("audit.jsonl").exists(), "a look makes no file");

    world.set("audit.file", "/no/such/folder/audit.jsonl").set("broker.delivery_limit", 7);
    let ended = Cli::of(&world).run(&["doctor"]).await.with_code(1);
    let audit = line(&ended, "audit log");
    assert!(
        audit.starts_with("✗ ") && audit.contains("(audit.file): No such file or directory; next: "),
        "{audit}"
    );
    let broker = line(&ended, "broker");
    assert!(broker.starts_with("✗ ") && broker.contains("exists with another x-delivery-limit"), "{broker}");
}

/// A way to the broker on which it says, to whoever publishes, that it takes no messages.
async fn with_an_alarm(url: &str) -> String {
    // AMQP 0-9-1: a method frame with tx.select-ok, whatever its channel, and one with RabbitMQ's connection.blocked.
    const SELECT_OK: &[u8] = b"\0\0\0\x04\0\x5a\0\x0b\xce";
    const BLOCKED: &[u8] = b"\x01\0\0\0\0\0\x12\0\x0a\0\x3c\x0dlow on memory\xce";
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let mut shown = url::Url::parse(url).unwrap();
    let upstream = format!("{}:{}", shown.host_str().unwrap(), shown.port().unwrap_or(5672));
    shown.set_host(Some("127.0.0.1")).unwrap();
    shown.set_port(Some(listener.local_addr().unwrap().port())).unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&upstream).await.unwrap();
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
            tokio::spawn(async move {
                let mut buffer = [0; 16 * 1024];
                while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
                    to_client.write_all(&buffer[..count]).await.unwrap();
                    if buffer[..count].ends_with(SELECT_OK) {
                        to_client.write_all(BLOCKED).await.unwrap();
                    }
                }
            });
        }
    });
    shown.into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alarm_of_the_broker_is_told_with_its_reason_and_all_else_is_looked_at() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("broker.operation_timeout_secs", 1);
    world.start_worker().await.stop().await;
    let cli = Cli::of(&world).set("AMQP_URL", &with_an_alarm(world.broker.url()).await);

    let ended = cli.run(&["doctor"]).await.with_code(1).keeps_secrets_of(&world);

    let alarm = line(&ended, "broker alarms");
    assert!(
        alarm.starts_with("✗ ") && alarm.contains("low on memory; next: `rabbitmq-diagnostics alarms`"),
        "{alarm}"
    );
    for check in ["broker", "queues", "dead letters", "parked pairs"] {
        assert!(line(&ended, check).starts_with("✓ "), "{check}: {}", ended.stdout);
    }
}
