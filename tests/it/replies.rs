//! Where replies go, what they carry, and what becomes of one that nobody waits for.

use futures_util::future::join_all;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicGetOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde_json::{Value, json};
use tokenkeeper::store::Found;
use tokenkeeper_testkit::queues::{BasicProperties, Reply, TOKEN_REQUEST, TOKEN_STORE, WORKSPACE_START};

use crate::harness::reply::token;
use crate::harness::{Dialect, Kind, PATIENCE, World, eventually};

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// The series that counts replies nobody waited for.
const UNROUTABLE: &str = "tokenkeeper_unroutable_replies_total";

fn workspace_start(world: &World, user: &str) -> Value {
    json!({"workspace_id": "ws-1", "user_id": user, "repositories": [world.scm.clone_url("proj", "repo")]})
}

fn to(reply_to: &str) -> BasicProperties {
    BasicProperties::default().with_reply_to(reply_to.into())
}

/// A reply queue of the test's own, and the channel that it lives on.
async fn reply_queue(world: &World, name: &str) -> Channel {
    let channel = world.broker.channel().await;
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(name.into(), exclusive, FieldTable::default()).await.unwrap();
    channel
}

/// Publishes a request for `user` whose reply goes to a queue that is not there.
async fn ask_and_leave(world: &World, user: &str) {
    let nobody = to(&format!("{}-nobody-waits-here", world.broker.prefix()));
    world.broker.publish(TOKEN_REQUEST, world.token_request(user).to_string(), nobody).await;
}

// --- No reply_to ---

#[tokio::test]
async fn a_request_that_does_not_say_where_its_reply_goes_is_a_dead_letter_and_refreshes_nothing() {
    let world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    let worker = world.start_worker().await;
    world.user_with_expired_token("jdoe").await;
    let before = world.entry("jdoe").await;

    for (routing_key, body) in
        [(TOKEN_REQUEST, world.token_request("jdoe")), (WORKSPACE_START, workspace_start(&world, "jdoe"))]
    {
        let body = body.to_string();
        world.broker.publish(routing_key, &body, BasicProperties::default()).await;
        let letters = world.broker.wait_for_dead_letters(1).await;
        let letter = &letters[0];
        assert_eq!(letter.body, body.as_bytes());
        let header = |name: &str| match letter.headers.inner().get(name) {
            Some(AMQPValue::LongString(text)) => text.to_string(),
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(header("x-tokenkeeper-reason"), "invalid_request");
        assert!(header("x-tokenkeeper-detail").contains("reply_to"), "{}", header("x-tokenkeeper-detail"));
    }

    assert!(world.scm.log().is_empty(), "the provider is not asked");
    let after = world.entry("jdoe").await;
    assert_eq!((after.generation, after.state, after.lease), (before.generation, before.state, before.lease));
    worker.stop().await;
}

#[tokio::test]
async fn an_empty_reply_to_counts_as_missing() {
    let world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    world.broker.publish(TOKEN_REQUEST, world.token_request("jdoe").to_string(), to("")).await;
    assert_eq!(world.broker.wait_for_dead_letters(1).await.len(), 1);
    assert!(world.scm.log().is_empty());
    worker.stop().await;
}

#[tokio::test]
async fn a_pair_is_stored_though_nobody_waits_for_the_reply() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let provider = world.store.provider(&world.scm.host()).await.unwrap().expect("the provider is there");
    let pair = world.scm.authorize("jdoe");
    let body = world.scm.token_store_body(&pair).to_string();

    world.broker.publish(TOKEN_STORE, body, BasicProperties::default()).await;

    eventually("the pair to be stored", PATIENCE, async || {
        let found = world.store.find("jdoe", provider.id).await.unwrap();
        matches!(found, Found::Entry(_)).then_some(())
    })
    .await;
    assert_eq!(token(&world.request("jdoe").await)["value"], json!(pair.access_token));
    assert!(world.broker.dead_letters().await.is_empty());
    worker.stop().await;
}

// --- What a reply carries ---

#[allow(clippy::ref_option, reason = "this is how the properties give it")]
fn text(value: &Option<ShortString>) -> Option<&str> {
    value.as_ref().map(ShortString::as_str)
}

