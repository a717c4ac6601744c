//! `token.store`: what a login flow publishes is the user's pair from then on.

mod repeated;

use lapin::types::AMQPValue;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokenkeeper::domain::clock::Timestamp;
use tokenkeeper::store::{Failure, FailureKind, Guarded};
use tokenkeeper_entity::identity;
use tokenkeeper_testkit::queues::{BasicProperties, TOKEN_REQUEST, TOKEN_STORE};

use crate::harness::reply::{error_message, token};
use crate::harness::{Dialect, Kind, World, on_every_database};

async fn store(world: &World, body: Value) -> Value {
    world.broker.request(TOKEN_STORE, body).await.body
}

/// As little as a login flow may publish.
fn bare(world: &World, user: &str, value: &str) -> Value {
    json!({"user_id": user, "host": world.scm.host(), "token": {"value": value}})
}

async fn identity_of(world: &World, user: &str) -> identity::Model {
    let mut found = identity::Entity::find()
        .filter(identity::Column::UserId.eq(user))
        .all(&world.connection().await)
        .await
        .expect("read the identities");
    assert_eq!(found.len(), 1, "one identity");
    found.remove(0)
}

async fn stored_token(world: &World, user: &str) -> String {
    let entry = world.entry(user).await;
    world.store.open_access_token(&entry).unwrap().expose_secret().to_owned()
}

/// A reservation, a lease and a failure on the stored pair.
async fn burden(world: &World, user: &str) {
    let now = Timestamp::from_millis(world.scm.now_ms());
    let hour = std::time::Duration::from_hours(1);
    let entry = world.entry(user).await;
    let store = &world.store;
    assert_eq!(store.take_lease(&entry, None, "one", "sent", now, hour).await.unwrap(), Guarded::Done);
    let fingerprint = "f".to_owned();
    let failure = Failure { kind: FailureKind::Refused, message: "no".to_owned(), fingerprint, at: now };
    assert_eq!(store.give_up(&entry, "one", &failure).await.unwrap(), Guarded::Done);
    let entry = world.entry(user).await;
    assert_eq!(store.reserve(&entry, now.plus(hour), now).await.unwrap(), Guarded::Done);
    assert_eq!(store.take_lease(&entry, None, "two", "sent", now, hour).await.unwrap(), Guarded::Done);
}

