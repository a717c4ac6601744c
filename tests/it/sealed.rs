//! Tokens that cross the broker in a sealed box, in replies and in logins.

mod examples;
mod logins;
mod replies;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tokenkeeper::domain::sealed_box::SecretKey;
use tokenkeeper_testkit::queues::{TOKEN_REQUEST, TOKEN_STORE, WORKSPACE_START};

use crate::harness::reply::{error_message, token};
use crate::harness::{Dialect, Kind, World};

async fn ask(world: &World, routing_key: &str, body: Value) -> Value {
    world.broker.request(routing_key, body).await.body
}

/// What lies in the sealed box of a token.
fn opened(key: &SecretKey, token: &Value) -> Value {
    let sealed = BASE64.decode(token["sealed"].as_str().expect("a sealed token")).expect("base64");
    serde_json::from_slice(&key.open(&sealed).expect("it opens")).expect("JSON")
}

/// A `token.request` whose reply this key opens.
fn sealed_request(world: &World, user: &str, key: &SecretKey) -> Value {
    let mut body = world.token_request(user);
    body["reply_public_key"] = key.public_key().to_string().into();
    body
}
