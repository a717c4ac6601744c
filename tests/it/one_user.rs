//! One user harms no host: whatever one identity's refreshes meet, everybody else at that host is served.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokenkeeper_testkit::wait::within;

use crate::harness::reply::{error_message, token};
use crate::harness::{Dialect, Fault, Kind, PATIENCE, ScmOptions, WorkerProcess, World, eventually};

const UNAVAILABLE: &str = "provider_unavailable";
const MISCONFIGURED: &str = "provider_misconfigured";
const REAUTHORIZE: &str = "reauthorization_required";

/// Tokens that are refreshed every other second, so that there is always somebody who needs a refresh.
const SHORT: Duration = Duration::from_secs(3);

/// A world whose SCM issues tokens that live for this long.
async fn world_of(dialect: Dialect, token_lifetime: Duration) -> World {
    let mut world =
        World::with_scm(Kind::Sqlite, ScmOptions { token_lifetime, ..ScmOptions::new(dialect) }).await;
    world.set("refresh.retry_initial_ms", 20).set("refresh.circuit_open_secs", 2);
    world.set("refresh.identity_limit_per_minute", 0);
    world
}

async fn expired_users(world: &World, name: &str, count: usize) -> Vec<String> {
    let users: Vec<String> = (0..count).map(|number| format!("{name}-{number}")).collect();
    join_all(users.iter().map(|user| world.user_with_expired_token(user))).await;
    users
}

/// Asks for this user again and again, and gives back each answer.
async fn go_on_asking(world: &World, user: &str, mut answered: impl FnMut(&Value)) -> ! {
    loop {
        answered(&world.request_for(user, 1).await);
    }
}

/// Asks for each of these users in turn while the others go on asking, until each was refreshed so many times. Each
/// answer must be good.
async fn serve_beside(world: &World, hostile: &[String], users: &[String], refreshes: usize) {
    let hammering = join_all(hostile.iter().map(|user| go_on_asking(world, user, |_| {})));
    let serving = join_all(users.iter().map(|user| async move {
        let before = world.scm.refreshes(user);
        while world.scm.refreshes(user) < before + refreshes {
            token(&world.request_for(user, 1).await);
        }
    }));
    tokio::select! {
        _ = hammering => {}
        _ = within("the others to be served", PATIENCE, serving) => {}
    }
}