on_every_database! {
    async fn a_new_pair_is_served_as_it_was_published(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let worker = world.start_worker().await;
        let pair = world.scm.authorize("jdoe");

        assert_eq!(store(&world, world.scm.token_store_body(&pair)).await, json!({"status": "ok"}));

        let reply = world.request("jdoe").await;
        let served = token(&reply);
        assert_eq!(served["value"], json!(pair.access_token));
        assert_eq!(served["username"], Dialect::GitHub.username());
        assert_eq!(served["scopes"], json!(Dialect::GitHub.scopes()));
        assert_eq!(served["expires_at"], json!(Timestamp::from_millis(pair.expires_at_ms)), "to the millisecond");
        let identity = identity_of(&world, "jdoe").await;
        assert_eq!((identity.auth_id.as_str(), identity.auth_name.as_deref()), ("jdoe", Some("jdoe")));
        worker.stop().await;
    }

    async fn another_login_replaces_all_that_belonged_to_the_pair_before(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        let worker = world.start_worker().await;
        world.user_with_token("jdoe").await;
        burden(&world, "jdoe").await;
        let before = world.entry("jdoe").await;
        assert!(before.failure.is_some() && before.lease.is_some() && before.state.reserved_until.is_some());

        let mut body = bare(&world, "jdoe", "another-token");
        body["auth_id"] = "jdoe-2".into();
        body["auth_name"] = "Jane Doe".into();
        body["token"]["scopes"] = json!(["REPO_READ"]);
        assert_eq!(store(&world, body).await, json!({"status": "ok"}));

        let after = world.entry("jdoe").await;
        assert_eq!(stored_token(&world, "jdoe").await, "another-token");
        assert_eq!(after.generation, before.generation + 1);
        assert_eq!((after.failure, after.lease, after.state.reserved_until), (None, None, None));
        assert_eq!((after.username, after.scopes), (None, vec!["REPO_READ".to_owned()]));
        assert_eq!((after.state.expires_at, after.state.refreshable), (None, false), "nothing of the old pair stays");
        let identity = identity_of(&world, "jdoe").await;
        assert_eq!((identity.auth_id.as_str(), identity.auth_name.as_deref()), ("jdoe-2", Some("Jane Doe")));
        worker.stop().await;
    }

    async fn fields_that_a_login_leaves_out_get_their_defaults(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        let worker = world.start_worker().await;

        assert_eq!(store(&world, bare(&world, "jdoe", "a-token")).await, json!({"status": "ok"}));

        let identity = identity_of(&world, "jdoe").await;
        assert_eq!((identity.auth_id.as_str(), identity.auth_name), ("jdoe", None), "the account is the user's id");
        let reply = world.request_for("jdoe", 86_400).await;
        let served = token(&reply);
        assert_eq!(served["username"], "x-token-auth", "the provider's");
        assert_eq!(served["expires_at"], Value::Null, "never");
        assert_eq!(served["scopes"], json!([]));
        assert_eq!(reply["refresh"], "none", "an opportunistic refresh is due, and there is nothing to refresh with");
        assert!(world.scm.log().is_empty());
        worker.stop().await;
    }

    async fn a_login_wins_over_a_refresh_that_is_under_way(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        world.apply_provider(|provider| provider.opportunistic_refresh = Some(false)).await;
        let worker = world.start_worker().await;
        world.user_with_expired_token("jdoe").await;
        let gate = world.scm.hold_refreshes();
        let body = world.token_request("jdoe").to_string();
        let waiting = world.broker.send(TOKEN_REQUEST, body, BasicProperties::default()).await;
        gate.wait_for_parked(1).await;

        let login = world.user_with_token("jdoe").await;
        let during = world.request("jdoe").await;
        assert_eq!(token(&during)["value"], json!(login.access_token), "nobody waits for the refresh any more");
        let generation = world.entry("jdoe").await.generation;
        gate.release();

        let reply = waiting.reply().await.body;
        assert_eq!(token(&reply)["value"], json!(login.access_token));
        assert_eq!(reply["refresh"], "none");
        assert_eq!(world.scm.refreshes("jdoe"), 1, "the refresh did come to its end");
        let entry = world.entry("jdoe").await;
        assert_eq!(entry.generation, generation, "and nothing of it was stored");
        assert_eq!(stored_token(&world, "jdoe").await, login.access_token);
        let kept = world.store.open_refresh_token(&entry).unwrap().unwrap();
        assert_eq!(kept.expose_secret(), login.refresh_token);
        worker.stop().await;
    }

    async fn a_login_is_not_undone_by_the_failure_of_a_refresh_that_is_under_way(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let worker = world.start_worker().await;
        world.user_with_expired_token("jdoe").await;
        world.scm.revoke("jdoe");
        let gate = world.scm.hold_refreshes();
        let body = world.token_request("jdoe").to_string();
        let waiting = world.broker.send(TOKEN_REQUEST, body, BasicProperties::default()).await;
        gate.wait_for_parked(1).await;

        let login = world.user_with_token("jdoe").await;
        gate.release();

        assert_eq!(token(&waiting.reply().await.body)["value"], json!(login.access_token));
        let entry = world.entry("jdoe").await;
        assert_eq!((entry.failure, entry.lease), (None, None), "the refusal says nothing about the new pair");
        worker.stop().await;
    }

    async fn tokens_of_sixteen_kib_come_back_whole(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let worker = world.start_worker().await;
        let long = |first: char| format!("{first}{}", "t".repeat(16 * 1024 - 1));
        let mut body = bare(&world, "jdoe", &long('a'));
        body["token"]["refresh_token"] = long('r').into();
        assert_eq!(store(&world, body).await, json!({"status": "ok"}));
        assert_eq!(token(&world.request("jdoe").await)["value"], long('a'));
        let entry = world.entry("jdoe").await;
        assert_eq!(world.store.open_refresh_token(&entry).unwrap().unwrap().expose_secret(), long('r'));
        worker.stop().await;
    }

    async fn users_that_differ_in_case_accents_or_a_blank_at_the_end_are_different_users(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let worker = world.start_worker().await;
        let users = ["a", "A", "a ", " a", "á", "a\u{301}", "ａ", "ß", "ss"];
        for (number, user) in users.into_iter().enumerate() {
            let reply = store(&world, bare(&world, user, &format!("token-{number}"))).await;
            assert_eq!(reply, json!({"status": "ok"}), "{user:?}");
        }
        for (number, user) in users.into_iter().enumerate() {
            let reply = world.request(user).await;
            assert_eq!(token(&reply)["value"], format!("token-{number}"), "{user:?}");
            assert_eq!(reply["user_id"], user);
        }
        error_message(&world.request("a  ").await, "user_not_found");
        worker.stop().await;
    }
}

