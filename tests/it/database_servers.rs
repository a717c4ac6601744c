//! A database server that answers and takes no writes: a primary that was demoted, a standby that somebody was led to, a node
//! without its cluster. It is an outage as any other, and another server that takes writes ends it.
//!
//! The servers are this file's own. Where their programs are not installed, the tests say so and look at nothing.

mod mariadb;
mod names;
mod sqlite;
mod standby;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;
use tempfile::TempDir;
use tokenkeeper_testkit::queues::{BasicProperties, PendingReply, TOKEN_REPORT, TOKEN_STORE};
use tokenkeeper_testkit::servers::{self, Postgres};

use crate::harness::reply::token;
use crate::harness::{Dialect, Kind, PATIENCE, WorkerProcess, World, eventually};

/// A folder that servers' accounts may enter.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// Whether this machine can run a PostgreSQL of a test's own.
#[allow(clippy::print_stderr, reason = "a test that looks at nothing must say so")]
fn can_run_postgres() -> bool {
    let can = servers::are_installed();
    if !can {
        eprintln!("SKIPPED: PostgreSQL is not installed here (Debian: apt-get install postgresql)");
    }
    can
}

/// What a worker has in hand, and what waits in the queues, while its database takes no writes.
struct Meanwhile {
    refreshing: PendingReply,
    refreshed: PendingReply,
    queued: Vec<PendingReply>,
}

/// Users `in-hand` and `waiting`, whose tokens have expired, and `u-0` to `u-29`.
async fn log_users_in(world: &World) {
    for user in ["in-hand", "waiting"] {
        world.user_with_expired_token(user).await;
    }
    for number in 0..30 {
        world.user_with_token(&format!("u-{number}")).await;
    }
}

/// Has the provider answer a refresh when the database takes no writes any more, and fills the queues then.
async fn while_read_only(
    world: &World,
    worker: &WorkerProcess,
    take_away: impl Future<Output = ()>,
    why: &str,
) -> Meanwhile {
    let gate = world.scm.hold_refreshes();
    let refreshed = world.send("in-hand").await;
    gate.wait_for_parked(1).await;
    take_away.await;
    gate.release();
    // Takes no lease, and so asks no provider. It may be taken in hand before the worker notices, or wait in the queue.
    let refreshing = world.send("waiting").await;
    wait_until_paused(worker, why).await;
    let mut queued = Vec::new();
    for number in 0..30 {
        queued.push(world.send(&format!("u-{number}")).await);
    }
    let pair = world.scm.authorize("late");
    let login = world.scm.token_store_body(&pair).to_string();
    world.broker.publish(TOKEN_STORE, login, BasicProperties::default()).await;
    eventually("the requests to be in the queue", PATIENCE, async || {
        (world.broker.queue_depth("token-requests").await >= 30).then_some(())
    })
    .await;
    Meanwhile { refreshing, refreshed, queued }
}

async fn wait_until_paused(worker: &WorkerProcess, why: &str) {
    eventually("the worker to stop taking messages", PATIENCE, async || {
        let (status, problems) = worker.get("readyz").await;
        let is_paused = problems.contains("does not consume") && problems.contains(why);
        (status == 503 && is_paused).then_some(())
    })
    .await;
}

