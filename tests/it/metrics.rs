//! `/metrics`, `/healthz` and `/readyz` of a real worker process. The two `gitpod_…` names and their labels are an
//! interface: dashboards use them.

use std::collections::BTreeMap;
use std::time::Duration;

use sea_orm::{ConnectionTrait, TransactionTrait};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokenkeeper::domain::clock::Timestamp;
use tokenkeeper::store::Guarded;
use tokenkeeper_testkit::proxy::FaultProxy;
use tokenkeeper_testkit::queues::{BasicProperties, TOKEN_REQUEST, TOKEN_STORE};

use crate::harness::reply::{error_message, token};
use crate::harness::{Dialect, Fault, Kind, PATIENCE, ScmOptions, WorkerProcess, World, eventually};

const REQUESTS: &str = "gitpod_scm_token_refresh_requests_total";
const LATENCY: &str = "gitpod_scm_token_refresh_latency_seconds";

mod documented;

type Labels = BTreeMap<String, String>;

/// Every series of a metric: its labels, and its value as it is written.
async fn series(worker: &WorkerProcess, name: &str) -> Vec<(Labels, String)> {
    let (status, metrics) = worker.get("metrics").await;
    assert_eq!(status, 200);
    let of_metric = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.split_once("} ")?,
            None => ("", rest.strip_prefix(' ')?),
        };
        Some((read_labels(labels), value.to_owned()))
    });
    of_metric.collect()
}

