//! Messages that end what works on them: a connection, or the whole worker. Nobody else may end in the dead letters for it.

use std::time::{Duration, Instant};

use lapin::types::AMQPValue;
use serde_json::Value;
use tokenkeeper::broker::dead_letters;
use tokenkeeper_testkit::proxy::{FaultProxy, Marker, Then};
use tokenkeeper_testkit::queues::{BasicProperties, DeadLetter, PendingReply, TOKEN_REQUEST};

use crate::harness::reply::token;
use crate::harness::{Dialect, Kind, PATIENCE, WorkerProcess, World, eventually};

/// In the body of the message that ends what works on it.
const MARKER: &str = "poison-0b5e2d";

/// Requests that are in hand beside the poison.
const BYSTANDERS: usize = 60;

/// A world whose workers reach their broker through this proxy.
async fn behind_a_proxy(world: &mut World) -> FaultProxy {
    let proxy = FaultProxy::start_for_url(world.broker.url(), 5672).await;
    world.set_broker_url(proxy.url(world.broker.url()));
    proxy
}

/// A request that came over a connection that is gone keeps its place at the stalled host until its time is over. So with
/// a smaller prefetch there would be no place for the same user's requests when they are delivered again.
fn place_for_each_delivery(world: &mut World) {
    world.set("worker.prefetch_token_requests", 1024);
}

async fn send_poison(world: &World) -> PendingReply {
    let mut body = world.token_request("jdoe");
    body["marker"] = MARKER.into();
    world.broker.send(TOKEN_REQUEST, body.to_string(), BasicProperties::default()).await
}

async fn bystanders(world: &World, count: usize) -> Vec<PendingReply> {
    world.send_many("alice", count).await
}

async fn all_answered(bystanders: Vec<PendingReply>, expected: &str) {
    for bystander in bystanders {
        let reply = bystander.reply().await.body;
        assert_eq!(token(&reply)["value"], expected);
    }
}

/// Suspects wait for a stalled host in small numbers; who finds no place is told so.
async fn all_served_or_told_to_come_back(waiting: Vec<PendingReply>) {
    let mut served = 0;
    for request in waiting {
        let body = request.reply().await.body;
        match body["status"].as_str() {
            Some("ok") => served += 1,
            _ => assert_eq!(body["error"]["code"], "provider_unavailable", "{body}"),
        }
    }
    assert!(served > 0, "those who found a place are served");
}

fn reason(headers: &lapin::types::FieldTable) -> String {
    match headers.inner().get("x-tokenkeeper-reason") {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        _ => match headers.inner().get("x-first-death-reason") {
            Some(AMQPValue::LongString(text)) => text.to_string(),
            other => panic!("no reason: {other:?}"),
        },
    }
}

/// The poison is the only dead letter, and everybody else was answered.
async fn the_poison_alone_dies(world: &World) {
    let letters = world.broker.wait_for_dead_letters(1).await;
    let keys = world.settings().key_ring().expect("the keys of its workers");
    let opened = |letter: &DeadLetter| {
        let properties = letter.properties.clone().with_headers(letter.headers.clone());
        let opened = dead_letters::open(Some(&keys), &letter.routing_key, &properties, &letter.body);
        serde_json::from_slice::<Value>(&opened.expect("sealed by a worker")).expect("a request")
    };
    let bodies: Vec<Value> = letters.iter().map(opened).collect();
    assert!(bodies.iter().all(|body| body["marker"] == MARKER), "nobody else is there: {bodies:?}");
    assert_eq!(bodies.len(), 1);
    assert_eq!(reason(&letters[0].headers), "delivery_limit");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_breaks_its_connection_costs_no_other_message_its_answer() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let proxy = behind_a_proxy(&mut world).await;
    proxy.watch_for(Marker::new(MARKER, Then::Cut));
    let worker = world.spawn_worker().await;
    world.user_with_token("jdoe").await;
    let pair = world.user_with_token("alice").await;

    let before = bystanders(&world, BYSTANDERS).await;
    let _poison = send_poison(&world).await;
    let behind = bystanders(&world, BYSTANDERS).await;

    all_answered(before, &pair.access_token).await;
    all_answered(behind, &pair.access_token).await;
    the_poison_alone_dies(&world).await;
    let asked = Instant::now();
    all_answered(bystanders(&world, 1).await, &pair.access_token).await;
    assert!(asked.elapsed() < Duration::from_secs(2), "all is as it was, not after {:?}", asked.elapsed());
    worker.stop(&world).await;
}

