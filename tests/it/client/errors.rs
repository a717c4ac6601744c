//! Each class of error, by which a caller decides.

use std::time::Instant;

use futures_util::future::join_all;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions};
use tokenkeeper_client::{MessageKind, Published};

use super::*;
use crate::harness::Fault;
use crate::harness::accounts::Accounts;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_code_of_the_contract_says_whether_to_ask_again() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let (client, host) = (client(&world).await, world.scm.host());
    world.user_with_expired_token("revoked").await;
    world.scm.revoke("revoked");
    world.user_with_expired_token("unlucky").await;
    world.scm.fail_always_for("unlucky", Fault::RetryAfter { status: 503, seconds: 120 });

    for (user, host, expected, is_retryable) in [
        ("nobody", &*host, "user_not_found", false),
        ("revoked", "unknown.example.org", "unknown_host", false),
        ("revoked", "https://h/", "invalid_request", false),
        ("revoked", &*host, "reauthorization_required", false),
        ("unlucky", &*host, "provider_unavailable", true),
    ] {
        let error = client.token(user, host).send().await.unwrap_err();
        assert_eq!((code(&error), error.retryable()), (expected, is_retryable), "{error}");
        let wait = error.retry_after().map_or(0, |wait| wait.as_secs());
        assert!(if is_retryable { (60..=120).contains(&wait) } else { wait == 0 }, "{error:?}");
        if let Error::Refused(refusal) = &error {
            let reason = (expected == "reauthorization_required").then_some("refresh_token_refused");
            assert_eq!(refusal.reason.as_deref(), reason);
        }
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_breaks_the_contract_is_not_sent() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let client = client(&world).await;
    let long = Duration::from_hours(25);
    for refused in [
        client.token("u", "h").lifetime(Duration::ZERO).send().await.map(drop),
        client.token("u", "h").lifetime(long).send().await.map(drop),
        client.token("u", "h").timeout(Duration::ZERO).send().await.map(drop),
        client.token("u", "h").timeout(long).send().await.map(drop),
        client.workspace_start("w", "u", [""; 0]).send().await.map(drop),
        client.token("u".repeat(64 * 1024), "h").send().await.map(drop),
        client.store("u", "h", "t".repeat(128 * 1024)).send().await.map(drop),
    ] {
        assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_no_queue_takes_is_told_at_once_and_alone() {
    // No exchange: the broker closes the channel.
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let client = client(&world).await;
    let unroutable = |answer: Result<(), Error>| {
        let error = answer.unwrap_err();
        assert!(
            matches!(&error, Error::Unroutable { prefix, .. } if prefix == world.broker.prefix()),
            "{error:?}"
        );
        assert!(!error.retryable());
    };
    unroutable(client.token("jdoe", "git.example.org").send().await.map(drop));
    // An exchange and no queue: the broker returns the message.
    let channel = world.broker.channel().await;
    let exchange = || ShortString::from(world.broker.prefix());
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let kind = lapin::ExchangeKind::Direct;
    channel.exchange_declare(exchange(), kind, durable, FieldTable::default()).await.unwrap();
    unroutable(client.token("jdoe", "git.example.org").send().await.map(drop));

    // Among many others, who are answered.
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    let (reports, key) = (world.broker.name("token-reports"), MessageKind::TokenReport.routing_key());
    channel
        .queue_unbind(reports.clone().into(), exchange(), key.into(), FieldTable::default())
        .await
        .unwrap();
    let host = world.scm.host();
    let value = secrecy::SecretString::from("t");
    let (tokens, reported) = tokio::join!(
        join_all((0..200).map(|_| client.token("jdoe", &*host).send())),
        join_all((0..20).map(|_| client.report("jdoe", &*host, &value).send())),
    );
    assert!(tokens.iter().all(Result::is_ok), "{tokens:?}");
    for report in reported {
        unroutable(report.map(drop));
    }
    let bind = QueueBindOptions::default();
    channel.queue_bind(reports.into(), exchange(), key.into(), bind, FieldTable::default()).await.unwrap();
    assert!(client.report("jdoe", &*host, &value).send().await.is_ok());
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nobody_answers_it_says_so_when_the_time_is_over_and_the_message_is_gone() {
    let world = world_without_a_worker().await;
    let client = client(&world).await;
    let timeout = Duration::from_millis(200);

    let began = Instant::now();
    let error = client.token("jdoe", "git.example.org").timeout(timeout).retries(5).send().await.unwrap_err();

    assert!(matches!(error, Error::NoReply { published: Published::Yes, .. }), "{error:?}");
    assert!(error.retryable() && began.elapsed() >= timeout, "{:?}", began.elapsed());
    assert_eq!(world.broker.queue_depth("token-requests").await, 0, "it expired with the request");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_cannot_make_it_says_so_before_the_client_gives_up() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    world.user_with_expired_token("jdoe").await;
    let gate = world.scm.hold_refreshes();
    let client = client(&world).await;

    let asked = client.token("jdoe", world.scm.host()).timeout(Duration::from_millis(500));
    let error = asked.send().await.unwrap_err();

    assert_eq!((code(&error), error.retryable()), ("deadline_exceeded", true));
    gate.release();
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_asked_again_when_the_worker_says_and_not_before() {
    let world = world_without_a_worker().await;
    let mut asked_before = 0;
    let replier = Replier::start(&world, move |asked| {
        asked_before += 1;
        let body = match (asked.user(), asked_before) {
            ("later", _) => refused("provider_unavailable", 60),
            (_, 1..=2) => refused("provider_unavailable", 1),
            _ => asked.granted("t"),
        };
        vec![(asked.correlation_id.clone(), body)]
    })
    .await;
    let client = client(&world).await;
    let request = |user: &str| client.token(user, "git.example.org").timeout(Duration::from_secs(20));

    let began = Instant::now();
    assert!(request("jdoe").retries(2).send().await.is_ok());
    assert!(began.elapsed() >= 2 * A_SECOND, "twice a second: {:?}", began.elapsed());

    // Not within its time, or not asked for: it is told at once.
    let began = Instant::now();
    for error in
        [request("later").retries(5).send().await.unwrap_err(), request("later").send().await.unwrap_err()]
    {
        assert_eq!(error.retry_after(), Some(Duration::from_mins(1)), "{error:?}");
    }
    assert!(began.elapsed() < 10 * A_SECOND, "{:?}", began.elapsed());
    drop(replier);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workspace_keeps_the_tokens_it_got_when_nobody_answers_any_more() {
    let world = world_without_a_worker().await;
    let mut asked_before = 0;
    let replier = Replier::of(&world, "workspace-starts", move |asked| {
        asked_before += 1;
        if asked_before > 1 {
            return Vec::new();
        }
        let error = json!({"code": "provider_unavailable", "message": "not now", "retryable": true});
        let away = json!({"status": "error", "user_id": "jdoe", "host": "b.example.org", "error": error});
        let tokens = json!([granted("jdoe", "a.example.org", "t"), away]);
        let body = json!({"status": "error", "workspace_id": "w", "user_id": "jdoe", "tokens": tokens});
        vec![(asked.correlation_id.clone(), body.to_string().into_bytes())]
    })
    .await;
    let client = client(&world).await;
    let request = client.workspace_start("w", "jdoe", ["https://a.example.org/r", "https://b.example.org/r"]);

    let got = request.timeout(A_SECOND).retries(5).send().await.unwrap();

    let [there, away] = &got.tokens[..] else { panic!("{got:?}") };
    assert!(there.token.is_ok() && away.token.is_err(), "{got:?}");
    drop(replier);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_broker_refuses_is_told_in_its_words_and_without_the_password() {
    let world = world_without_a_worker().await;
    let nothing = || ["^$".to_owned(), "^$".to_owned(), "^$".to_owned()];
    let accounts = Accounts::create(&world, &[("publisher", Some(nothing()))]).await;
    let client = Client::connect(options_at(&world, &accounts.url("publisher"))).await.unwrap();

    let error = client.token("jdoe", "git.example.org").send().await.unwrap_err();
    assert!(matches!(error, Error::Broker { action: "publish the request", .. }), "{error:?}");
    assert!(error.to_string().contains("refused") && !error.retryable(), "{error}");
    let error = client.events("#").await.map(drop).unwrap_err();
    assert!(matches!(error, Error::Broker { .. }), "{error:?}");

    // The exchange alone is enough.
    let write = format!("^{}$", world.broker.prefix().replace('.', "\\."));
    accounts.grant("publisher", &["^$".to_owned(), write, "^$".to_owned()]).await;
    let client = Client::connect(options_at(&world, &accounts.url("publisher"))).await.unwrap();
    let asked = client.token("jdoe", "git.example.org").timeout(Duration::from_millis(100));
    assert!(matches!(asked.send().await, Err(Error::NoReply { .. })));

    let wrong = accounts.url("publisher").replace("a-password", "another-password");
    let error = Client::connect(options_at(&world, &wrong)).await.unwrap_err();
    assert!(matches!(error, Error::Connect(_)) && error.retryable(), "{error:?}");
    assert!(!format!("{error:?} {error}").contains("another-password"), "{error:?}");
}
