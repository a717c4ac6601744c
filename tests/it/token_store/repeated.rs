//! A login that comes more than once: the pair that was refreshed from it stays.

use std::time::Duration;

use lapin::options::{BasicGetOptions, BasicRejectOptions};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokenkeeper::domain::secret::fingerprint;
use tokenkeeper::store::{AccountNames, Guarded, NewPair, PairSource};
use tokenkeeper_testkit::queues::{BasicProperties, TOKEN_STORE};
use tokenkeeper_testkit::scm::IssuedPair;

use super::{bare, burden, store, stored_token};
use crate::harness::reply::token;
use crate::harness::world::minutes;
use crate::harness::{Dialect, Kind, PATIENCE, World, eventually, on_every_database};

fn pair(name: &str, source: PairSource) -> NewPair {
    NewPair {
        access_token: name.to_owned().into(),
        refresh_token: Some(format!("{name}-refresh").into()),
        username: None,
        scopes: vec![],
        expires_at: Some(minutes(5)),
        refresh_token_expires_at: None,
        source,
    }
}

on_every_database! {
    async fn a_login_that_is_published_again_does_not_bring_its_old_pair_back(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        let worker = world.start_worker().await;
        let login = world.user_with_expired_token("jdoe").await;
        let gate = world.scm.hold_refreshes();
        let waiting = world.send("jdoe").await;
        gate.wait_for_parked(1).await;
        world.store_pair(&login).await;
        gate.release();
        let refreshed = waiting.reply().await.body;
        assert_eq!(refreshed["refresh"], "required", "the refresh that was under way is not lost: {refreshed}");
        let before = world.entry("jdoe").await;

        world.store_pair(&login).await;

        assert_eq!(world.entry("jdoe").await.generation, before.generation);
        assert_eq!(json!(stored_token(&world, "jdoe").await), token(&refreshed)["value"]);
        assert!(world.scm.is_alive(&stored_token(&world, "jdoe").await));
        assert_eq!(world.request_for("jdoe", 86_400).await["status"], "ok", "it can be refreshed again");
        let another = world.user_with_token("jdoe").await;
        assert_eq!(stored_token(&world, "jdoe").await, another.access_token, "another login wins, as ever");
        worker.stop().await;
    }

    async fn a_repeated_login_with_another_date_never_overtakes_a_refresh_that_has_begun(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        let provider = world.store.provider(&world.scm.host()).await.unwrap().unwrap();
        let account = AccountNames { auth_id: "jdoe".to_owned(), auth_name: None };
        let mut refreshes = 0;
        for round in 0..100 {
            let user = format!("u-{round}");
            let login = pair("login", PairSource::Login);
            let put = async |pair: &NewPair| {
                let stored = world.store.put_login(&user, provider.id, &account, pair, false, minutes(0)).await;
                stored.unwrap().effect
            };
            put(&login).await;
            let entry = world.entry(&user).await;
            let origin = entry.origin_of_successor(minutes(1));
            let source = PairSource::Refresh { granted_lifetime: None, reserved_until: minutes(1), origin };
            let refresh = async {
                let hour = Duration::from_hours(1);
                let leased = world.store.take_lease(&entry, None, "one", "sent", minutes(1), hour).await.unwrap();
                if leased == Guarded::Done {
                    world.store.store_refreshed(&entry, &pair("refreshed", source), "one", minutes(1)).await.unwrap();
                }
                leased == Guarded::Done
            };
            let extended = NewPair { expires_at: Some(minutes(9)), ..login.clone() };

            let (_, has_refreshed) = tokio::join!(put(&extended), refresh);

            let expected = if has_refreshed { "refreshed" } else { "login" };
            assert_eq!(stored_token(&world, &user).await, expected, "{user}");
            refreshes += u32::from(has_refreshed);
        }
        assert!(refreshes > 0, "the login was always first");
    }

    async fn a_login_whose_pair_an_older_version_stored_is_known_again(kind: Kind) {
        let mut world = World::new(kind, Dialect::BitbucketServer).await;
        world.set("encryption.accept_format_1", true);
        let worker = world.start_worker().await;
        let login = world.user_with_expired_token("jdoe").await;
        let as_before = fingerprint(&login.access_token.clone().into());
        world.rewrite_in_format_1("jdoe", |row| row.login_fingerprint = Some(as_before)).await;
        let refreshed = world.request("jdoe").await;

        world.store_pair(&login).await;

        assert_eq!(json!(stored_token(&world, "jdoe").await), token(&refreshed)["value"]);
        worker.stop().await;
    }

    async fn a_login_that_is_delivered_again_does_not_bring_its_old_pair_back(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        let worker = world.start_worker().await;
        let login = world.user_with_expired_token("jdoe").await;
        let refreshed = world.request("jdoe").await;
        assert_eq!(refreshed["refresh"], "required");
        let before = world.entry("jdoe").await;
        worker.stop().await;

        let reply = deliver_again(&world, &login).await;

        assert_eq!(reply, json!({"status": "ok"}));
        let after = world.entry("jdoe").await;
        assert_eq!(after.generation, before.generation);
        assert_eq!(json!(stored_token(&world, "jdoe").await), token(&refreshed)["value"]);
        assert!(world.scm.is_alive(&stored_token(&world, "jdoe").await));
    }

    async fn a_login_that_is_delivered_again_without_having_been_stored_is_stored(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        let worker = world.start_worker().await;
        world.user_with_token("jdoe").await;
        worker.stop().await;
        let lost = world.scm.authorize("jdoe");

        assert_eq!(deliver_again(&world, &lost).await, json!({"status": "ok"}));

        assert_eq!(stored_token(&world, "jdoe").await, lost.access_token);
    }
}

