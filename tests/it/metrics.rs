//! `/metrics`, `/healthz` and `/readyz` of a real worker process. The two `gitpod_…` names are an interface.

use std::time::Duration;

use serde_json::json;
use tokenkeeper::clock::Timestamp;
use tokenkeeper::decide::Cause;
use tokenkeeper::store::Guarded;
use tokenkeeper_testkit::proxy::FaultProxy;
use tokenkeeper_testkit::queues::{TOKEN_REQUEST, TOKEN_STORE};

use crate::harness::{Dialect, Fault, Kind, PATIENCE, WorkerProcess, World, eventually};

/// How often requests ended so.
async fn requests(worker: &WorkerProcess, world: &World, result: &str, opportunistic: &str) -> usize {
    let host = world.scm.host();
    let series = format!(
        "gitpod_scm_token_refresh_requests_total{{host=\"{host}\",result=\"{result}\",opportunisticRefresh=\"{opportunistic}\"}}"
    );
    worker.count(&series).await
}

/// Lets somebody hold jdoe's refresh lease for this long.
async fn hold_lease(world: &World, user: &str, ttl: Duration) {
    let entry = world.entry(user).await;
    let now = Timestamp::from_millis(world.scm.now_ms());
    let taken = world.store.take_lease(&entry, Cause::Required, "somebody else", now, ttl).await.unwrap();
    assert_eq!(taken, Guarded::Done);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_result_is_counted_under_the_labels_that_dashboards_use() {
    let mut world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    world.set("refresh.wait_secs", 1).set("refresh.retry_initial_ms", 20);
    let worker = world.spawn_worker().await;

    world.user_with_token("alice").await;
    world.request("alice").await;
    assert_eq!(requests(&worker, &world, "success", "true").await, 1);
    world.request("alice").await;
    assert_eq!(requests(&worker, &world, "still_valid", "reserved").await, 1);
    world.user_with_expired_token("bob").await;
    world.request("bob").await;
    assert_eq!(requests(&worker, &world, "success", "false").await, 1);
    world.request("nobody").await;
    assert_eq!(requests(&worker, &world, "no_token", "false").await, 1);
    world.user_with_expired_token("carol").await;
    world.scm.fail_next(1, Fault::InvalidGrant);
    world.request("carol").await;
    assert_eq!(requests(&worker, &world, "error", "false").await, 1);
    let unrefreshable = json!({"user_id": "dave", "host": world.scm.host(), "token": {"value": "dave-token", "expires_at": "2020-01-01T00:00:00Z"}});
    world.broker.request(TOKEN_STORE, unrefreshable).await;
    world.request("dave").await;
    assert_eq!(requests(&worker, &world, "not_refreshable", "false").await, 1);
    let lasting = json!({"user_id": "erin", "host": world.scm.host(), "token": {"value": "erin-token"}});
    world.broker.request(TOKEN_STORE, lasting).await;
    world.request("erin").await;
    assert_eq!(requests(&worker, &world, "still_valid", "false").await, 1);

    hold_lease(&world, "bob", Duration::from_secs(600)).await;
    assert_eq!(world.request("bob").await["error"]["code"], "refresh_timeout");
    assert_eq!(requests(&worker, &world, "timeout", "false").await, 1);

    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_histogram_has_the_buckets_that_dashboards_use() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.spawn_worker().await;
    world.user_with_expired_token("jdoe").await;
    world.request("jdoe").await;
    let (_, metrics) = worker.get("metrics").await;
    let prefix =
        format!("gitpod_scm_token_refresh_latency_seconds_bucket{{host=\"{}\",le=\"", world.scm.host());
    let buckets: Vec<&str> =
        metrics.lines().filter_map(|line| line.strip_prefix(&prefix)?.split('"').next()).collect();
    assert_eq!(buckets, ["0.01", "0.1", "0.2", "0.5", "1", "2", "5", "10", "+Inf"]);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_nobody_knows_makes_no_series() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.spawn_worker().await;
    let reply =
        world.broker.request(TOKEN_REQUEST, json!({"user_id": "u", "host": "made.up.example.org"})).await;
    assert_eq!(reply.body["error"]["code"], "unknown_host");
    let (_, metrics) = worker.get("metrics").await;
    assert!(metrics.contains("tokenkeeper_messages_total"), "{metrics}");
    assert!(!metrics.contains("made.up"), "{metrics}");
    assert_eq!(worker.count("tokenkeeper_messages_total{type=\"token.request\",outcome=\"error\"}").await, 1);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_is_alive_but_not_ready_while_the_broker_is_away() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let proxy = FaultProxy::start_for_url(world.broker.url(), 5672).await;
    let url = proxy.url(world.broker.url());
    world.set("broker.url", url);
    let worker = world.spawn_worker().await;
    assert_eq!(worker.get("readyz").await, (200, "ready\n".to_owned()));

    proxy.refuse();
    proxy.cut_all();

    let reasons = eventually("the worker to say that it is not ready", PATIENCE, async || {
        let (status, body) = worker.get("readyz").await;
        (status == 503 && body.contains("token.request is not consumed") && body.contains("publishing"))
            .then_some(body)
    })
    .await;
    assert!(reasons.lines().all(|reason| reason.starts_with("broker: ")), "{reasons}");
    assert_eq!(worker.get("healthz").await.0, 200);
    proxy.accept();
    worker.wait_until_ready().await;
    assert!(worker.count("tokenkeeper_broker_reconnects_total{connection=\"consume\"}").await >= 1);
    assert!(worker.count("tokenkeeper_broker_reconnects_total{connection=\"publish\"}").await >= 1);
    worker.stop(&world).await;
}