fn traceparent(reply: &Reply) -> Option<String> {
    match reply.properties.headers().as_ref()?.inner().get("traceparent")? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        other => panic!("{other:?}"),
    }
}

fn traced() -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert("traceparent".into(), AMQPValue::LongString(TRACE.into()));
    headers.insert("x-upstream".into(), AMQPValue::LongString("stays here".into()));
    BasicProperties::default().with_headers(headers)
}

#[tokio::test]
async fn every_reply_says_what_it_is_and_to_which_request_and_trace_it_belongs() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let pair = world.user_with_token("jdoe").await;
    let cases = [
        (TOKEN_REQUEST, world.token_request("jdoe"), "token.reply", "ok"),
        (TOKEN_REQUEST, world.token_request("nobody"), "token.reply", "error"),
        (TOKEN_REQUEST, json!({}), "token.reply", "error"),
        (WORKSPACE_START, workspace_start(&world, "jdoe"), "workspace.start.reply", "ok"),
        (WORKSPACE_START, workspace_start(&world, "nobody"), "workspace.start.reply", "error"),
        (WORKSPACE_START, json!({}), "workspace.start.reply", "error"),
        (TOKEN_STORE, world.scm.token_store_body(&pair), "token.store.reply", "ok"),
        (TOKEN_STORE, json!({}), "token.store.reply", "error"),
    ];
    for (number, (routing_key, body, reply_type, status)) in cases.into_iter().enumerate() {
        let correlation_id = format!("c-{number}");
        let properties =
            traced().with_correlation_id(correlation_id.as_str().into()).with_message_id("m".into());
        let reply = world.broker.send(routing_key, body.to_string(), properties).await.reply().await;
        assert_eq!(reply.body["status"], status, "{}", reply.body);
        assert_eq!(text(reply.properties.kind()), Some(reply_type));
        assert_eq!(text(reply.properties.content_type()), Some("application/json"));
        assert_eq!(text(reply.properties.correlation_id()), Some(correlation_id.as_str()));
        assert_eq!(traceparent(&reply).as_deref(), Some(TRACE));
        let headers = reply.properties.headers().as_ref().unwrap();
        assert_eq!(headers.inner().len(), 1, "no other header travels back: {headers:?}");
    }
    worker.stop().await;
}

#[tokio::test]
async fn the_message_id_stands_in_for_a_correlation_id_that_is_absent() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    let properties = BasicProperties::default().with_message_id("m-1".into());
    let body = world.token_request("jdoe").to_string();
    let reply = world.broker.send(TOKEN_REQUEST, body, properties).await.reply().await;
    assert_eq!(text(reply.properties.correlation_id()), Some("m-1"));
    assert_eq!(traceparent(&reply), None, "none came, none goes back");
    worker.stop().await;
}

#[tokio::test]
async fn a_request_without_correlation_id_and_message_id_is_answered_without_either() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    let queue = format!("{}-other-replies", world.broker.prefix());
    let channel = reply_queue(&world, &queue).await;

    world.broker.publish(TOKEN_REQUEST, world.token_request("jdoe").to_string(), to(&queue)).await;

    let reply = eventually("the reply", PATIENCE, async || {
        channel.basic_get(queue.as_str().into(), BasicGetOptions { no_ack: true }).await.unwrap()
    })
    .await;
    assert_eq!(reply.properties.correlation_id(), &None);
    token(&serde_json::from_slice(&reply.data).unwrap());
    worker.stop().await;
}

#[tokio::test]
async fn direct_reply_to_is_answered_for_every_kind_of_message() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.spawn_worker().await;
    let pair = world.scm.authorize("jdoe");
    let stored = world.broker.request_direct(TOKEN_STORE, world.scm.token_store_body(&pair)).await;
    assert_eq!(stored.body, json!({"status": "ok"}));
    let reply = world.broker.request_direct(TOKEN_REQUEST, world.token_request("jdoe")).await;
    assert_eq!(token(&reply.body)["value"], json!(pair.access_token));
    let reply = world.broker.request_direct(WORKSPACE_START, workspace_start(&world, "jdoe")).await;
    assert_eq!(token(&reply.body["tokens"][0])["value"], json!(pair.access_token));
    let refused = world.broker.request_direct(TOKEN_REQUEST, json!({"user_id": "jdoe"})).await;
    assert_eq!(refused.body["error"]["code"], "invalid_request");
    assert!(worker.metric(UNROUTABLE).await.abs() < f64::EPSILON, "none of them was returned");
    worker.stop(&world).await;
}