/// It takes writes again: everything is answered, nobody is blamed, and it was told once.
async fn all_is_well_again(world: &World, worker: WorkerProcess, meanwhile: Meanwhile) {
    let Meanwhile { refreshing, refreshed, queued } = meanwhile;
    worker.wait_until_ready().await;
    let latest = world.scm.latest_pair("in-hand").unwrap().access_token;
    assert_eq!(token(&refreshed.reply().await.body)["value"], latest.as_str());
    assert_eq!(world.scm.refresh_requests("in-hand"), 1);
    token(&refreshing.reply().await.body);
    for queued in queued {
        token(&queued.reply().await.body);
    }
    eventually("the login to be stored", PATIENCE, async || {
        (world.request("late").await["status"] == "ok").then_some(())
    })
    .await;
    assert!(world.broker.dead_letters().await.is_empty(), "it is no fault of a message");
    let host = world.scm.host();
    assert_eq!(worker.count(&format!(r#"tokenkeeper_circuit_state{{host="{host}"}}"#)).await, 0);
    assert_eq!(worker.count("tokenkeeper_database_away_total").await, 1);
    assert_eq!(worker.log().matches("waiting for the database").count(), 1, "{}", worker.log());
    assert_eq!(worker.log().matches("the database is usable again").count(), 1, "{}", worker.log());
    assert_tells_no_line_twice(&worker);
    worker.stop(world).await;
}

fn assert_tells_no_line_twice(worker: &WorkerProcess) {
    let log = worker.log();
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let told: Vec<String> = lines
        .filter(|line| line["level"] == "ERROR" || line["level"] == "WARN")
        .map(|line| format!("{} {}", line["message"], line["error"]))
        .collect();
    let distinct: BTreeSet<&String> = told.iter().collect();
    assert_eq!(distinct.len(), told.len(), "{told:#?}");
    assert!(told.len() < 12, "{told:#?}");
}

/// The sessions that a worker has on a PostgreSQL.
async fn sessions(server: &Postgres) -> u32 {
    let question = "select count(*) from pg_stat_activity where application_name = 'the worker'";
    server.query("postgres", question).await.unwrap().parse().unwrap()
}

/// The same URL, whose sessions the server knows by a name.
fn named(url: &str) -> String {
    format!("{url}?application_name=the%20worker")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgresql_that_becomes_read_only_at_the_same_address_is_an_outage_and_nothing_is_lost() {
    if !can_run_postgres() {
        return;
    }
    let folder = folder();
    let server = Postgres::start(folder.path(), None).await.unwrap();
    server.create_database("tk").await.unwrap();
    let mut world = World::on(Kind::Postgres, server.url("tk"), Dialect::BitbucketServer).await;
    world.set("database.url", named(&server.url("tk")));
    let worker = world.spawn_worker().await;
    log_users_in(&world).await;

    let take_away = async { server.set_read_only(true).await.unwrap() };
    let meanwhile = while_read_only(&world, &worker, take_away, "is read-only (database.url)").await;
    eventually("the worker's sessions to end", PATIENCE, async || {
        (sessions(&server).await <= 1).then_some(())
    })
    .await;
    server.set_read_only(false).await.unwrap();

    all_is_well_again(&world, worker, meanwhile).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_database_is_noticed_without_a_request() {
    if !can_run_postgres() {
        return;
    }
    let folder = folder();
    let server = Postgres::start(folder.path(), None).await.unwrap();
    server.create_database("tk").await.unwrap();
    let world = World::on(Kind::Postgres, server.url("tk"), Dialect::BitbucketServer).await;
    let worker = world.spawn_worker().await;

    server.set_read_only(true).await.unwrap();
    wait_until_paused(&worker, "is read-only (database.url)").await;
    server.set_read_only(false).await.unwrap();

    worker.wait_until_ready().await;
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_and_a_login_without_reply_to_wait_for_a_database_that_takes_writes() {
    if !can_run_postgres() {
        return;
    }
    let folder = folder();
    let server = Postgres::start(folder.path(), None).await.unwrap();
    server.create_database("tk").await.unwrap();
    let mut world = World::on(Kind::Postgres, server.url("tk"), Dialect::BitbucketServer).await;
    world.set("worker.request_budget_secs", 2).set("refresh.wait_secs", 1);
    world.set("refresh.opportunistic_budget_secs", 1);
    let worker = world.spawn_worker().await;
    world.user_with_token("jdoe").await;
    server.set_read_only(true).await.unwrap();

    let report = serde_json::json!({
        "user_id": "jdoe", "host": world.scm.host(), "token_sha256": "0".repeat(64),
    });
    world.broker.publish(TOKEN_REPORT, report.to_string(), BasicProperties::default()).await;
    let pair = world.scm.authorize("late");
    let login = world.scm.token_store_body(&pair).to_string();
    world.broker.publish(TOKEN_STORE, login, BasicProperties::default()).await;
    wait_until_paused(&worker, "is read-only (database.url)").await;
    worker.wait_for_log("it will be retried later", 2).await;
    server.set_read_only(false).await.unwrap();

    eventually("the login to be stored", PATIENCE, async || {
        (world.request("late").await["status"] == "ok").then_some(())
    })
    .await;
    assert!(world.broker.dead_letters().await.is_empty());
    worker.stop(&world).await;
}
