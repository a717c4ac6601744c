//! Invariant 6: no token, secret or key in logs, metrics, replies to others, dead-letter headers or, in clear, in
//! the database.

use sea_orm::EntityTrait;
use secrecy::ExposeSecret;
use serde_json::json;
use tokenkeeper::contract::{MessageKind, decode};
use tokenkeeper::domain::secret::KeyRing;
use tokenkeeper_entity::{auth_provider, identity, token_entry};
use tokenkeeper_testkit::proxy::FaultProxy;
use tokenkeeper_testkit::queues::{BasicProperties, TOKEN_REQUEST, TOKEN_STORE};

use crate::harness::logs::assert_holds_none_of;
use crate::harness::{Dialect, Fault, Kind, PATIENCE, World, eventually, on_every_database};

/// Not issued by the SCM: it comes in a message that breaks the contract.
const MISPLACED_TOKEN: &str = "misplaced-token-9f8e7d6c5b4a";

/// Everything that happens to tokens happens once: what goes well, what fails in each of its ways, what nobody
/// receives, what breaks the contract, what is cut off.
async fn an_eventful_life(world: &World, proxy: &FaultProxy) {
    world.user_with_token("alice").await;
    assert_eq!(world.request("alice").await["refresh"], "opportunistic");
    assert_eq!(world.request("alice").await["refresh"], "reserved");
    for (user, fault, status) in [
        ("bob", Fault::Status(500), "ok"),
        ("carol", Fault::InvalidGrant, "error"),
        ("dave", Fault::InvalidClient, "error"),
        ("erin", Fault::Html, "error"),
        ("frank", Fault::CloseAfter, "error"),
        ("grace", Fault::Truncated, "error"),
        ("heidi", Fault::Oversized, "error"),
        ("ivan", Fault::Redirect, "error"),
    ] {
        world.user_with_expired_token(user).await;
        world.scm.fail_next(1, fault.clone());
        let reply = world.request(user).await;
        assert_eq!(reply["status"], status, "{fault:?}: {}", reply["error"]);
        let secrets = world.secrets();
        if status == "error" {
            assert_holds_none_of(&reply.to_string(), &secrets, "a reply without a token");
        }
    }
    let body = world.token_request("alice").to_string();
    let gone = BasicProperties::default().with_reply_to("nobody.listens.here".into());
    world.broker.publish(TOKEN_REQUEST, body, gone).await;
    let malformed = json!({"user_id": "mallory", "host": world.scm.host(), "token": MISPLACED_TOKEN});
    let refused = world.broker.request(TOKEN_STORE, malformed).await;
    assert_eq!(refused.body["error"]["code"], "invalid_request");
    assert_holds_none_of(&refused.body.to_string(), &[MISPLACED_TOKEN.to_owned()], "a refusal");
    let letters = world.broker.wait_for_dead_letters(1).await;
    assert_holds_none_of(
        &format!("{:?}", letters[0].headers),
        &[MISPLACED_TOKEN.to_owned()],
        "a dead letter",
    );
    let body = String::from_utf8_lossy(&letters[0].body);
    assert_holds_none_of(&body, &[MISPLACED_TOKEN.to_owned()], "the body of a dead letter");
    proxy.cut_all();
    assert_eq!(world.request("alice").await["status"], "ok");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_at_its_most_talkative_tells_no_secret_in_log_or_metrics() {
    let mut world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    let proxy = FaultProxy::start_for_url(world.broker.url(), 5672).await;
    let url = proxy.url(world.broker.url());
    world.set("broker.url", url).set("refresh.retry_initial_ms", 20);
    let worker = world.spawn_worker().await;

    an_eventful_life(&world, &proxy).await;

    eventually("the lost reply to be counted", PATIENCE, async || {
        (worker.count("tokenkeeper_unroutable_replies_total").await > 0).then_some(())
    })
    .await;
    let secrets: Vec<String> = world.secrets().into_iter().chain([MISPLACED_TOKEN.to_owned()]).collect();
    assert!(secrets.len() > 20, "there were secrets to be told");
    assert_holds_none_of(&worker.get("metrics").await.1, &secrets, "/metrics");
    let log = worker.log();
    for told in ["alice", "carol", "opportunistic", "reauthorization_required", "DEBUG"] {
        assert!(log.contains(told), "the log does not tell of {told}: it was not captured");
    }
    assert_holds_none_of(&log, &secrets, "a worker process");
    worker.stop(&world).await;
}

on_every_database! {
    async fn nothing_secret_is_in_the_database_in_clear(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        let worker = world.start_worker().await;
        world.user_with_token("alice").await;
        world.request("alice").await;
        world.user_with_expired_token("carol").await;
        world.scm.fail_next(1, Fault::InvalidGrant);
        world.request("carol").await;
        worker.stop().await;
        let db = tokenkeeper::store::database::open(&world.settings().database).await.unwrap();

        let entries = token_entry::Entity::find().all(&db).await.unwrap();
        let providers = auth_provider::Entity::find().all(&db).await.unwrap();
        let identities = identity::Entity::find().all(&db).await.unwrap();

        let texts = format!("{entries:?} {providers:?} {identities:?}");
        assert!(texts.contains("alice") && texts.contains(world.scm.client_id()), "what is not secret is there");
        assert_holds_none_of(&texts, &world.secrets(), "the database");
        let sealed = entries
            .into_iter()
            .flat_map(|entry| [Some(entry.access_token_sealed), entry.refresh_token_sealed])
            .flatten()
            .chain(providers.into_iter().map(|provider| provider.client_secret_sealed));
        for bytes in sealed {
            assert!(bytes.len() > 40, "nonce, tag and something between");
            assert_holds_none_of(&String::from_utf8_lossy(&bytes), &world.secrets(), "a sealed column");
        }
    }
}

#[test]
fn debug_of_what_holds_a_secret_does_not_show_it() {
    let body =
        br#"{"user_id":"u","host":"h","token":{"value":"value-secret","refresh_token":"refresh-secret"}}"#;
    let request = decode(MessageKind::TokenStore, body).unwrap();
    let keys = KeyRing::generate("k1");
    let ring = KeyRing::parse(keys.expose_secret()).unwrap();
    let shown = format!("{request:?} {keys:?} {ring:?}");
    let material = keys.expose_secret().split_once(':').unwrap().1.to_owned();
    assert_holds_none_of(&shown, &["value-secret".into(), "refresh-secret".into(), material], "Debug");
}
