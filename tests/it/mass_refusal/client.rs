//! A host that refuses our client, and what metrics show of hosts that refuse everybody.

use serde_json::json;
use tokenkeeper::domain::clock::Timestamp;

use super::{
    MISCONFIGURED, REAUTHORIZE, assert_not_condemned, expired_users, refusing_since, stop,
    wait_until_all_know, wait_until_served, world_and_workers,
};
use crate::cli::Cli;
use crate::harness::events::Listener;
use crate::harness::reply::{error_message, token};
use crate::harness::{Dialect, Fault, Kind, PATIENCE, World, eventually, on_every_database};

on_every_database! {
    async fn a_host_that_refuses_our_client_three_times_in_a_row_refuses_everybody_until_it_issues_a_token(kind: Kind) {
        let mut world = World::new(kind, Dialect::GitHub).await;
        world.set("refresh.circuit_open_secs", 1).set("refresh.identity_limit_per_minute", 0);
        let workers = [world.start_worker().await, world.start_worker().await];
        let events = Listener::start(&world, "provider.*").await;
        let users = expired_users(&world, 3).await;
        let valid = world.user_with_token("jdoe").await;
        world.scm.fail_always(Fault::InvalidClient);

        // Each worker counts for itself.
        eventually("the third refusal of a worker", PATIENCE, async || {
            error_message(&world.request(&users[0]).await, MISCONFIGURED);
            refusing_since(&world).await.map(drop)
        })
        .await;

        let asked = world.scm.log().len();
        assert!((3..=6).contains(&asked), "{asked} calls until it was known");
        let alarm = events.wait_for("provider.misconfigured", 1).await;
        let since = refusing_since(&world).await.map(Timestamp::from_millis);
        assert_eq!((&alarm[0]["host"], &alarm[0]["since"]), (&json!(world.scm.host()), &json!(since)));
        assert!(alarm[0]["reason"].as_str().is_some_and(|reason| reason.contains("incorrect_client_credentials")), "{alarm:?}");
        let list = Cli::of(&world).run(&["provider", "list", "--json"]).await.good().json();
        assert_eq!(list[0]["refusing_since"], json!(since));
        assert_not_condemned(&world, &users).await;
        let served = world.request("jdoe").await;
        assert_eq!(token(&served)["value"], valid.access_token.as_str());

        wait_until_all_know(&world, &users).await;
        world.scm.heal();
        for user in &users {
            wait_until_served(&world, user).await;
        }
        assert_eq!(refusing_since(&world).await, None);
        events.wait_for("provider.recovered", 1).await;
        stop(workers.into()).await;
        assert_eq!((events.times("provider.misconfigured"), events.times("provider.recovered")), (1, 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_of_our_client_with_something_else_in_between_are_no_refusal_of_everybody() {
    let (world, workers) = world_and_workers(Kind::Sqlite, 1, 1).await;
    world.user_with_expired_token("jdoe").await;
    for fault in [
        Fault::InvalidClient,
        Fault::InvalidClient,
        Fault::Redirect,
        Fault::InvalidClient,
        Fault::InvalidClient,
    ] {
        world.scm.fail_next(1, fault);
        error_message(&world.request("jdoe").await, MISCONFIGURED);
    }
    assert_eq!(refusing_since(&world).await, None);
    wait_until_served(&world, "jdoe").await;
    stop(workers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_show_a_host_that_refuses_everybody_and_the_users_who_must_log_in_even_if_nobody_asks() {
    let (world, workers) = world_and_workers(Kind::Sqlite, 60, 1).await;
    let users = expired_users(&world, 5).await;
    world.user_with_expired_token("revoked").await;
    world.scm.revoke("revoked");
    error_message(&world.request("revoked").await, REAUTHORIZE);
    let gauge = |name: &str| format!("{name}{{host=\"{}\"}}", world.scm.host());
    let before = world.spawn_worker().await;
    assert_eq!(before.count(&gauge("tokenkeeper_provider_refusing")).await, 0);
    assert_eq!(before.count(&gauge("tokenkeeper_users_to_log_in_again")).await, 1);
    before.stop(&world).await;

    world.scm.fail_always(Fault::InvalidGrant);
    for user in &users {
        world.request(user).await;
    }
    assert!(refusing_since(&world).await.is_some());
    stop(workers).await;

    // A worker that nobody has asked for anything yet.
    let idle = world.spawn_worker().await;
    assert_eq!(idle.count(&gauge("tokenkeeper_provider_refusing")).await, 1);
    idle.stop(&world).await;
}
