//! The limit of open files: raised at start, and nobody else's fault where it is reached (Linux: `prlimit`, `/proc`).
#![cfg(target_os = "linux")]

use serde_json::json;
use tokenkeeper_testkit::queues::TOKEN_STORE;

use crate::harness::reply::error_message;
use crate::harness::{Dialect, Kind, SimulatedScm, WorkerProcess, World};

/// Soft and hard limit of a process.
fn open_files(pid: u32) -> (String, String) {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("the limit");
    let mut numbers = line.split_whitespace().map(str::to_owned);
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_raises_its_limit_of_open_files_as_far_as_it_may() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = WorkerProcess::spawn_with_open_files(&world, 128, 512).await;
    assert_eq!(open_files(worker.pid()), ("512".to_owned(), "512".to_owned()));
    worker.wait_for_log("limit of open files", 1).await;
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_without_a_file_left_says_so_and_holds_it_against_no_host() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("refresh.circuit_failures", 2);
    for key in ["worker.request_budget_secs", "refresh.wait_secs", "refresh.opportunistic_budget_secs"] {
        world.set(key, 3);
    }
    let worker = world.spawn_worker().await;
    let other = SimulatedScm::start_as(Dialect::GitHub).await;
    world.apply(&other, |_| {}).await;
    let pair = other.authorize_until("warm", other.now_ms() - 1_000);
    let stored = world.broker.request(TOKEN_STORE, other.token_store_body(&pair)).await;
    assert_eq!(stored.body, json!({"status": "ok"}));
    world.user_with_expired_token("jdoe").await;
    world.user_with_expired_token("eve").await;
    world.user_with_token("bystander").await;
    // So that what a refresh needs of the database is open.
    let warm = world.broker.request("token.request", json!({"user_id": "warm", "host": other.host()})).await;
    assert_eq!(warm.body["refresh"], "required");

    worker.limit_open_files(3).await;
    let (failed, too) = tokio::join!(world.request("jdoe"), world.request("eve"));
    let served = world.request("bystander").await;
    worker.limit_open_files(512).await;

    let message = error_message(&failed, "provider_unavailable");
    assert!(message.contains("this machine cannot connect"), "{message}");
    error_message(&too, "provider_unavailable");
    assert_eq!(served["status"], "ok");
    assert_eq!(world.scm.refresh_requests("jdoe"), 0);
    assert!(worker.count(r#"tokenkeeper_local_failures_total{cause="open_files"}"#).await > 0);
    let host = world.scm.host();
    let opened = format!(r#"tokenkeeper_circuit_transitions_total{{host="{host}",to="open"}}"#);
    assert_eq!(worker.count(&opened).await, 0);
    assert_eq!(world.request("jdoe").await["refresh"], "required", "the host is asked at once");
    worker.stop(&world).await;
}