/// `a="x",b="y"`, without quotes inside.
fn read_labels(text: &str) -> Labels {
    let label = |text: &str| {
        let (name, value) = text.split_once("=\"").expect("a label");
        (name.to_owned(), value.trim_end_matches('"').to_owned())
    };
    text.split("\",").filter(|label| !label.is_empty()).map(label).collect()
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// How often requests ended how, by `result` and `opportunisticRefresh`, at this world's host.
async fn results(worker: &WorkerProcess, world: &World) -> BTreeMap<(String, String), String> {
    let of_requests = series(worker, REQUESTS).await.into_iter().map(|(mut labels, value)| {
        assert_eq!(labels.remove("host"), Some(world.scm.host()));
        let result = labels.remove("result").expect("the label result");
        let opportunistic = labels.remove("opportunisticRefresh").expect("the label opportunisticRefresh");
        assert!(labels.is_empty(), "there are three labels and no other: {labels:?}");
        ((result, opportunistic), value)
    });
    of_requests.collect()
}

fn expected(results: &[(&str, &str, u32)]) -> BTreeMap<(String, String), String> {
    let counted = |(result, opportunistic, count): &(&str, &str, u32)| {
        (((*result).to_owned(), (*opportunistic).to_owned()), count.to_string())
    };
    results.iter().map(counted).collect()
}

async fn store(world: &World, user: &str, pair: Value) {
    let body = json!({"user_id": user, "host": world.scm.host(), "token": pair});
    assert_eq!(world.broker.request(TOKEN_STORE, body).await.body, json!({"status": "ok"}));
}

/// Lets another worker hold the lease of a user's token.
async fn lease_to_somebody_else(world: &World, user: &str) {
    let entry = world.entry(user).await;
    let now = Timestamp::from_millis(world.scm.now_ms());
    let hour = Duration::from_hours(1);
    let taken = world.store.take_lease(&entry, None, "somebody else", "sent", now, hour).await;
    assert_eq!(taken.unwrap(), Guarded::Done);
}

// --- Requests and their results ---

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_result_is_counted_under_the_labels_that_dashboards_use() {
    let mut world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    world.set("refresh.wait_secs", 1);
    let worker = world.spawn_worker().await;
    assert!(series(&worker, REQUESTS).await.is_empty(), "nobody has asked yet");

    world.user_with_token("alice").await;
    assert_eq!(world.request("alice").await["refresh"], "opportunistic");
    assert_eq!(world.request("alice").await["refresh"], "reserved");
    assert_eq!(world.request("alice").await["refresh"], "reserved");
    world.user_with_expired_token("bob").await;
    assert_eq!(world.request("bob").await["refresh"], "required");
    world.user_with_token("carol").await;
    world.scm.fail_next_for("carol", 1, Fault::InvalidClient);
    assert_eq!(world.request("carol").await["warnings"], json!(["refresh_failed"]));
    store(&world, "dave", json!({"value": "a-token-for-ever"})).await;
    assert_eq!(world.request("dave").await["refresh"], "none");
    store(&world, "erin", json!({"value": "a-dead-token", "expires_at": "2020-01-01T00:00:00Z"})).await;
    error_message(&world.request("erin").await, "not_refreshable");
    world.user_with_expired_token("frank").await;
    world.scm.revoke("frank");
    error_message(&world.request("frank").await, "reauthorization_required");
    error_message(&world.request("nobody").await, "user_not_found");
    world.user_with_token("grace").await;
    lease_to_somebody_else(&world, "grace").await;
    error_message(&world.request("grace").await, "refresh_timeout");

    let counted = results(&worker, &world).await;

    assert_eq!(
        counted,
        expected(&[
            ("success", "true", 1),
            ("success", "false", 1),
            ("still_valid", "reserved", 2),
            ("still_valid", "true", 1),
            ("still_valid", "false", 1),
            ("not_refreshable", "false", 1),
            ("error", "false", 1),
            ("no_token", "false", 1),
            ("timeout", "false", 1),
        ])
    );
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_token_that_the_last_look_finds_is_a_success_after_timeout() {
    let mut world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    world.set("refresh.wait_secs", 4);
    let worker = world.spawn_worker().await;
    world.user_with_expired_token("jdoe").await;
    let gate = world.scm.hold_refreshes();
    let refreshing = world.send("jdoe").await;
    gate.wait_for_parked(1).await;
    let waiting = world.send("jdoe").await;
    worker.wait_for_lease_waits(&world, 1).await;

    // A login ends the lease; the refresh that is waited for goes on hanging.
    let login = world.user_with_token("jdoe").await;

    let reply = waiting.reply().await.body;
    assert_eq!((&reply["refresh"], &token(&reply)["value"]), (&json!("none"), &json!(login.access_token)));
    let after_timeout = expected(&[("success_after_timeout", "false", 1)]);
    assert_eq!(results(&worker, &world).await, after_timeout);
    gate.release();
    assert_eq!(refreshing.reply().await.body["refresh"], "reserved");
    assert!(worker.log().contains("refreshed pair dropped: a login stored a newer one"));
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workspace_start_counts_one_request_a_known_host() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.spawn_worker().await;
    world.user_with_token("jdoe").await;
    let here = world.scm.clone_url("proj", "repo");
    let repositories = [here.as_str(), "https://made.up.example.org/p/r.git", here.as_str()];
    let body = json!({"workspace_id": "w", "user_id": "jdoe", "repositories": repositories});
    world.broker.request("workspace.start", body).await;
    assert_eq!(results(&worker, &world).await, expected(&[("still_valid", "false", 1)]));
    worker.stop(&world).await;
}

/// A worker whose only way to its PostgreSQL leads through the proxy.
async fn worker_behind_proxy() -> (World, FaultProxy, WorkerProcess) {
    let mut world = World::new(Kind::Postgres, Dialect::GitHub).await;
    let direct = world.settings().database.url.expose_secret().to_owned();
    let proxy = FaultProxy::start_for_url(&direct, 5432).await;
    world.set("database.url", proxy.url(&direct)).set("database.acquire_timeout_secs", 1);
    world.set("worker.request_budget_secs", 1).set("refresh.wait_secs", 1);
    world.set("refresh.opportunistic_budget_secs", 1);
    let worker = world.spawn_worker().await;
    (world, proxy, worker)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_host_gets_no_series_even_while_the_database_is_away() {
    let (world, proxy, worker) = worker_behind_proxy().await;
    let made_up = json!({"user_id": "u", "host": "made.up.example.org"});

    error_message(&world.broker.request(TOKEN_REQUEST, made_up.clone()).await.body, "unknown_host");
    // The worker has the request in hand, and waits for the answer, when the database goes away.
    // Through the proxy as well: the lock ends with its connection.
    let holding = world.connection().await.begin().await.unwrap();
    holding.execute_unprepared("lock table auth_provider in access exclusive mode").await.unwrap();
    let request = world.broker.send(TOKEN_REQUEST, made_up.to_string(), BasicProperties::default()).await;
    eventually("the request to be in hand", PATIENCE, async || {
        (worker.requests_in_hand().await == 1).then_some(())
    })
    .await;
    proxy.refuse();
    proxy.cut_all();
    error_message(&request.reply().await.body, "deadline_exceeded");

    let (_, metrics) = worker.get("metrics").await;
    assert!(!metrics.contains("made.up"), "{metrics}");
    assert_eq!(worker.count(r#"tokenkeeper_messages_total{type="token.request",outcome="error"}"#).await, 2);
    worker.stop(&world).await;
}

// --- The histogram ---

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_latency_of_refreshes_has_the_buckets_and_the_label_that_dashboards_use() {
    // At least 0.2 s, so that not everything lands in the first bucket.
    let slow = ScmOptions { latency: Duration::from_millis(200), ..ScmOptions::new(Dialect::GitHub) };
    let world = World::with_scm(Kind::Sqlite, slow).await;
    let worker = world.spawn_worker().await;
    for user in ["alice", "bob"] {
        world.user_with_expired_token(user).await;
        assert_eq!(world.request(user).await["refresh"], "required");
    }
    world.request("alice").await;

    let host = world.scm.host();
    let buckets = series(&worker, &format!("{LATENCY}_bucket")).await;
    let limits: Vec<&str> = buckets.iter().map(|(labels, _)| labels["le"].as_str()).collect();
    assert_eq!(limits, ["0.01", "0.1", "0.2", "0.5", "1", "2", "5", "10", "+Inf"]);
    for (bucket, _) in &buckets {
        assert_eq!(*bucket, labels(&[("host", &host), ("le", &bucket["le"])]), "two labels and no other");
    }
    let counts: Vec<&str> = buckets.iter().map(|(_, count)| count.as_str()).collect();
    assert_eq!(
        (counts[0], counts[1], counts[8]),
        ("0", "0", "2"),
        "what takes 0.2 s is in no smaller bucket"
    );
    let of_host = labels(&[("host", &host)]);
    assert_eq!(series(&worker, &format!("{LATENCY}_count")).await, [(of_host, "2".to_owned())]);
    worker.stop(&world).await;
}

// --- tokenkeeper's own ---

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_counter_exists_at_zero_before_anything_happens() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.spawn_worker().await;
    let (_, metrics) = worker.get("metrics").await;
    for (name, kind, count) in [
        ("tokenkeeper_messages_total", "counter", 20),
        ("tokenkeeper_messages_in_flight", "gauge", 4),
        ("tokenkeeper_dead_letters_total", "counter", 4),
        ("tokenkeeper_dead_letters_sealed_total", "counter", 1),
        ("tokenkeeper_unroutable_replies_total", "counter", 1),
        ("tokenkeeper_broker_reconnects_total", "counter", 5),
        ("tokenkeeper_replies_given_up_total", "counter", 3),
        ("tokenkeeper_suspects_total", "counter", 3),
        ("tokenkeeper_panics_total", "counter", 3),
        ("tokenkeeper_lost_compare_and_sets_total", "counter", 5),
        ("tokenkeeper_flag_reloads_total", "counter", 2),
        ("tokenkeeper_audit_lines_lost_total", "counter", 2),
        ("tokenkeeper_housekeeping_passes_total", "counter", 3),
        ("tokenkeeper_housekeeping_entries_total", "counter", 4),
    ] {
        assert!(metrics.contains(&format!("# TYPE {name} {kind}\n")), "{name} is no {kind}:\n{metrics}");
        assert!(metrics.contains(&format!("# HELP {name} ")), "{name} is not explained");
        let found = series(&worker, name).await;
        assert_eq!(found.len(), count, "{name}: {found:?}");
        // A busy broker may close a connection that has just begun.
        let is_zero =
            name == "tokenkeeper_broker_reconnects_total" || found.iter().all(|(_, value)| value == "0");
        assert!(is_zero, "{name}: {found:?}");
    }
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_counted_by_type_and_outcome_and_timed() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("refresh.retry_initial_ms", 10);
    let worker = world.spawn_worker().await;
    world.user_with_expired_token("jdoe").await;
    world.scm.fail_next(2, Fault::Status(500));
    assert_eq!(world.request("jdoe").await["refresh"], "required");
    error_message(&world.request("nobody").await, "user_not_found");
    world.broker.request(TOKEN_REQUEST, json!({})).await;
    world.user_with_expired_token("eve").await;
    world.scm.revoke("eve");
    world.request("eve").await;

    let host = world.scm.host();
    for (counter, expected) in [
        (r#"tokenkeeper_messages_total{type="token.request",outcome="ok"}"#.to_owned(), 1),
        (r#"tokenkeeper_messages_total{type="token.request",outcome="error"}"#.to_owned(), 2),
        (r#"tokenkeeper_messages_total{type="token.request",outcome="dead_lettered"}"#.to_owned(), 1),
        (r#"tokenkeeper_messages_total{type="token.store",outcome="ok"}"#.to_owned(), 2),
        (r#"tokenkeeper_dead_letters_total{type="token.request",reason="invalid_request"}"#.to_owned(), 1),
        (r#"tokenkeeper_message_handling_seconds_count{type="token.request"}"#.to_owned(), 4),
        (format!("tokenkeeper_refresh_retries_total{{host=\"{host}\"}}"), 2),
        (
            format!(
                "tokenkeeper_refresh_failures_total{{host=\"{host}\",code=\"reauthorization_required\"}}"
            ),
            1,
        ),
        (r#"tokenkeeper_messages_in_flight{type="token.request"}"#.to_owned(), 0),
    ] {
        // A message is settled a moment after its reply is seen.
        let what = format!("{counter} to be {expected}");
        eventually(&what, PATIENCE, async || (worker.count(&counter).await == expected).then_some(())).await;
    }
    worker.stop(&world).await;
}

// --- Health ---

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
        (status == 503 && body.contains("does not consume") && body.contains("publishing")).then_some(body)
    })
    .await;
    let of_the_broker = |reason: &str| reason.starts_with("broker: ") || reason.contains("does not consume");
    assert!(reasons.lines().all(of_the_broker), "{reasons}");
    assert_eq!(worker.get("healthz").await.0, 200);
    proxy.accept();
    worker.wait_until_ready().await;
    assert!(worker.count("tokenkeeper_broker_reconnects_total{connection=\"consume\"}").await >= 1);
    assert!(worker.count("tokenkeeper_broker_reconnects_total{connection=\"publish\"}").await >= 1);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_is_alive_but_not_ready_while_the_database_is_away_or_says_nothing() {
    let (world, proxy, worker) = worker_behind_proxy().await;
    let not_ready = async || {
        eventually("the worker to say that it is not ready", PATIENCE, async || {
            let (status, body) = worker.get("readyz").await;
            (status == 503).then_some(body)
        })
        .await
    };

    proxy.refuse();
    proxy.cut_all();
    let reasons = not_ready().await;
    assert!(reasons.starts_with("database: "), "the cause comes first: {reasons}");
    assert_eq!(worker.get("healthz").await.0, 200);
    proxy.accept();
    worker.wait_until_ready().await;

    proxy.freeze();
    let reasons = not_ready().await;
    assert!(reasons.starts_with("database: "), "the cause comes first: {reasons}");
    proxy.thaw();
    worker.wait_until_ready().await;
    worker.stop(&world).await;
}