/// Publishes a login, takes it like a worker that dies on it, and starts a worker that gets it again.
async fn deliver_again(world: &World, pair: &IssuedPair) -> Value {
    let body = world.scm.token_store_body(pair).to_string();
    let pending = world.broker.send(TOKEN_STORE, body, BasicProperties::default()).await;
    let channel = world.broker.channel().await;
    let queue = world.broker.name("token-stores");
    let taken = eventually("the login in its queue", PATIENCE, async || {
        channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await.unwrap()
    })
    .await;
    let back = BasicRejectOptions { requeue: true };
    assert!(taken.delivery.acker.reject(back).await.unwrap(), "the broker has it back");
    let worker = world.start_worker().await;
    let reply = pending.reply().await.body;
    worker.stop().await;
    reply
}

#[tokio::test]
async fn a_login_that_is_repeated_takes_nobodys_reservation_away() {
    let world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    let worker = world.start_worker().await;
    let login = world.user_with_token("jdoe").await;
    burden(&world, "jdoe").await;
    let before = world.entry("jdoe").await;
    world.store_pair(&login).await;
    let after = world.entry("jdoe").await;
    assert_eq!((after.generation, after.state), (before.generation, before.state));
    worker.stop().await;
}

#[tokio::test]
async fn the_same_tokens_with_another_date_or_with_a_refresh_token_are_stored() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let mut body = bare(&world, "jdoe", "a-token");
    store(&world, body.clone()).await;
    body["token"]["expires_at"] = "2035-01-01T00:00:00.000Z".into();
    store(&world, body.clone()).await;
    assert!(world.entry("jdoe").await.state.expires_at.is_some(), "a token that was extended");

    body["token"]["refresh_token"] = "first".into();
    store(&world, body.clone()).await;
    assert!(world.entry("jdoe").await.state.refreshable, "what was left out by mistake");
    body["token"]["refresh_token"] = "second".into();
    store(&world, body.clone()).await;
    let entry = world.entry("jdoe").await;
    assert_eq!(world.store.open_refresh_token(&entry).unwrap().unwrap().expose_secret(), "second");
    store(&world, body).await;
    assert_eq!(world.entry("jdoe").await.generation, 4, "the last message was a repetition");
    worker.stop().await;
}
