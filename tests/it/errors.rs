//! Every error code of the contract, through the queue: when it comes, what it says, and which one comes first.

use std::time::Duration;

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokenkeeper::domain::clock::Timestamp;
use tokenkeeper::domain::secret::KeyRing;
use tokenkeeper::store::Guarded;
use tokenkeeper_entity::token_entry;
use tokenkeeper_testkit::queues::{BasicProperties, TOKEN_REQUEST, TOKEN_STORE, WORKSPACE_START};

use crate::harness::reply::{error_message, token};
use crate::harness::{Dialect, Fault, Kind, SimulatedScm, World, on_every_database};

async fn ask_with(world: &World, body: Value, properties: BasicProperties) -> Value {
    world.broker.send(TOKEN_REQUEST, body.to_string(), properties).await.reply().await.body
}

async fn ask(world: &World, body: Value) -> Value {
    ask_with(world, body, BasicProperties::default()).await
}

fn now(world: &World) -> Timestamp {
    Timestamp::from_millis(world.scm.now_ms())
}

on_every_database! {
    async fn a_missing_host_user_identity_or_token_is_reported_in_this_order(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let other = SimulatedScm::start_as(Dialect::GitLab).await;
        world.apply(&other, |_| {}).await;
        let worker = world.start_worker().await;
        let (here, there, nowhere) = (world.scm.host(), other.host(), "nowhere.example.org".to_owned());
        world.user_with_token("jdoe").await;
        world.user_with_token("tokenless").await;
        token_entry::Entity::delete_many()
            .filter(token_entry::Column::Id.eq(world.entry("tokenless").await.id))
            .exec(&world.connection().await)
            .await
            .unwrap();

        for (user, host, code) in [
            ("jdoe", &nowhere, "unknown_host"),
            ("nobody", &nowhere, "unknown_host"),
            ("nobody", &here, "user_not_found"),
            ("jdoe", &there, "identity_not_found"),
            ("tokenless", &there, "identity_not_found"),
            ("tokenless", &here, "token_not_found"),
        ] {
            let reply = ask(&world, json!({"user_id": user, "host": host})).await;
            error_message(&reply, code);
            assert_eq!((&reply["user_id"], &reply["host"]), (&json!(user), &json!(host)), "both are echoed");
            assert_eq!(reply["error"].get("retry_after_secs"), None, "what does not apply is left out");
        }
        assert!(world.scm.log().is_empty());
        // The identity is still there: a login gives it a token again.
        world.user_with_token("tokenless").await;
        token(&world.request("tokenless").await);
        worker.stop().await;
    }

    async fn each_cause_of_a_failed_refresh_has_its_own_error_code(kind: Kind) {
        let mut world = World::new(kind, Dialect::GitHub).await;
        world.set("worker.request_budget_secs", 3).set("refresh.wait_secs", 1);
        world.set("refresh.opportunistic_budget_secs", 1);
        let worker = world.start_worker().await;
        for user in ["revoked", "misconfigured", "unavailable", "busy"] {
            world.user_with_expired_token(user).await;
        }
        world.scm.revoke("revoked");
        world.scm.fail_always_for("misconfigured", Fault::InvalidClient);
        world.scm.fail_always_for("unavailable", Fault::RetryAfter { status: 503, seconds: 77 });
        let busy = world.entry("busy").await;
        let lease = Duration::from_hours(1);
        let leased = world.store.take_lease(&busy, None, "another worker", "sent", now(&world), lease).await;
        assert_eq!(leased.unwrap(), Guarded::Done);

        error_message(&world.request("revoked").await, "reauthorization_required");
        error_message(&world.request("misconfigured").await, "provider_misconfigured");
        let unavailable = world.request("unavailable").await;
        error_message(&unavailable, "provider_unavailable");
        assert_eq!(unavailable["error"]["retry_after_secs"], 77);
        error_message(&world.request("busy").await, "refresh_timeout");
        assert_eq!(world.scm.refresh_requests("busy"), 0);
        worker.stop().await;
    }
}

