//! Events: what upstream hears, once each, and what it costs a reply that nobody listens. Nothing.

use futures_util::future::join_all;
use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, ExchangeDeleteOptions};
use lapin::types::FieldTable;
use serde_json::json;

use crate::harness::events::Listener;
use crate::harness::links::{BrokerLinks, Link};
use crate::harness::reply::error_message;
use crate::harness::{Dialect, Fault, Kind, PATIENCE, World, eventually, on_every_database};

on_every_database! {
    async fn a_refresh_and_a_refusal_are_told_once_each_with_their_user_and_no_secret(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let workers = world.spawn_workers(2).await;
        let events = Listener::start(&world, "token.*").await;
        world.user_with_expired_token("alice").await;
        world.user_with_expired_token("bob").await;
        world.scm.revoke("bob");

        join_all((0..20).map(|_| world.request("alice"))).await;
        for reply in join_all((0..20).map(|_| world.request("bob"))).await {
            error_message(&reply, "reauthorization_required");
        }

        let refreshed = events.wait_for("token.refreshed", 1).await;
        let condemned = events.wait_for("token.reauthorization_required", 1).await;
        let entry = world.entry("alice").await;
        assert_eq!(refreshed[0], json!({
            "event": "token.refreshed",
            "host": world.scm.host(),
            "user_id": "alice",
            "at": entry.updated_at,
            "generation": 2,
            "cause": "required",
            "expires_at": entry.state.expires_at,
        }));
        assert_eq!(world.scm.refresh_requests("bob"), 1, "no worker asks again what another one has been told");
        let failure = world.entry("bob").await.failure.expect("it is remembered");
        assert_eq!(condemned[0], json!({
            "event": "token.reauthorization_required",
            "host": world.scm.host(),
            "user_id": "bob",
            "at": failure.at,
            "generation": 1,
            "reason": "refresh_token_refused",
        }));
        join_all(workers.into_iter().map(|worker| worker.stop(&world))).await;
        let heard = events.heard();
        assert_eq!(heard.len(), 2, "once each, over all workers: {heard:?}");
        for event in &heard {
            assert_eq!(event.properties.kind().as_ref().map(lapin::types::ShortString::as_str), Some(&*event.routing_key));
            assert!(event.properties.message_id().is_some() && event.properties.delivery_mode() == &Some(2));
            let text = event.body.to_string();
            assert!(world.scm.secrets().iter().all(|secret| !text.contains(secret.as_str())), "{}", event.routing_key);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_left_alone_and_one_that_is_back_are_told_once_each() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("refresh.retry_initial_ms", 20).set("refresh.circuit_open_secs", 1);
    let worker = world.start_worker().await;
    let events = Listener::start(&world, "provider.#").await;
    let users = ["alice", "bob", "carol", "dave", "erin"];
    join_all(users.map(|user| world.user_with_expired_token(user))).await;
    world.scm.fail_always(Fault::Status(500));
    for reply in join_all(users.map(|user| world.request(user))).await {
        error_message(&reply, "provider_unavailable");
    }

    let unavailable = events.wait_for("provider.unavailable", 1).await;
    assert_eq!(
        (&unavailable[0]["host"], &unavailable[0]["retry_after_secs"]),
        (&json!(world.scm.host()), &json!(1))
    );
    assert!(
        unavailable[0]["reason"].as_str().is_some_and(|reason| reason.contains("500")),
        "{unavailable:?}"
    );
    // A probe that fails is no news.
    let asked = world.scm.log().len();
    eventually("a probe that fails", PATIENCE, async || {
        world.request("alice").await;
        (world.scm.log().len() > asked).then_some(())
    })
    .await;
    world.scm.heal();
    eventually("the host to be back", PATIENCE, async || {
        (world.request("alice").await["status"] == "ok").then_some(())
    })
    .await;

    events.wait_for("provider.recovered", 1).await;
    worker.stop().await;
    assert_eq!((events.times("provider.unavailable"), events.times("provider.recovered")), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_answers_again_and_refuses_is_not_back_before_it_issues_a_token() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("refresh.retry_initial_ms", 20).set("refresh.circuit_open_secs", 1);
    let worker = world.start_worker().await;
    let events = Listener::start(&world, "#").await;
    let users = ["alice", "bob", "carol", "dave", "erin"];
    join_all(users.map(|user| world.user_with_expired_token(user))).await;
    world.scm.fail_always(Fault::Status(500));
    join_all(users.map(|user| world.request(user))).await;
    events.wait_for("provider.unavailable", 1).await;

    for (fault, code) in
        [(Fault::InvalidClient, "provider_misconfigured"), (Fault::InvalidGrant, "reauthorization_required")]
    {
        world.scm.fail_always(fault);
        eventually("the host to refuse", PATIENCE, async || {
            (world.request("alice").await["error"]["code"] == code).then_some(())
        })
        .await;
    }
    // Events come in the order of what they tell of: there was none of a recovery before this one.
    events.wait_for("token.reauthorization_required", 1).await;
    assert_eq!(events.times("provider.recovered"), 0);
    world.scm.heal();
    assert_eq!(world.request("bob").await["status"], "ok");

    events.wait_for("provider.recovered", 1).await;
    worker.stop().await;
    assert_eq!(events.times("provider.recovered"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happened_before_the_stop_is_told_before_the_end() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let links = BrokerLinks::start(world.broker.url()).await;
    let url = links.url(world.broker.url());
    world.set("broker.url", url);
    world.apply_provider(|provider| provider.max_concurrent_refreshes = Some(100)).await;
    let worker = world.start_worker().await;
    let events = Listener::start(&world, "token.refreshed").await;
    let users: Vec<String> = (0..100).map(|number| format!("user-{number}")).collect();
    join_all(users.iter().map(|user| world.user_with_expired_token(user))).await;
    let gate = world.scm.hold_refreshes();
    let requests = join_all(users.iter().map(|user| world.send(user))).await;
    gate.wait_for_parked(100).await;

    // While the connection is made anew, everything that is to be published waits: the replies, which go together,
    // and the events, which go one by one.
    links.cut(Link::Publish).await;
    gate.release();
    worker.stop().await;

    for request in requests {
        assert_eq!(request.reply().await.body["status"], "ok");
    }
    events.wait_for("token.refreshed", 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_exchange_for_them_events_are_dropped_and_replies_go_on() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.spawn_worker().await;
    let channel = world.broker.channel().await;
    let exchange = world.broker.name("events");
    channel.exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default()).await.unwrap();
    world.user_with_expired_token("alice").await;
    world.user_with_expired_token("bob").await;

    assert_eq!(world.request("alice").await["status"], "ok");

    let dropped = r#"tokenkeeper_events_total{event="token.refreshed",outcome="refused"}"#;
    eventually("the event to be dropped", PATIENCE, async || {
        (worker.count(dropped).await == 1).then_some(())
    })
    .await;
    assert_eq!(worker.reconnects(Link::Publish).await, 0, "the replies keep their connection");
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel
        .exchange_declare(exchange.as_str().into(), ExchangeKind::Topic, options, FieldTable::default())
        .await
        .unwrap();
    let events = Listener::start(&world, "#").await;
    assert_eq!(world.request("bob").await["status"], "ok");
    events.wait_for("token.refreshed", 1).await;
    worker.stop(&world).await;
}
