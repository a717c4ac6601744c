//! Reply queues that take no replies: their requests hold up nobody else's.

use std::time::{Duration, Instant};

use lapin::Channel;
use lapin::options::{ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use tokenkeeper_testkit::queues::{BasicProperties, TOKEN_REQUEST};

use crate::harness::reply::token;
use crate::harness::{Dialect, Kind, PATIENCE, World, eventually};

const GIVEN_UP: &str = r#"tokenkeeper_replies_given_up_total{reason="refused"}"#;

/// A queue that refuses every message, and the channel that it lives on.
async fn full_queue(world: &World, name: &str) -> Channel {
    let channel = world.broker.channel().await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(0));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    channel.queue_declare(name.into(), exclusive, arguments).await.unwrap();
    channel
}

async fn ask(world: &World, user: &str, reply_to: &str) {
    let properties = BasicProperties::default().with_reply_to(reply_to.into());
    world.broker.publish(TOKEN_REQUEST, world.token_request(user).to_string(), properties).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_whose_reply_queue_is_full_leave_most_of_the_prefetch_to_the_others() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("worker.prefetch_token_requests", 16).set("worker.request_budget_secs", 20);
    world.set("refresh.wait_secs", 10);
    let worker = world.spawn_worker().await;
    let pair = world.user_with_token("jdoe").await;
    let queue = format!("{}-full", world.broker.prefix());
    let _channel = full_queue(&world, &queue).await;

    for _ in 0..100 {
        ask(&world, "jdoe", &queue).await;
    }
    let asked = Instant::now();
    let reply = world.request("jdoe").await;

    assert_eq!(token(&reply)["value"], pair.access_token.as_str());
    assert!(asked.elapsed() < Duration::from_secs(10), "in {:?}", asked.elapsed());
    eventually("most of them to be given up at once", PATIENCE, async || {
        (worker.count(GIVEN_UP).await >= 96).then_some(())
    })
    .await;
    assert!(worker.requests_in_hand().await <= 4, "a quarter of the prefetch");
    assert_eq!(worker.get("readyz").await.0, 200);
    let asked = Instant::now();
    world.request("jdoe").await;
    assert!(asked.elapsed() < Duration::from_secs(1), "nobody else notices: {:?}", asked.elapsed());
    eventually("the others to be given up with their time", PATIENCE, async || {
        (worker.count(GIVEN_UP).await == 100 && worker.requests_in_hand().await == 0).then_some(())
    })
    .await;
    assert!(world.broker.dead_letters().await.is_empty());
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_full_reply_queues_hold_no_more_of_the_prefetch_than_one() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("worker.prefetch_token_requests", 16).set("worker.request_budget_secs", 20);
    world.set("refresh.wait_secs", 10);
    let worker = world.spawn_worker().await;
    world.user_with_token("jdoe").await;
    let mut channels = Vec::new();
    for number in 0..20 {
        let queue = format!("{}-full-{number}", world.broker.prefix());
        channels.push(full_queue(&world, &queue).await);
        for _ in 0..3 {
            ask(&world, "jdoe", &queue).await;
        }
    }

    eventually("most of them to be given up", PATIENCE, async || {
        (worker.count(GIVEN_UP).await >= 56).then_some(())
    })
    .await;

    let asked = Instant::now();
    assert_eq!(world.request("jdoe").await["status"], "ok");
    assert!(asked.elapsed() < Duration::from_secs(1), "in {:?}", asked.elapsed());
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_is_refused_for_a_moment_still_arrives() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.spawn_worker().await;
    world.user_with_token("jdoe").await;
    // Full with one message in it, which is taken out once the first reply was refused.
    let name = format!("{}-narrow", world.broker.prefix());
    let channel = world.broker.channel().await;
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    channel.queue_declare(name.as_str().into(), exclusive, arguments).await.unwrap();
    ask(&world, "jdoe", &name).await;
    ask(&world, "jdoe", &name).await;
    let mut taken = 0;
    eventually("both replies", PATIENCE, async || {
        let options = lapin::options::BasicGetOptions { no_ack: true };
        taken += usize::from(channel.basic_get(name.as_str().into(), options).await.unwrap().is_some());
        (taken == 2).then_some(())
    })
    .await;
    assert_eq!(worker.count(GIVEN_UP).await, 0);
    worker.stop(&world).await;
}