async fn series(worker: &WorkerProcess, world: &World, name: &str, label: &str) -> usize {
    worker.count(&format!(r#"{name}{{host="{}"{label}}}"#, world.scm.host())).await
}

async fn opened(worker: &WorkerProcess, world: &World) -> usize {
    series(worker, world, "tokenkeeper_circuit_transitions_total", r#",to="open""#).await
}

async fn held_back(worker: &WorkerProcess, world: &World, by: &str) -> usize {
    series(worker, world, "tokenkeeper_refreshes_held_back_total", &format!(r#",by="{by}""#)).await
}

async fn is_refusing(world: &World) -> bool {
    let provider = world.store.provider(&world.scm.host()).await.unwrap().expect("it was applied");
    provider.refusing_since.is_some()
}

fn retry_after(reply: &Value) -> u64 {
    error_message(reply, UNAVAILABLE);
    reply["error"]["retry_after_secs"].as_u64().unwrap_or_else(|| panic!("no retry_after_secs: {reply}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_token_that_makes_the_endpoint_fail_costs_its_own_user_alone() {
    let world = world_of(Dialect::GitHub, Duration::from_secs(7_200)).await;
    let worker = world.spawn_worker().await;
    world.user_with_expired_token("mallory").await;
    world.scm.fail_always_for("mallory", Fault::Status(500));
    let others = expired_users(&world, "user", 60).await;

    // Nobody else is served yet: all that is known of the host is this one user.
    for _ in 0..2 {
        error_message(&world.request("mallory").await, UNAVAILABLE);
    }
    assert_eq!((opened(&worker, &world).await, world.scm.refresh_requests("mallory")), (0, 10));
    let mut told = Vec::new();
    let serving = async {
        for user in &others {
            token(&world.request(user).await);
        }
        eventually("mallory to be held back", PATIENCE, async || {
            (held_back(&worker, &world, "back_off").await > 50).then_some(())
        })
        .await;
    };
    tokio::select! {
        never = go_on_asking(&world, "mallory", |reply| told.push(reply.clone())) => match never {},
        () = serving => {}
    }

    assert_eq!(opened(&worker, &world).await, 0);
    let last = told.last().expect("mallory was answered");
    assert!((1..=60).contains(&retry_after(last)), "{last}");
    let calls = world.scm.refresh_requests("mallory");
    assert!(calls <= 40, "{calls} calls for {} requests", told.len());
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn made_up_accounts_that_make_the_endpoint_fail_close_it_for_nobody_who_was_refreshed_before() {
    let world = world_of(Dialect::GitHub, SHORT).await;
    let worker = world.spawn_worker().await;
    let users = expired_users(&world, "user", 3).await;
    for user in &users {
        token(&world.request_for(user, 1).await);
    }
    let made_up = expired_users(&world, "made-up", 12).await;
    for user in &made_up {
        world.scm.fail_always_for(user, Fault::Status(500));
    }

    serve_beside(&world, &made_up, &users, 4).await;

    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_without_end_that_one_user_is_asked_for_is_kept_for_that_user_and_not_for_ever() {
    let world = world_of(Dialect::GitHub, Duration::from_secs(7_200)).await;
    let worker = world.spawn_worker().await;
    let others = expired_users(&world, "user", 10).await;
    for (number, fault) in
        [429, 503].map(|status| Fault::RetryAfter { status, seconds: 99_999_999 }).into_iter().enumerate()
    {
        let mallory = format!("mallory-{number}");
        world.user_with_expired_token(&mallory).await;
        world.scm.fail_next_for(&mallory, 1, fault);

        assert_eq!(retry_after(&world.request(&mallory).await), 300);
        for user in &others[number * 5..number * 5 + 5] {
            token(&world.request(user).await);
        }
        assert!((290..=300).contains(&retry_after(&world.request(&mallory).await)));
        assert_eq!(world.scm.refresh_requests(&mallory), 1);
    }
    assert_eq!(opened(&worker, &world).await, 0);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_refresh_tokens_condemn_only_their_users_and_a_host_that_refuses_everybody_is_still_noticed() {
    let world = world_of(Dialect::BitbucketServer, SHORT).await;
    let worker = world.spawn_worker().await;
    let users = expired_users(&world, "user", 5).await;
    for user in &users {
        token(&world.request_for(user, 1).await);
    }
    let dead = expired_users(&world, "dead", 12).await;
    for user in &dead {
        world.scm.revoke(user);
        error_message(&world.request(user).await, REAUTHORIZE);
    }

    serve_beside(&world, &dead, &users, 3).await;

    assert!(!is_refusing(&world).await);
    for user in &dead {
        error_message(&world.request(user).await, REAUTHORIZE);
        assert_eq!(world.scm.refresh_requests(user), 1, "it is remembered: {user}");
    }
    world.scm.fail_always(Fault::InvalidGrant);
    eventually("all five to be told that it is not their fault", PATIENCE, async || {
        let replies = join_all(users.iter().map(|user| world.request_for(user, 60))).await;
        replies.iter().all(|reply| reply["error"]["code"] == MISCONFIGURED).then_some(())
    })
    .await;
    assert!(is_refusing(&world).await);
    assert!(users.iter().all(|user| world.scm.refresh_requests(user) > 1));
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_that_were_refused_and_go_on_asking_do_not_keep_the_probes() {
    // Nobody was refreshed with these settings yet, so five dead tokens look like a host that refuses everybody.
    let world = world_of(Dialect::BitbucketServer, Duration::from_secs(7_200)).await;
    let worker = world.spawn_worker().await;
    let dead = expired_users(&world, "dead", 5).await;
    for user in &dead {
        world.scm.revoke(user);
        world.request(user).await;
    }
    assert!(is_refusing(&world).await);
    world.user_with_expired_token("alice").await;
    eventually("the worker to know", PATIENCE, async || {
        let asked = world.scm.log().len();
        let reply = world.request(&dead[0]).await;
        let told = reply["error"]["code"] == "provider_misconfigured";
        (told && world.scm.log().len() == asked).then_some(())
    })
    .await;
    let asked = world.scm.log().len();

    // They ask as fast as they can, and alice once, when they have just had their turn.
    let hammering = join_all(dead.iter().map(|user| go_on_asking(&world, user, |_| {})));
    let alice = async {
        eventually("one of them to be a probe", PATIENCE, async || {
            (world.scm.log().len() > asked).then_some(())
        })
        .await;
        token(&world.request("alice").await);
    };
    tokio::select! {
        _ = hammering => {}
        () = alice => {}
    }

    eventually("the host not to refuse everybody", PATIENCE, async || {
        (!is_refusing(&world).await).then_some(())
    })
    .await;
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_reservations_again_and_again_are_refreshed_up_to_the_limit_and_always_served() {
    let mut world = world_of(Dialect::BitbucketServer, Duration::from_secs(7_200)).await;
    world.set("refresh.identity_limit_per_minute", 3);
    let worker = world.spawn_worker().await;
    world.user_with_token("alice").await;

    for round in 0..6 {
        eventually("nobody to hold the token", PATIENCE, async || {
            let reserved_until = world.entry("alice").await.state.reserved_until;
            reserved_until.is_none_or(|until| until.as_millis() < world.scm.now_ms()).then_some(())
        })
        .await;
        let reply = world.request_for("alice", 1).await;
        token(&reply);
        assert_eq!(reply["warnings"], json!([]), "nothing failed: {reply}");
        assert_eq!(reply["refresh"], if round < 3 { "opportunistic" } else { "none" });
    }

    assert_eq!(held_back(&worker, &world, "identity_limit").await, 3);
    assert_eq!(world.scm.refresh_requests("alice"), 3);
    world.user_with_token("bob").await;
    assert_eq!(world.request("bob").await["refresh"], "opportunistic", "it is one user's limit");
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_the_limit_a_refresh_that_is_needed_is_refused_for_a_while_and_one_under_way_is_joined() {
    let mut world = world_of(Dialect::GitHub, Duration::from_secs(7_200)).await;
    world.set("refresh.identity_limit_per_minute", 1);
    let worker = world.spawn_worker().await;
    let users = expired_users(&world, "user", 2).await;

    for reply in join_all((0..20).map(|_| world.request("user-0"))).await {
        token(&reply);
    }
    world.user_with_expired_token("user-0").await;
    let told = retry_after(&world.request("user-0").await);

    assert!((1..=60).contains(&told), "{told}");
    assert_eq!(world.scm.refresh_requests("user-0"), 1, "a new login does not lift it");
    assert_eq!(held_back(&worker, &world, "identity_limit").await, 1);
    token(&world.request(&users[1]).await);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hosts_limit_holds_back_those_over_it_until_the_second_is_over() {
    let mut world = world_of(Dialect::GitHub, Duration::from_secs(7_200)).await;
    world.set("refresh.host_limit_per_second", 2);
    let worker = world.spawn_worker().await;
    let users = expired_users(&world, "user", 6).await;

    let replies = join_all(users.iter().map(|user| world.request(user))).await;

    let refused: Vec<&Value> = replies.iter().filter(|reply| reply["status"] != "ok").collect();
    assert!(!refused.is_empty(), "{replies:?}");
    assert!(refused.iter().all(|reply| retry_after(reply) == 1));
    assert_eq!(held_back(&worker, &world, "host_limit").await, refused.len());
    for user in &users {
        eventually(&format!("{user} to be served"), PATIENCE, async || {
            (world.request(user).await["status"] == "ok").then_some(())
        })
        .await;
    }
    worker.stop(&world).await;
}
