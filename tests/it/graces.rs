//! What a provider file says of old tokens: how long they work once they were refreshed, and may be sent again.

use std::time::Duration;

use serde_json::json;
use tokenkeeper::domain::provider::Lifespan;
use tokenkeeper::store::{FailureKind, Guarded};
use tokenkeeper_testkit::scm::SpentRefreshToken;

use crate::harness::reply::{error_message, token};
use crate::harness::{Dialect, Fault, Kind, ScmOptions, World, on_every_database};

on_every_database! {
    async fn a_reservation_that_the_old_token_outlives_stands_against_no_opportunistic_refresh(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        world.apply_provider(|provider| provider.overrides.old_token_grace_secs = Some(Lifespan::secs(600))).await;
        let worker = world.start_worker().await;
        world.user_with_token("jdoe").await;

        assert_eq!(world.request_for("jdoe", 300).await["refresh"], "opportunistic");
        assert_eq!(world.request_for("jdoe", 900).await["refresh"], "opportunistic", "held for five minutes");
        assert_eq!(world.request_for("jdoe", 300).await["refresh"], "reserved", "held for fifteen");
        assert_eq!(world.scm.refreshes("jdoe"), 2);
        worker.stop().await;
    }
}

/// A world whose provider takes spent refresh tokens again, and says so or not.
async fn world_with_grace(refresh_token_grace_secs: Option<Lifespan>) -> World {
    let options =
        ScmOptions { spent_refresh_token: SpentRefreshToken::Accepted, ..ScmOptions::new(Dialect::GitHub) };
    let mut world = World::with_scm(Kind::Sqlite, options).await;
    world.set("refresh.retry_initial_ms", 20);
    world
        .apply_provider(|provider| provider.overrides.refresh_token_grace_secs = refresh_token_grace_secs)
        .await;
    world
}

#[tokio::test]
async fn a_pair_that_could_not_be_read_is_asked_for_again_where_the_refresh_token_may_be_sent_again() {
    for (grace, asked, status) in [(Some(Lifespan::secs(600)), 2, "ok"), (None, 1, "error")] {
        let world = world_with_grace(grace).await;
        let worker = world.start_worker().await;
        world.user_with_expired_token("jdoe").await;
        world.scm.fail_next(1, Fault::Unreadable);

        let reply = world.request("jdoe").await;

        assert_eq!(
            (&reply["status"], world.scm.refresh_requests("jdoe")),
            (&json!(status), asked),
            "{reply}"
        );
        worker.stop().await;
    }
}

#[tokio::test]
async fn a_refusal_within_the_grace_is_no_matter_of_an_answer_that_was_lost() {
    for (grace, kind) in [(Some(Lifespan::secs(600)), FailureKind::Refused), (None, FailureKind::Interrupted)]
    {
        let world = world_with_grace(grace).await;
        let worker = world.start_worker().await;
        world.user_with_expired_token("jdoe").await;
        // Of an earlier flight, whose end nobody knows.
        let entry = world.entry("jdoe").await;
        let refresh_token = world.store.open_refresh_token(&entry).unwrap().unwrap();
        let attempt = tokenkeeper::domain::secret::fingerprint(&refresh_token);
        let now = tokenkeeper::domain::clock::Timestamp::from_millis(world.scm.now_ms());
        let taken = world.store.take_lease(&entry, None, "the dead", &attempt, now, Duration::from_millis(1));
        assert_eq!(taken.await.unwrap(), Guarded::Done);
        world.scm.revoke("jdoe");

        error_message(&world.request("jdoe").await, "reauthorization_required");

        assert_eq!(world.entry("jdoe").await.failure.map(|failure| failure.kind), Some(kind), "{grace:?}");
        worker.stop().await;
    }
}

#[tokio::test]
async fn a_provider_with_two_secrets_serves_while_one_is_replaced() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world
        .apply_provider(|provider| {
            let right = std::mem::replace(&mut provider.client_secret, "not-known-yet".into());
            provider.spare_client_secrets = vec![right];
        })
        .await;
    let worker = world.start_worker().await;
    world.user_with_expired_token("jdoe").await;
    assert_eq!(
        token(&world.request("jdoe").await)["value"],
        world.scm.latest_pair("jdoe").unwrap().access_token
    );
    assert_eq!(world.entry("jdoe").await.failure, None);
    worker.stop().await;
}

#[tokio::test]
async fn a_lifetime_that_nobody_says_is_what_the_provider_file_says() {
    let options = ScmOptions { omit_expires_in: true, ..ScmOptions::new(Dialect::GitHub) };
    let world = World::with_scm(Kind::Sqlite, options).await;
    for (unstated, lives_secs) in [(Some(Lifespan::secs(900)), Some(900)), (Some(Lifespan::Unlimited), None)]
    {
        world.apply_provider(|provider| provider.overrides.unstated_lifetime_secs = unstated).await;
        let worker = world.start_worker().await;
        world.user_with_expired_token("jdoe").await;
        token(&world.request("jdoe").await);
        let state = world.entry("jdoe").await.state;
        let lives = state.granted_lifetime.map(|lifetime| lifetime.as_secs());
        assert_eq!((lives, state.expires_at.is_some()), (lives_secs, lives_secs.is_some()), "{unstated:?}");
        worker.stop().await;
    }
}

#[tokio::test]
async fn a_reservation_in_a_reply_ends_with_the_token_at_the_latest() {
    let options = ScmOptions { token_lifetime: Duration::from_mins(10), ..ScmOptions::new(Dialect::GitHub) };
    let world = World::with_scm(Kind::Sqlite, options).await;
    let worker = world.start_worker().await;
    world.user_with_expired_token("jdoe").await;
    let reply = world.request_for("jdoe", 3600).await;
    assert_eq!(token(&reply)["reserved_until"], token(&reply)["expires_at"], "{reply}");
    assert_eq!(reply["warnings"], json!(["lifetime_clamped"]));
    // Somebody asked for longer than it lives.
    let reply = world.request_for("jdoe", 60).await;
    assert_eq!(token(&reply)["reserved_until"], token(&reply)["expires_at"], "{reply}");
    assert_eq!(reply["warnings"], json!(["reservation_shortened"]));
    worker.stop().await;
}
