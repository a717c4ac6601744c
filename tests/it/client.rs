//! The Rust client (`clients/rust`), as a team that publishes uses it: against real workers, and against what only pretends to
//! be one.

mod asking;
mod connection;
mod errors;
mod events;
mod hostile;
mod sealed;

use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel};
use serde_json::{Value, json};
use tokenkeeper_client::{Client, Error, Options};
use tokio::task::JoinHandle;

use crate::harness::{Dialect, Kind, World};

/// Options of a publisher of this world.
fn options(world: &World) -> Options {
    options_at(world, world.broker.url())
}

/// The same by another way to the broker. Asks once, and in clear, so that every test says itself what it wants beyond that.
fn options_at(world: &World, url: &str) -> Options {
    Options::new(url).prefix(world.broker.prefix()).sealed(false).retries(0)
}

async fn client(world: &World) -> Client {
    Client::connect(options(world)).await.expect("connect")
}

/// A world whose queues are declared, and which no worker works in.
pub(crate) async fn world_without_a_worker() -> World {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.start_worker().await.stop().await;
    world
}

/// The reply of a worker that hands out a token.
fn granted(user: &str, host: &str, value: &str) -> Value {
    json!({
        "status": "ok", "user_id": user, "host": host, "refresh": "none", "warnings": [],
        "token": {"value": value, "username": "x", "userinfo": format!("x:{value}"), "scopes": [],
                  "updated_at": "2020-01-01T00:00:00.000Z", "expires_at": null,
                  "reserved_until": "2020-01-01T00:05:00.000Z"},
    })
}

/// A request that a replier got.
pub(crate) struct Asked {
    pub(crate) body: Value,
    pub(crate) correlation_id: ShortString,
    properties: BasicProperties,
}

impl Asked {
    fn user(&self) -> &str {
        self.body["user_id"].as_str().expect("a user")
    }

    pub(crate) fn granted(&self, value: &str) -> Vec<u8> {
        let host = self.body["host"].as_str().expect("a host");
        granted(self.user(), host, value).to_string().into_bytes()
    }
}

fn refused(code: &str, retry_after_secs: u64) -> Vec<u8> {
    let error =
        json!({"code": code, "message": "not now", "retryable": true, "retry_after_secs": retry_after_secs});
    json!({"status": "error", "error": error}).to_string().into_bytes()
}

/// Somebody who takes messages out of their queue, and answers as the test wants it: with any number of bodies, each to any
/// correlation id. Ends when it is dropped.
pub(crate) struct Replier(JoinHandle<()>);

impl Replier {
    /// For token requests.
    pub(crate) async fn start(
        world: &World,
        answer: impl FnMut(&Asked) -> Vec<(ShortString, Vec<u8>)> + Send + 'static,
    ) -> Self {
        Self::of(world, "token-requests", answer).await
    }

    pub(crate) async fn of(
        world: &World,
        queue: &str,
        mut answer: impl FnMut(&Asked) -> Vec<(ShortString, Vec<u8>)> + Send + 'static,
    ) -> Self {
        let channel = world.broker.channel().await;
        let queue = world.broker.name(queue);
        let unacked = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consumer = channel.basic_consume(queue.into(), "".into(), unacked, FieldTable::default()).await;
        let mut requests = consumer.expect("consume requests");
        Self(tokio::spawn(async move {
            while let Some(Ok(request)) = requests.next().await {
                let body = serde_json::from_slice(&request.data).expect("JSON");
                let properties = request.properties.clone();
                let correlation_id = properties.correlation_id().clone().expect("a correlation id");
                let reply_to = properties.reply_to().clone().expect("a reply queue");
                let asked = Asked { body, correlation_id, properties };
                for (correlation_id, body) in answer(&asked) {
                    reply(&channel, &reply_to, correlation_id, &body).await;
                }
            }
        }))
    }
}

impl Drop for Replier {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn reply(channel: &Channel, to: &ShortString, correlation_id: ShortString, body: &[u8]) {
    let properties = BasicProperties::default().with_correlation_id(correlation_id);
    let options = BasicPublishOptions::default();
    let published = channel.basic_publish("".into(), to.clone(), options, body, properties).await;
    drop(published.expect("publish a reply").await);
}

/// Long enough to tell a wait from none, on a busy machine as well.
const A_SECOND: Duration = Duration::from_secs(1);

#[track_caller]
fn code(error: &Error) -> &str {
    error.code().unwrap_or_else(|| panic!("no worker's error: {error:?}")).as_str()
}
