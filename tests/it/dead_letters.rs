//! The dead letters as an operator meets them: looked at, replayed and dropped by command, and none of them lost.

mod expired;
mod interrupted;
mod looking;
mod replaying;
mod sealed;
mod unroutable;

use std::collections::BTreeSet;

use futures_util::future::join_all;
use lapin::Channel;
use lapin::options::{BasicGetOptions, BasicNackOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::Value;
use tokenkeeper::broker::{connect, declare};
use tokenkeeper_testkit::queues::BasicProperties;

use crate::cli::Cli;
use crate::harness::{Dialect, Kind, PATIENCE, World, eventually};

/// Declares what a worker declares.
async fn declare_topology(world: &World) {
    let broker = world.settings().broker;
    let connection = connect(&broker, "test").await.unwrap();
    declare(&connection, &broker).await.unwrap();
    connection.close(200, "done".into()).await.unwrap();
}

/// A world with queues and no worker. What the broker gives up on, it gives up on at the second delivery.
async fn world() -> World {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("broker.delivery_limit", 1);
    declare_topology(&world).await;
    world
}

/// A letter as a worker lays it into the dead letters.
async fn lay(world: &World, routing_key: &str, body: &[u8], reason: &str, properties: BasicProperties) {
    let mut headers = properties.headers().clone().unwrap_or_default();
    for (name, value) in [
        ("x-tokenkeeper-reason", reason),
        ("x-tokenkeeper-detail", "the test says so"),
        ("x-tokenkeeper-time", "2020-01-01T01:05:00.000Z"),
    ] {
        headers.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    let channel = confirming(world).await;
    publish(world, &channel, routing_key, body, properties.with_headers(headers)).await;
}

/// So many letters of ours that are right, with the message ids `m-0`, `m-1`, ….
async fn lay_many(world: &World, count: usize) -> BTreeSet<String> {
    let channel = confirming(world).await;
    let ids: Vec<String> = (0..count).map(|number| format!("m-{number}")).collect();
    join_all(ids.iter().map(|id| {
        let properties = BasicProperties::default().with_message_id(id.as_str().into());
        publish(world, &channel, "token.request", b"{}", properties)
    }))
    .await;
    eventually("the letters to be ready", PATIENCE, async || {
        (world.broker.queue_depth("dead-letters").await as usize == count).then_some(())
    })
    .await;
    ids.into_iter().collect()
}

async fn confirming(world: &World) -> Channel {
    let channel = world.broker.channel().await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    channel
}

async fn publish(world: &World, channel: &Channel, key: &str, body: &[u8], properties: BasicProperties) {
    let exchange = world.broker.name("dead-letters");
    let options = BasicPublishOptions::default();
    let confirm = channel.basic_publish(exchange.into(), key.into(), options, body, properties).await;
    assert!(confirm.unwrap().await.unwrap().is_ack());
}

/// Publishes a message and lets the broker give up on it.
async fn die_of_deliveries(
    world: &World,
    routing_key: &str,
    suffix: &str,
    body: Value,
    with: BasicProperties,
) {
    let before = world.broker.queue_depth("dead-letters").await;
    world.broker.publish(routing_key, body.to_string(), with).await;
    let channel = world.broker.channel().await;
    eventually("the broker to give up", PATIENCE, async || {
        let queue = world.broker.name(suffix);
        let got = channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap();
        if let Some(got) = got {
            got.acker.nack(BasicNackOptions { requeue: true, ..BasicNackOptions::default() }).await.unwrap();
        }
        (world.broker.queue_depth("dead-letters").await > before).then_some(())
    })
    .await;
}

/// The message ids of what lies in a queue, which is emptied.
async fn ids_in(world: &World, suffix: &str) -> Vec<String> {
    let channel = world.broker.channel().await;
    let mut ids = Vec::new();
    let queue = world.broker.name(suffix);
    let take = BasicGetOptions { no_ack: true };
    while let Some(got) = channel.basic_get(queue.as_str().into(), take).await.unwrap() {
        ids.push(got.delivery.properties.message_id().as_ref().unwrap().to_string());
    }
    ids
}

fn set(ids: impl IntoIterator<Item = String>) -> BTreeSet<String> {
    ids.into_iter().collect()
}

fn header<'a>(headers: &'a FieldTable, name: &str) -> Option<&'a AMQPValue> {
    headers.inner().get(name)
}

/// `dead list --json`.
async fn listed(cli: &Cli) -> Vec<Value> {
    let Value::Array(letters) = cli.run(&["dead", "list", "--json"]).await.good().json() else {
        panic!("an array");
    };
    letters
}

fn ids(listed: &[Value]) -> Vec<&str> {
    listed.iter().map(|letter| letter["id"].as_str().unwrap()).collect()
}