/// Slow bystanders are in hand for as long as the poison is about: a refresh that is held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_waits_while_another_keeps_breaking_the_connection_is_answered() {
    let mut world = World::new(Kind::Postgres, Dialect::GitHub).await;
    world.set("refresh.wait_secs", 120).set("worker.request_budget_secs", 120);
    place_for_each_delivery(&mut world);
    let proxy = behind_a_proxy(&mut world).await;
    proxy.watch_for(Marker::new(MARKER, Then::Cut));
    let worker = world.spawn_worker().await;
    world.user_with_token("jdoe").await;
    world.user_with_expired_token("alice").await;
    let gate = world.scm.hold_refreshes();
    let waiting = bystanders(&world, 20).await;
    gate.wait_for_parked(1).await;

    let _poison = send_poison(&world).await;

    the_poison_alone_dies(&world).await;
    gate.release();
    all_served_or_told_to_come_back(waiting).await;
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_kills_its_worker_costs_no_other_message_its_answer() {
    let mut world = World::new(Kind::Postgres, Dialect::GitHub).await;
    let proxy = behind_a_proxy(&mut world).await;
    proxy.watch_for(Marker::new(MARKER, Then::Mute));
    let mut marked = proxy.marked();
    let mut worker = world.spawn_worker().await;
    world.user_with_token("jdoe").await;
    let pair = world.user_with_token("alice").await;

    let before = bystanders(&world, BYSTANDERS).await;
    let _poison = send_poison(&world).await;
    let behind = bystanders(&world, BYSTANDERS).await;

    let mut deaths = 0;
    loop {
        let seen = *marked.borrow_and_update();
        if seen > deaths {
            // As a process that aborts: whatever it had in hand is delivered again.
            worker.signal("KILL").await;
            drop(worker);
            deaths = *marked.borrow();
            worker = WorkerProcess::launch(&world).await;
            continue;
        }
        let dead = world.broker.queue_depth("dead-letters").await > 0;
        if dead {
            break;
        }
        let _ = tokio::time::timeout(Duration::from_millis(100), marked.changed()).await;
    }

    worker.wait_until_ready().await;
    all_answered(before, &pair.access_token).await;
    all_answered(behind, &pair.access_token).await;
    the_poison_alone_dies(&world).await;
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_in_hand_at_two_crashes_are_answered_from_the_queue_of_suspects() {
    let mut world = World::new(Kind::Postgres, Dialect::GitHub).await;
    world.set("refresh.wait_secs", 120).set("worker.request_budget_secs", 120);
    place_for_each_delivery(&mut world);
    let proxy = behind_a_proxy(&mut world).await;
    let worker = world.spawn_worker().await;
    world.user_with_expired_token("alice").await;
    let gate = world.scm.hold_refreshes();
    let waiting = bystanders(&world, 30).await;
    gate.wait_for_parked(1).await;
    for _ in 0..2 {
        eventually("the requests to be in hand", PATIENCE, async || {
            (worker.requests_in_hand().await >= 30 && world.broker.queue_depth("token-requests").await == 0)
                .then_some(())
        })
        .await;
        let reconnects = worker.reconnects(crate::harness::links::Link::Consume).await;
        proxy.cut_all();
        eventually("the worker to be back", PATIENCE, async || {
            let again = worker.reconnects(crate::harness::links::Link::Consume).await;
            (again > reconnects && worker.get("readyz").await.0 == 200).then_some(())
        })
        .await;
    }
    eventually("all of them to be suspects", PATIENCE, async || {
        (worker.count(r#"tokenkeeper_suspects_total{to="suspects"}"#).await >= 30).then_some(())
    })
    .await;

    gate.release();

    all_served_or_told_to_come_back(waiting).await;
    assert!(world.broker.dead_letters().await.is_empty());
    worker.stop(&world).await;
}
