//! A message that failed, may succeed later, and has nobody to be told, waits and is tried again.

use std::time::Duration;

use lapin::types::AMQPValue;
use sea_orm::{ActiveModelTrait, EntityTrait, IntoActiveModel};
use serde_json::{Value, json};
use tokenkeeper_entity::auth_provider;
use tokenkeeper_testkit::queues::{BasicProperties, FieldTable, TOKEN_STORE};

use crate::harness::reply::token;
use crate::harness::{Dialect, Kind, PATIENCE, WorkerProcess, World, eventually};

const PUT_OFF: &str = r#"tokenkeeper_messages_total{type="token.store",outcome="put_off"}"#;

/// A world whose workers cannot read its provider, as long as nobody mends that: a failure that comes at once and may end. The
/// broker would deliver what is given back to it twice.
async fn world_out_of_order(settings: &[(&str, Value)]) -> (World, auth_provider::Model) {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("broker.retry_delay_secs", 1).set("broker.delivery_limit", 1);
    for (name, value) in settings {
        world.set(name, value.clone());
    }
    let db = world.connection().await;
    let row = auth_provider::Entity::find().one(&db).await.unwrap().unwrap();
    let broken = auth_provider::Model { client_secret_sealed: vec![0], ..row.clone() };
    broken.into_active_model().reset_all().update(&db).await.unwrap();
    (world, row)
}

async fn mend(world: &World, row: auth_provider::Model) {
    row.into_active_model().reset_all().update(&world.connection().await).await.unwrap();
}

/// Publishes a login, and gives back its access token.
async fn publish_login(world: &World, properties: BasicProperties) -> String {
    let pair = world.scm.authorize("jdoe");
    world.broker.publish(TOKEN_STORE, world.scm.token_store_body(&pair).to_string(), properties).await;
    pair.access_token
}

async fn put_off(worker: &WorkerProcess, times: usize) {
    eventually("the login to be put off", PATIENCE, async || {
        (worker.count(PUT_OFF).await >= times).then_some(())
    })
    .await;
}

async fn until_stored(world: &World, access_token: &str) {
    eventually("the login to be stored", PATIENCE, async || {
        let reply = world.request("jdoe").await;
        (reply["status"] == "ok").then(|| assert_eq!(token(&reply)["value"], *access_token))
    })
    .await;
    assert!(world.broker.dead_letters().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_without_reply_to_waits_until_it_can_be_stored() {
    let (world, row) = world_out_of_order(&[]).await;
    let worker = world.spawn_worker().await;
    let access_token = publish_login(&world, BasicProperties::default()).await;
    put_off(&worker, 4).await;
    mend(&world, row).await;
    until_stored(&world, &access_token).await;
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_published_it_stays_known_and_nobody_can_pretend_to_be_another() {
    let (mut world, row) = world_out_of_order(&[]).await;
    let rule = json!([{"publisher": world.publisher(), "hosts": ["*"], "messages": ["token.store", "token.request"]}]);
    world.set("access.rules", rule);
    let worker = world.spawn_worker().await;
    let mut forged = FieldTable::default();
    forged.insert("x-tokenkeeper-origin".into(), text(r#"{"kind":"token.store","publisher":"guest"}"#));
    publish_login(&world, BasicProperties::default().with_headers(forged)).await;
    let signed = BasicProperties::default().with_user_id(world.publisher().as_str().into());
    let access_token = publish_login(&world, signed.clone()).await;
    put_off(&worker, 2).await;
    mend(&world, row).await;
    eventually("the login to be stored", PATIENCE, async || {
        let reply = world.send_with("jdoe", signed.clone()).await.reply().await.body;
        (reply["status"] == "ok").then(|| assert_eq!(token(&reply)["value"], *access_token))
    })
    .await;
    let letters = world.broker.wait_for_dead_letters(1).await;
    assert_eq!(header(&letters[0].headers, "x-tokenkeeper-reason"), text("forbidden"));
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_over_the_retry_limit_is_sealed_in_the_dead_letters_with_its_count() {
    let (world, _) = world_out_of_order(&[("broker.retry_limit", json!(2))]).await;
    let worker = world.spawn_worker().await;
    let access_token = publish_login(&world, BasicProperties::default()).await;
    let letters = world.broker.wait_for_dead_letters(1).await;
    assert_eq!(worker.count(PUT_OFF).await, 2);
    let detail = "a stored secret cannot be decrypted; the worker's log says which (tried 3 times)";
    assert_eq!(header(&letters[0].headers, "x-tokenkeeper-detail"), text(detail));
    assert_eq!(header(&letters[0].headers, "x-tokenkeeper-reason"), text("internal"));
    assert!(!String::from_utf8_lossy(&letters[0].body).contains(&access_token), "it is sealed");
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_expired_while_it_waited_is_not_tried_again() {
    let (world, _) = world_out_of_order(&[("broker.retry_delay_secs", json!(3))]).await;
    let worker = world.spawn_worker().await;
    publish_login(&world, BasicProperties::default().with_expiration("2000".into())).await;
    let letters = world.broker.wait_for_dead_letters(1).await;
    assert_eq!(header(&letters[0].headers, "x-tokenkeeper-reason"), text("deadline_exceeded"));
    assert_eq!(worker.count(PUT_OFF).await, 1);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_whose_reply_queue_does_not_exist_waits_as_well() {
    let (world, row) = world_out_of_order(&[]).await;
    let worker = world.spawn_worker().await;
    let properties = BasicProperties::default().with_reply_to("nobody-has-this-queue".into());
    let access_token = publish_login(&world, properties).await;
    put_off(&worker, 1).await;
    mend(&world, row).await;
    until_stored(&world, &access_token).await;
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_retry_delay_of_zero_the_broker_redelivers_and_counts() {
    let (world, _) = world_out_of_order(&[("broker.retry_delay_secs", json!(0))]).await;
    let worker = world.spawn_worker().await;
    publish_login(&world, BasicProperties::default()).await;
    let letters = eventually("the broker's dead letter", Duration::from_secs(20), async || {
        let letters = world.broker.dead_letters().await;
        (!letters.is_empty()).then_some(letters)
    })
    .await;
    assert_eq!(letters.len(), 1);
    assert!(letters[0].headers.inner().contains_key("x-death"), "the broker's delivery limit");
    assert_eq!(worker.count(PUT_OFF).await, 0);
    worker.stop(&world).await;
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn header(headers: &FieldTable, name: &str) -> AMQPValue {
    headers.inner().get(name).unwrap_or_else(|| panic!("no header {name}")).clone()
}
