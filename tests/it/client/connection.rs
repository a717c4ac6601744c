//! Connections that break while requests are in flight.

use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::join_all;
use secrecy::{ExposeSecret, SecretString};
use tokenkeeper_client::{Progress, Published};
use tokenkeeper_testkit::proxy::FaultProxy;

use super::*;
use crate::harness::{PATIENCE, eventually};

async fn client_through(proxy: &FaultProxy, world: &World) -> Client {
    Client::connect(options_at(world, &proxy.url(world.broker.url()))).await.expect("connect")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_for_tokens_survive_their_connection_and_a_report_is_told() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    world.user_with_expired_token("alice").await;
    let reported = world.user_with_token("bob").await;
    let proxy = FaultProxy::start_for_url(world.broker.url(), 5672).await;
    let client = client_through(&proxy, &world).await;
    let (host, url) = (world.scm.host(), world.scm.clone_url("p", "r"));
    let gate = world.scm.hold_refreshes();
    let value = SecretString::from(reported.access_token.as_str());

    let tokens = join_all((0..20).map(|_| client.token("alice", &*host).send()));
    let workspace = client.workspace_start("ws-1", "alice", [url]).send();
    let report = client.report("bob", &*host, &value).send();
    let fault = async {
        gate.wait_for_parked(2).await;
        proxy.cut_all();
        proxy.wait_for_connections(1).await;
        // Others are served meanwhile.
        world.user_with_token("carol").await;
        assert_eq!(world.request("carol").await["status"], "ok");
        gate.release();
    };
    let (tokens, workspace, report, ()) = tokio::join!(tokens, workspace, report, fault);

    let latest = world.scm.latest_pair("alice").expect("it was refreshed").access_token;
    for token in tokens {
        assert_eq!(token.expect("it was asked again").value.expose_secret(), latest);
    }
    assert!(workspace.unwrap().tokens[0].token.is_ok());
    let error = report.unwrap_err();
    assert!(matches!(error, Error::ConnectionLost { published: Published::Yes, .. }), "{error:?}");
    assert!(error.retryable());
    assert_eq!(world.scm.refreshes("alice"), 1, "asked twice, refreshed once");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_broker_requests_wait_within_their_time_and_are_told_why() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    let proxy = FaultProxy::start_for_url(world.broker.url(), 5672).await;
    let client = client_through(&proxy, &world).await;
    let host = world.scm.host();
    assert!(client.token("jdoe", &*host).send().await.is_ok());
    proxy.refuse();
    proxy.cut_all();

    let began = Instant::now();
    let value = SecretString::from("t");
    let asked = client.token("jdoe", &*host).timeout(A_SECOND);
    let (token, report) =
        tokio::join!(asked.send(), client.report("jdoe", &*host, &value).timeout(A_SECOND).send());
    assert!((A_SECOND..10 * A_SECOND).contains(&began.elapsed()), "{:?}", began.elapsed());
    let told = |error: Error| {
        let is_known =
            matches!(error, Error::Connect(_) | Error::ConnectionLost { .. } | Error::NoReply { .. });
        assert!(is_known && error.retryable(), "{error:?}");
    };
    told(token.unwrap_err());
    told(report.unwrap_err());
    // By now the client knows that its connection is gone.
    let progress = Progress::new();
    let asked = client.token("jdoe", &*host).timeout(A_SECOND).progress(&progress);
    let error = asked.send().await.unwrap_err();
    assert!(matches!(error, Error::Connect(_)), "{error:?}");
    assert_eq!(progress.published(), Published::No);

    let waiting = client.token("jdoe", &*host).send();
    let back = async { proxy.accept() };
    assert!(tokio::join!(waiting, back).0.is_ok(), "it connects again by itself");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_closed_or_dropped_leaves_no_connection_behind() {
    let world = world_without_a_worker().await;
    let proxy = FaultProxy::start_for_url(world.broker.url(), 5672).await;
    let (closed, dropped) = (client_through(&proxy, &world).await, client_through(&proxy, &world).await);
    let other = closed.clone();
    let value = SecretString::from("t");
    let token = other.token("jdoe", "git.example.org").send();
    let store = other.store("jdoe", "git.example.org", "t").send();
    let report = other.report("jdoe", "git.example.org", &value).send();
    let close = async {
        for queue in ["token-requests", "token-stores", "token-reports"] {
            eventually("the messages to be published", PATIENCE, async || {
                (world.broker.queue_depth(queue).await == 1).then_some(())
            })
            .await;
        }
        closed.close().await;
    };
    let (token, store, report, ()) = tokio::join!(token, store, report, close);
    for answer in [token.map(drop), store.map(drop), report.map(drop)] {
        assert!(matches!(answer, Err(Error::Closed)), "{answer:?}");
    }
    assert!(matches!(other.token("jdoe", "h").send().await, Err(Error::Closed)));
    drop(dropped);
    eventually("no connection", PATIENCE, async || (proxy.connections() == 0).then_some(())).await;
}

#[tokio::test]
async fn a_broker_that_is_away_is_told_when_the_client_connects() {
    let error = Client::connect(Options::new("amqp://u:s3cret@127.0.0.1:1/%2f")).await.unwrap_err();
    assert!(matches!(error, Error::Connect(_)), "{error:?}");
    assert!(!format!("{error:?} {error}").contains("s3cret"), "{error:?}");
    let error = Client::connect(Options::new("amqp://u:s3cret@192.0.2.1/%2f")).await.unwrap_err();
    assert!(matches!(error, Error::Options(_)), "in plain text over the network: {error:?}");
}

// In one thread, so that nothing happens between two polls.
#[tokio::test]
async fn a_login_that_may_be_stored_is_not_sent_again_because_a_clone_of_its_request_begins() {
    let world = world_without_a_worker().await;
    let proxy = FaultProxy::start_for_url(world.broker.url(), 5672).await;
    let client = client_through(&proxy, &world).await;
    let progress = Progress::new();
    let request = client.store("jdoe", "git.example.org", "t").progress(&progress);
    let mut first = Box::pin(request.clone().send());
    let is_published = eventually("the login to be published", PATIENCE, async || {
        (progress.published() == Published::Yes).then_some(())
    });
    tokio::select! {
        stored = &mut first => panic!("there is no worker: {stored:?}"),
        () = is_published => {}
    }
    proxy.cut_all();
    // The first one is not polled meanwhile. This one goes over the next connection.
    let between = client.token("jdoe", "git.example.org").timeout(A_SECOND).send();
    proxy.wait_for_connections(1).await;
    assert!(matches!(between.await, Err(Error::NoReply { .. })), "there is a connection, and no worker");

    let mut second = Box::pin(request.send());
    assert!((&mut second).now_or_never().is_none());
    assert_eq!(progress.published(), Published::No, "the clone has begun");
    let lost = (&mut first).now_or_never();

    assert!(matches!(lost, Some(Err(Error::ConnectionLost { published: Published::Yes, .. }))), "{lost:?}");
    drop(second);
    assert_eq!(world.broker.queue_depth("token-stores").await, 1, "it was sent once");
}
