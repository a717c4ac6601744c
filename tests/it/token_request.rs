//! `token.request`: the worked examples of docs/contract.md, through the queue.

use std::sync::Arc;

use serde_json::json;
use tokenkeeper::domain::clock::ManualClock;

use crate::harness::world::minutes;
use crate::harness::{Dialect, Kind, World, on_every_database};

/// A row of the table of worked examples: a token issued at 00:00 that expires at 02:00, asked for with
/// the default lifetime. All times in minutes after midnight.
struct Example {
    dialect: Dialect,
    now: u64,
    reserved_until_before: Option<u64>,
    refresh: &'static str,
    expires_at: u64,
    reserved_until_after: u64,
}

async fn runs_as_written(kind: Kind, example: Example) {
    let clock = Arc::new(ManualClock::at(minutes(0)));
    let world = World::at(kind, example.dialect, &clock).await;
    let worker = world.start_worker_at(clock.clone()).await;
    let pair = world.user_with_token("jdoe").await;
    clock.set(minutes(example.now));
    if let Some(until) = example.reserved_until_before {
        let entry = world.entry("jdoe").await;
        let reserved = world.store.reserve(&entry, minutes(until), minutes(example.now)).await;
        assert_eq!(reserved.unwrap(), tokenkeeper::store::Guarded::Done);
    }

    let reply = world.request("jdoe").await;

    assert_eq!(reply["status"], "ok", "{reply}");
    assert_eq!(reply["refresh"], example.refresh);
    let refreshed = matches!(example.refresh, "opportunistic" | "required");
    let latest = world.scm.latest_pair("jdoe").unwrap();
    assert_eq!(
        latest.access_token != pair.access_token,
        refreshed,
        "a new pair exactly when the reply says so"
    );
    assert_eq!(world.scm.refreshes("jdoe"), usize::from(refreshed));
    assert_eq!(
        reply,
        json!({
            "status": "ok",
            "user_id": "jdoe",
            "host": world.scm.host(),
            "token": {
                "value": latest.access_token,
                "username": example.dialect.username(),
                "userinfo": format!("{}:{}", example.dialect.username(), latest.access_token),
                "scopes": example.dialect.scopes(),
                "updated_at": minutes(if refreshed { example.now } else { 0 }),
                "expires_at": minutes(example.expires_at),
                "reserved_until": minutes(example.reserved_until_after),
            },
            "refresh": example.refresh,
            "warnings": [],
        })
    );
    let stored = world.entry("jdoe").await.state;
    assert_eq!(stored.expires_at, Some(minutes(example.expires_at)));
    assert_eq!(stored.reserved_until, Some(minutes(example.reserved_until_after)));
    worker.stop().await;
}

on_every_database! {
    async fn at_01_00_github_hands_out_the_stored_token(kind: Kind) {
        runs_as_written(kind, Example {
            dialect: Dialect::GitHub,
            now: 60,
            reserved_until_before: None,
            refresh: "none",
            expires_at: 120,
            reserved_until_after: 65,
        }).await;
    }

    async fn at_03_00_github_is_asked_for_a_new_token(kind: Kind) {
        runs_as_written(kind, Example {
            dialect: Dialect::GitHub,
            now: 180,
            reserved_until_before: None,
            refresh: "required",
            expires_at: 300,
            reserved_until_after: 185,
        }).await;
    }

    async fn at_01_00_bitbucket_server_is_asked_opportunistically(kind: Kind) {
        runs_as_written(kind, Example {
            dialect: Dialect::BitbucketServer,
            now: 60,
            reserved_until_before: None,
            refresh: "opportunistic",
            expires_at: 180,
            reserved_until_after: 65,
        }).await;
    }

    async fn at_01_00_a_longer_reservation_is_left_as_it_is(kind: Kind) {
        runs_as_written(kind, Example {
            dialect: Dialect::BitbucketServer,
            now: 60,
            reserved_until_before: Some(90),
            refresh: "reserved",
            expires_at: 120,
            reserved_until_after: 90,
        }).await;
    }

    async fn at_01_00_a_shorter_reservation_is_extended(kind: Kind) {
        runs_as_written(kind, Example {
            dialect: Dialect::BitbucketServer,
            now: 60,
            reserved_until_before: Some(63),
            refresh: "reserved",
            expires_at: 120,
            reserved_until_after: 65,
        }).await;
    }
}