// --- Nobody waits any more ---

#[tokio::test]
async fn a_reply_without_a_queue_is_counted_and_its_request_is_not_delivered_again() {
    let world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    let worker = world.spawn_worker().await;
    world.user_with_token("jdoe").await;

    ask_and_leave(&world, "jdoe").await;

    eventually("the reply to be counted", PATIENCE, async || {
        (worker.metric(UNROUTABLE).await > 0.5).then_some(())
    })
    .await;
    let settled = r#"tokenkeeper_messages_total{type="token.request",outcome="ok"}"#;
    eventually("the request to be settled", PATIENCE, async || {
        (worker.metric(settled).await > 0.5).then_some(())
    })
    .await;
    assert_eq!(world.scm.refreshes("jdoe"), 1, "what was done for it is done");
    worker.stop(&world).await;
    // What the broker takes back goes to the front of the queue.
    assert_eq!(first_after_sentinel(&world).await, b"sentinel");
    assert!(world.broker.dead_letters().await.is_empty());
}

/// Publishes a last message and takes the first one: the same, unless another one was given back.
async fn first_after_sentinel(world: &World) -> Vec<u8> {
    world.broker.publish(TOKEN_REQUEST, "sentinel", BasicProperties::default()).await;
    let channel = world.broker.channel().await;
    let queue = world.broker.name("token-requests");
    let taken = eventually("the last message", PATIENCE, async || {
        channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await.unwrap()
    })
    .await;
    taken.delivery.acker.ack(BasicAckOptions::default()).await.unwrap();
    taken.delivery.data
}

#[tokio::test]
async fn a_refreshed_pair_is_stored_although_its_requester_has_left() {
    let world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    let worker = world.spawn_worker().await;
    let old = world.user_with_expired_token("jdoe").await;
    let gate = world.scm.hold_refreshes();
    let queue = format!("{}-other-replies", world.broker.prefix());
    let channel = reply_queue(&world, &queue).await;
    world.broker.publish(TOKEN_REQUEST, world.token_request("jdoe").to_string(), to(&queue)).await;
    gate.wait_for_parked(1).await;
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();

    gate.release();

    eventually("the reply to be counted", PATIENCE, async || {
        (worker.metric(UNROUTABLE).await > 0.5).then_some(())
    })
    .await;
    let reply = world.request("jdoe").await;
    assert_eq!(reply["refresh"], "reserved", "{reply}");
    assert_ne!(token(&reply)["value"], json!(old.access_token));
    assert_eq!(world.scm.refreshes("jdoe"), 1);
    worker.stop(&world).await;
}

#[tokio::test]
async fn replies_without_a_queue_do_not_disturb_other_replies_in_flight() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.spawn_worker().await;
    let users: Vec<String> = (0..10).map(|number| format!("user-{number}")).collect();
    let mut pairs = Vec::new();
    for user in &users {
        pairs.push(world.user_with_token(user).await);
    }
    let good = join_all((0..200).map(|number| world.request(&users[number % users.len()])));
    let vanished = join_all((0..7).map(|number| ask_and_leave(&world, &users[number])));

    let (replies, _) = tokio::join!(good, vanished);

    for (number, reply) in replies.iter().enumerate() {
        assert_eq!(token(reply)["value"], json!(pairs[number % users.len()].access_token));
    }
    eventually("every vanished reply to be counted", PATIENCE, async || {
        (worker.metric(UNROUTABLE).await > 6.5).then_some(())
    })
    .await;
    let settled = r#"tokenkeeper_messages_total{type="token.request",outcome="ok"}"#;
    eventually("every request to be settled", PATIENCE, async || {
        (worker.metric(settled).await > 206.5).then_some(())
    })
    .await;
    assert!((worker.metric(UNROUTABLE).await - 7.0).abs() < 0.5, "the good ones are not counted with them");
    assert!((worker.metric(settled).await - 207.0).abs() < 0.5, "nothing was delivered twice");
    assert!(world.broker.stray_replies().is_empty(), "nobody got a second reply");
    worker.stop(&world).await;
}