#[tokio::test]
async fn a_request_that_is_older_than_its_time_is_told_so_and_refreshes_nothing() {
    let world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    let worker = world.start_worker().await;
    world.user_with_expired_token("jdoe").await;
    let published = u64::try_from(world.scm.now_ms() / 1000).unwrap();
    let aged = |secs| BasicProperties::default().with_timestamp(published - secs);

    let too_old = ask_with(&world, world.token_request("jdoe"), aged(120)).await;
    error_message(&too_old, "deadline_exceeded");
    let too_old =
        ask_with(&world, world.token_request("jdoe"), aged(10).with_expiration("5000".into())).await;
    error_message(&too_old, "deadline_exceeded");
    assert!(world.scm.log().is_empty());

    token(&ask_with(&world, world.token_request("jdoe"), aged(2)).await);
    let ahead = BasicProperties::default().with_timestamp(published + 3600);
    token(&ask_with(&world, world.token_request("jdoe"), ahead).await);
    worker.stop().await;
}

// --- forbidden ---

/// A world in which jdoe has a token, and the rules give its publisher tokens and workspace starts at its host alone.
async fn world_with_rules() -> World {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let before_the_rules = world.start_worker().await;
    world.user_with_token("jdoe").await;
    before_the_rules.stop().await;
    let hosts = [world.scm.host()];
    let rules = json!([
        {"publisher": world.publisher(), "hosts": hosts, "messages": ["token.request", "workspace.start"]},
        {"publisher": "login-flow", "hosts": ["*"], "messages": ["token.store"]},
    ]);
    world.set("access.rules", rules);
    world
}

fn signed(world: &World) -> BasicProperties {
    BasicProperties::default().with_user_id(world.publisher().as_str().into())
}

#[tokio::test]
async fn a_publisher_gets_what_the_rules_give_it_and_nothing_else() {
    let world = world_with_rules().await;
    let other = SimulatedScm::start_as(Dialect::GitLab).await;
    world.apply(&other, |_| {}).await;
    let worker = world.start_worker().await;
    let at = |host: &str| json!({"user_id": "jdoe", "host": host});

    token(&ask_with(&world, at(&world.scm.host()), signed(&world)).await);
    let reply = ask_with(&world, at(&other.host()), signed(&world)).await;
    error_message(&reply, "forbidden");
    assert_eq!((&reply["user_id"], &reply["host"]), (&json!("jdoe"), &json!(other.host())));
    error_message(&ask(&world, at(&world.scm.host())).await, "forbidden");

    let body = json!({
        "workspace_id": "w", "user_id": "jdoe",
        "repositories": [other.clone_url("p", "r"), world.scm.clone_url("p", "r")],
    });
    let started =
        world.broker.send(WORKSPACE_START, body.to_string(), signed(&world)).await.reply().await.body;
    error_message(&started["tokens"][0], "forbidden");
    token(&started["tokens"][1]);
    worker.stop().await;
}

#[tokio::test]
async fn a_pair_that_its_publisher_may_not_store_is_not_stored() {
    let world = world_with_rules().await;
    let worker = world.start_worker().await;
    let before = world.entry("jdoe").await;
    let body = world.scm.token_store_body(&world.scm.authorize("jdoe")).to_string();
    let reply = world.broker.send(TOKEN_STORE, body, signed(&world)).await.reply().await.body;
    error_message(&reply, "forbidden");
    assert_eq!(world.entry("jdoe").await.generation, before.generation);
    worker.stop().await;
}

#[tokio::test]
async fn forbidden_is_checked_after_the_message_and_before_anything_that_would_reveal_who_has_a_token() {
    let world = world_with_rules().await;
    let worker = world.start_worker().await;
    let here = world.scm.host();
    for (body, code) in [
        (json!({"user_id": "jdoe", "host": "nowhere.example.org"}), "forbidden"),
        (json!({"user_id": "nobody", "host": here}), "forbidden"),
        (json!({"user_id": "jdoe", "host": here}), "forbidden"),
        (json!({"user_id": "", "host": here}), "invalid_request"),
    ] {
        error_message(&ask(&world, body).await, code);
    }
    worker.stop().await;
}

// --- internal ---

#[tokio::test]
async fn without_the_key_that_sealed_it_nothing_is_served_and_the_reply_names_no_key() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    worker.stop().await;
    let other_key = KeyRing::generate("other").expose_secret().to_owned();
    world.set("encryption.keys", &other_key);
    world.forget_keys_in_use().await;
    let worker = world.start_worker().await;

    let reply = world.request("jdoe").await;

    let message = error_message(&reply, "internal");
    assert!(message.contains("decrypted") && !message.contains("other"), "{message}");
    worker.stop().await;
    // Both keys in the ring: the old one still opens.
    let both = format!("{other_key},{}", world.keys);
    world.set("encryption.keys", both);
    let worker = world.start_worker().await;
    token(&world.request("jdoe").await);
    worker.stop().await;
}