#[tokio::test]
async fn a_pair_without_refresh_token_is_served_while_it_lasts_and_refused_afterwards() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let mut body = bare(&world, "jdoe", "a-token");
    body["token"]["expires_at"] = json!(Timestamp::from_millis(world.scm.now_ms() + 600_000));
    store(&world, body).await;
    assert_eq!(world.request_for("jdoe", 300).await["refresh"], "none");
    let message = world.request_for("jdoe", 3600).await;
    assert!(error_message(&message, "not_refreshable").contains(&world.scm.host()));
    assert!(world.scm.log().is_empty());
    worker.stop().await;
}

#[tokio::test]
async fn a_date_of_1970_or_earlier_counts_as_left_out() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    for unset in ["0001-01-01T00:00:00Z", "1970-01-01T00:00:00Z"] {
        let mut body = bare(&world, "jdoe", "a-token");
        body["token"]["expires_at"] = unset.into();
        body["token"]["refresh_token_expires_at"] = unset.into();
        assert_eq!(store(&world, body).await, json!({"status": "ok"}), "{unset}");
        let entry = world.entry("jdoe").await;
        assert_eq!((entry.state.expires_at, entry.refresh_token_expires_at), (None, None), "{unset}");
        assert_eq!(token(&world.request("jdoe").await)["value"], "a-token", "{unset}");
    }
    worker.stop().await;
}

#[tokio::test]
async fn a_pair_for_a_host_without_provider_is_refused_and_not_kept() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let mut body = bare(&world, "jdoe", "a-token");
    body["host"] = "nowhere.example.org".into();

    let reply = store(&world, body).await;

    assert!(error_message(&reply, "unknown_host").contains("nowhere.example.org"));
    assert_eq!((&reply["user_id"], &reply["host"]), (&json!("jdoe"), &json!("nowhere.example.org")));
    let identities = identity::Entity::find().all(&world.connection().await).await.unwrap();
    assert!(identities.is_empty());
    assert!(world.broker.dead_letters().await.is_empty(), "nothing is wrong with the message itself");
    worker.stop().await;
}

#[tokio::test]
async fn a_login_that_waited_is_stored_however_old_its_timestamp_is() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let an_hour_ago = u64::try_from(world.scm.now_ms() / 1_000 - 3_600).unwrap();
    let properties = BasicProperties::default().with_timestamp(an_hour_ago);
    let body = bare(&world, "jdoe", "a-token").to_string();

    let reply = world.broker.send(TOKEN_STORE, body, properties).await.reply().await.body;

    assert_eq!(reply, json!({"status": "ok"}));
    assert_eq!(stored_token(&world, "jdoe").await, "a-token");
    worker.stop().await;
}

#[tokio::test]
async fn a_login_that_is_refused_for_good_without_anybody_to_be_told_lies_sealed_in_the_dead_letters() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let mut body = bare(&world, "jdoe", "a-token-to-be-kept");
    body["host"] = "nowhere.example.org".into();

    world.broker.publish(TOKEN_STORE, body.to_string(), BasicProperties::default()).await;

    let letters = world.broker.wait_for_dead_letters(1).await;
    assert!(!String::from_utf8_lossy(&letters[0].body).contains("a-token-to-be-kept"), "it is sealed");
    let reason = letters[0].headers.inner().get("x-tokenkeeper-reason");
    assert_eq!(reason, Some(&AMQPValue::LongString("unknown_host".into())));
    worker.stop().await;
}
