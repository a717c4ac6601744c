//! `token.report`: a host rejected a token. It is refreshed as soon as nobody holds it, and never under somebody who does.

use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokenkeeper::domain::provider::Lifespan;
use tokenkeeper_testkit::queues::{BasicProperties, TOKEN_REPORT};

use crate::harness::reply::{error_message, token};
use crate::harness::{Dialect, Kind, PATIENCE, World, eventually, on_every_database};

pub(crate) fn digest(token: &str) -> String {
    use std::fmt::Write as _;
    Sha256::digest(token).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("text takes everything");
        text
    })
}

async fn report(world: &World, user: &str, token: &str) -> Value {
    let body = json!({"user_id": user, "host": world.scm.host(), "token_sha256": digest(token)});
    world.broker.request(TOKEN_REPORT, body).await.body
}

fn ok(result: &str) -> Value {
    json!({"status": "ok", "result": result})
}

/// Waits until nobody holds a user's token any more.
async fn until_free(world: &World, user: &str) {
    eventually("the reservation to be over", PATIENCE, async || {
        let until = world.entry(user).await.state.reserved_until;
        until.is_none_or(|until| until.as_millis() <= world.scm.now_ms()).then_some(())
    })
    .await;
}

on_every_database! {
    async fn a_reported_token_that_nobody_holds_is_replaced_at_once(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let worker = world.start_worker().await;
        let pair = world.user_with_token("jdoe").await;

        assert_eq!(report(&world, "jdoe", &pair.access_token).await, ok("refreshed"));

        let reply = world.request("jdoe").await;
        assert_eq!(token(&reply)["value"], json!(world.scm.latest_pair("jdoe").unwrap().access_token));
        assert_ne!(reply["token"]["value"], json!(pair.access_token));
        assert_eq!((&reply["refresh"], &reply["warnings"]), (&json!("none"), &json!([])));
        assert_eq!(report(&world, "jdoe", &pair.access_token).await, ok("not_current"), "it is known");
        assert_eq!(world.scm.refreshes("jdoe"), 1);
        worker.stop().await;
    }

    async fn a_reported_token_that_is_held_is_refreshed_where_the_old_one_goes_on_working(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        world.apply_provider(|provider| provider.overrides.old_token_grace_secs = Some(Lifespan::Unlimited)).await;
        let worker = world.start_worker().await;
        let pair = world.user_with_token("jdoe").await;
        token(&world.request_for("jdoe", 900).await);

        assert_eq!(report(&world, "jdoe", &pair.access_token).await, ok("refreshed"));

        let reply = world.request_for("jdoe", 60).await;
        assert_eq!(token(&reply)["value"], json!(world.scm.latest_pair("jdoe").unwrap().access_token));
        assert_eq!(world.scm.refreshes("jdoe"), 1);
        worker.stop().await;
    }

    async fn a_reported_token_that_is_held_is_not_refreshed_where_that_would_end_it(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let worker = world.start_worker().await;
        let pair = world.user_with_token("jdoe").await;
        token(&world.request_for("jdoe", 2).await);

        assert_eq!(report(&world, "jdoe", &pair.access_token).await, ok("held"));

        let held = world.request_for("jdoe", 1).await;
        assert_eq!(token(&held)["value"], json!(pair.access_token));
        assert_eq!(held["warnings"], json!(["token_reported"]));
        assert_eq!(world.scm.refreshes("jdoe"), 0);
        until_free(&world, "jdoe").await;
        let reply = world.request_for("jdoe", 1).await;
        assert_eq!((&reply["refresh"], &reply["warnings"]), (&json!("required"), &json!([])));
        assert_eq!(token(&reply)["value"], json!(world.scm.latest_pair("jdoe").unwrap().access_token));
        worker.stop().await;
    }
}

#[tokio::test]
async fn a_token_that_was_revoked_and_reported_is_handed_out_no_more() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let pair = world.user_with_token("jdoe").await;
    world.scm.revoke("jdoe");
    assert_eq!(token(&world.request_for("jdoe", 1).await)["value"], json!(pair.access_token), "nobody knows");
    until_free(&world, "jdoe").await;

    let told = report(&world, "jdoe", &pair.access_token).await;

    error_message(&told, "reauthorization_required");
    error_message(&world.request("jdoe").await, "reauthorization_required");
    let login = world.user_with_token("jdoe").await;
    assert_eq!(token(&world.request("jdoe").await)["value"], json!(login.access_token));
    worker.stop().await;
}

#[tokio::test]
async fn a_reported_token_without_refresh_token_is_withdrawn() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let body = json!({"user_id": "jdoe", "host": world.scm.host(), "token": {"value": "for-ever"}});
    let log_in = async || world.broker.request("token.store", body.clone()).await.body;
    assert_eq!(log_in().await, json!({"status": "ok"}));

    assert_eq!(report(&world, "jdoe", "for-ever").await, ok("withdrawn"));

    let message = world.request("jdoe").await;
    assert!(error_message(&message, "not_refreshable").contains("reported"));
    assert_eq!(log_in().await, json!({"status": "ok"}));
    assert_eq!(
        world.request("jdoe").await["status"],
        "ok",
        "whoever logs in with it again says that it works"
    );
    worker.stop().await;
}

#[tokio::test]
async fn a_report_of_another_token_than_the_current_one_changes_nothing() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let pair = world.user_with_token("jdoe").await;
    for (user, token) in [("jdoe", "another-token"), ("nobody", pair.access_token.as_str())] {
        assert_eq!(report(&world, user, token).await, ok("not_current"));
    }
    let elsewhere = json!({"user_id": "jdoe", "host": "h.example.org", "token_sha256": digest("t")});
    error_message(&world.broker.request(TOKEN_REPORT, elsewhere).await.body, "unknown_host");
    let raw = json!({"user_id": "jdoe", "host": world.scm.host(), "token_sha256": pair.access_token});
    let refused = world.broker.request(TOKEN_REPORT, raw).await.body;
    assert!(error_message(&refused, "invalid_request").starts_with("token_sha256: must be the SHA-256"));
    let letters = world.broker.wait_for_dead_letters(1).await;
    assert!(!String::from_utf8_lossy(&letters[0].body).contains(&pair.access_token), "it is sealed");
    assert!(!world.entry("jdoe").await.state.reported);
    assert_eq!(token(&world.request("jdoe").await)["value"], json!(pair.access_token));
    worker.stop().await;
}

#[tokio::test]
async fn a_report_needs_no_reply_to() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let pair = world.user_with_token("jdoe").await;
    let body =
        json!({"user_id": "jdoe", "host": world.scm.host(), "token_sha256": digest(&pair.access_token)});
    world.broker.publish(TOKEN_REPORT, body.to_string(), BasicProperties::default()).await;
    eventually("a new token", Duration::from_secs(10), async || {
        (world.scm.refreshes("jdoe") == 1 && world.entry("jdoe").await.generation == 2).then_some(())
    })
    .await;
    worker.stop().await;
}
