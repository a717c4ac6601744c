//! The circuit breaker: a host that fails user after user is left alone, its valid tokens are served, and a probe finds
//! it back.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::harness::reply::{error_message, token};
use crate::harness::{Dialect, Fault, Kind, PATIENCE, ScmOptions, WorkerProcess, World, eventually};

/// So many show that it is the host.
const FAILING: [&str; 5] = ["failing-0", "failing-1", "failing-2", "failing-3", "failing-4"];

/// A world in which circuits open for a second, with a worker, and users whose tokens have expired.
async fn world_and_worker(dialect: Dialect) -> (World, WorkerProcess) {
    world_and_worker_with(dialect, 1).await
}

/// The same with circuits that open for so many seconds.
async fn world_and_worker_with(dialect: Dialect, open_secs: u64) -> (World, WorkerProcess) {
    let mut world = World::new(Kind::Sqlite, dialect).await;
    world.set("refresh.retry_initial_ms", 20).set("refresh.circuit_open_secs", open_secs);
    let worker = world.spawn_worker().await;
    let users = FAILING.into_iter().chain(["alice", "bob", "carol"]);
    join_all(users.map(|user| world.user_with_expired_token(user))).await;
    (world, worker)
}

/// Lets five users fail at once.
async fn open_circuit(world: &World, worker: &WorkerProcess, fault: Fault) {
    world.scm.fail_always(fault);
    for reply in join_all(FAILING.map(|user| world.request(user))).await {
        error_message(&reply, "provider_unavailable");
    }
    assert_eq!(state(worker, world).await, 2);
}

/// 0 closed, 1 half open, 2 open.
async fn state(worker: &WorkerProcess, world: &World) -> usize {
    worker.count(&format!(r#"tokenkeeper_circuit_state{{host="{}"}}"#, world.scm.host())).await
}

async fn changes(worker: &WorkerProcess, world: &World, to: &str) -> usize {
    let series = format!(r#"tokenkeeper_circuit_transitions_total{{host="{}",to="{to}"}}"#, world.scm.host());
    worker.count(&series).await
}

/// Where a request is told to come back later.
fn retry_after(reply: &Value) -> u64 {
    error_message(reply, "provider_unavailable");
    reply["error"]["retry_after_secs"].as_u64().unwrap_or_else(|| panic!("no retry_after_secs: {reply}"))
}

async fn wait_until_served(world: &World, user: &str) {
    eventually(&format!("{user} to be served"), PATIENCE, async || {
        (world.request(user).await["status"] == "ok").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_fails_five_users_in_a_row_is_left_alone_until_a_probe_finds_it_back() {
    let (world, worker) = world_and_worker(Dialect::BitbucketServer).await;
    world.scm.fail_always(Fault::Status(500));
    for user in &FAILING[..4] {
        let asked = Instant::now();
        error_message(&world.request(user).await, "provider_unavailable");
        assert_eq!(world.scm.refresh_requests(user), 5, "a refresh is given up after so many calls");
        assert!(asked.elapsed() < Duration::from_secs(10), "long before its own time is over");
    }
    assert_eq!((state(&worker, &world).await, changes(&worker, &world, "open").await), (0, 0));

    let told = retry_after(&world.request(FAILING[4]).await);

    assert_eq!(told, 1);
    assert_eq!(
        world.scm.refresh_requests(FAILING[4]),
        1,
        "the retries under way stop with the fifth user's failure"
    );
    assert_eq!((state(&worker, &world).await, changes(&worker, &world, "open").await), (2, 1));
    world.scm.heal();
    wait_until_served(&world, "bob").await;
    assert_eq!(state(&worker, &world).await, 0);
    assert_eq!(changes(&worker, &world, "closed").await, 1);
    assert_eq!(world.scm.refresh_requests("bob"), 1);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_nobody_listens_at_is_left_alone_after_five_users() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("refresh.retry_initial_ms", 20).set("refresh.circuit_open_secs", 60);
    world.apply_provider(|provider| provider.token_url = Some("http://127.0.0.1:1/".parse().unwrap())).await;
    let worker = world.spawn_worker().await;
    join_all(FAILING.map(|user| world.user_with_expired_token(user))).await;

    for reply in join_all(FAILING.map(|user| world.request(user))).await {
        error_message(&reply, "provider_unavailable");
    }

    assert_eq!((state(&worker, &world).await, changes(&worker, &world, "open").await), (2, 1));
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_of_users_who_were_refreshed_before_open_the_circuit_as_well() {
    let token_lifetime = Duration::from_secs(2);
    let options = ScmOptions { token_lifetime, ..ScmOptions::new(Dialect::GitHub) };
    let mut world = World::with_scm(Kind::Sqlite, options).await;
    world.set("refresh.retry_initial_ms", 20).set("refresh.circuit_open_secs", 60);
    let worker = world.spawn_worker().await;
    join_all(FAILING.map(|user| world.user_with_expired_token(user))).await;
    for user in FAILING {
        assert_eq!(world.request_for(user, 1).await["refresh"], "required");
    }
    world.scm.fail_always(Fault::CloseBefore);

    eventually("the circuit to open", PATIENCE, async || {
        join_all(FAILING.map(|user| world.request_for(user, 1))).await;
        (state(&worker, &world).await == 2).then_some(())
    })
    .await;

    // At most as many calls each as one refresh is given.
    let failed = world.scm.log().len() - FAILING.len();
    assert!(failed <= 25, "{failed} calls until it was left alone");
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_circuit_allows_no_lease_and_no_call_and_valid_tokens_are_served() {
    let (world, worker) = world_and_worker_with(Dialect::BitbucketServer, 60).await;
    let pair = world.user_with_token("dave").await;
    open_circuit(&world, &worker, Fault::Status(500)).await;
    world.scm.heal();

    let asked = Instant::now();
    let told = retry_after(&world.request("bob").await);
    let served = world.request("dave").await;

    assert!((1..=60).contains(&told), "{told}");
    assert!(asked.elapsed() < Duration::from_secs(5), "at once, not in {:?}", asked.elapsed());
    assert_eq!(token(&served)["value"], pair.access_token.as_str());
    assert_eq!((&served["refresh"], &served["warnings"]), (&json!("none"), &json!(["refresh_failed"])));
    assert_eq!((world.scm.refresh_requests("bob"), world.scm.refresh_requests("dave")), (0, 0));
    for user in ["bob", "dave"] {
        let entry = world.entry(user).await;
        assert_eq!((entry.lease, entry.failure, entry.attempt), (None, None, None), "{user}");
    }
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_circuit_sends_one_probe_at_a_time() {
    let (world, worker) = world_and_worker(Dialect::GitHub).await;
    open_circuit(&world, &worker, Fault::Status(500)).await;
    world.scm.heal();
    let gate = world.scm.hold_refreshes();
    let asked = world.scm.log().len();

    // Whoever comes first after the second is over is the probe.
    let mut pending = Vec::new();
    eventually("a probe", PATIENCE, async || {
        pending.extend(join_all(["bob", "carol"].map(|user| world.send(user))).await);
        (changes(&worker, &world, "half_open").await == 1).then_some(())
    })
    .await;
    assert_eq!(state(&worker, &world).await, 1);
    gate.wait_for_parked(1).await;
    let others = ["alice", "bob", "carol"].into_iter().filter(|user| world.scm.refresh_requests(user) == 0);
    for user in others.chain([FAILING[0]]) {
        let reply = world.request(user).await;
        assert_eq!(retry_after(&reply), 1, "while the probe is under way");
    }
    assert_eq!(world.scm.log().len(), asked + 1);
    gate.release();

    for user in ["alice", "bob", "carol", FAILING[0]] {
        wait_until_served(&world, user).await;
    }
    assert_eq!(state(&worker, &world).await, 0);
    drop(pending);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_times_out_counts_as_a_failure_of_the_host() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("refresh.retry_initial_ms", 20).set("refresh.circuit_failures", 2);
    world.set("refresh.total_timeout_secs", 1).set("refresh.connect_timeout_secs", 1);
    let worker = world.spawn_worker().await;
    for user in ["alice", "bob", "carol"] {
        world.user_with_expired_token(user).await;
    }
    world.scm.fail_always(Fault::Hang);

    for reply in join_all(["alice", "bob"].map(|user| world.request(user))).await {
        retry_after(&reply);
    }

    let asked = Instant::now();
    retry_after(&world.request("carol").await);
    assert!(asked.elapsed() < Duration::from_secs(1), "at once, not in {:?}", asked.elapsed());
    assert_eq!(world.scm.refresh_requests("carol"), 0);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_after_answered_to_two_users_applies_to_all_users_of_the_host() {
    let (world, worker) = world_and_worker(Dialect::GitHub).await;
    world.scm.fail_next(2, Fault::RetryAfter { status: 429, seconds: 120 });

    assert_eq!(retry_after(&world.request("alice").await), 120);
    assert_eq!(state(&worker, &world).await, 0, "one of them is one user's affair");
    assert_eq!(retry_after(&world.request("bob").await), 120);
    let told = retry_after(&world.request("carol").await);

    assert!((100..=120).contains(&told), "{told}");
    assert_eq!((world.scm.refresh_requests("alice"), world.scm.refresh_requests("carol")), (1, 0));
    assert_eq!(state(&worker, &world).await, 2);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_circuit_whose_time_is_over_is_half_open_even_if_nobody_asks() {
    let (world, worker) = world_and_worker_with(Dialect::GitHub, 2).await;
    open_circuit(&world, &worker, Fault::Status(500)).await;
    eventually("the circuit to be half open", PATIENCE, async || {
        (state(&worker, &world).await == 1).then_some(())
    })
    .await;
    assert_eq!(changes(&worker, &world, "half_open").await, 0, "nobody has probed");
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_request_does_not_open_the_circuit() {
    let (world, worker) = world_and_worker(Dialect::GitHub).await;
    world.scm.fail_always(Fault::Redirect);
    for _ in 0..3 {
        for user in ["alice", "bob", "carol"] {
            error_message(&world.request(user).await, "provider_misconfigured");
        }
    }
    assert_eq!(state(&worker, &world).await, 0);
    assert_eq!(world.scm.log().len(), 9);
    worker.stop(&world).await;
}
