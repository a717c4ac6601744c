//! Workers that end: killed, told to stop, told twice, or told while they cannot.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokenkeeper_testkit::queues::PendingReply;

use crate::harness::{
    Dialect, Fault, Kind, PATIENCE, ScmOptions, WorkerProcess, World, eventually, on_every_database,
};

const STOPPING: &str = "stopping: finishing what is in hand";
const GRACE_PERIOD_OVER: &str = "the grace period is over";

/// A world in which the lease of a worker that died is over soon.
async fn world_with_short_leases(kind: Kind, dialect: Dialect) -> World {
    let mut world = World::new(kind, dialect).await;
    world.set("refresh.lease_ttl_secs", 2);
    world
}

/// Kills a worker, without a chance to say or do anything.
async fn kill(worker: WorkerProcess, world: &World) {
    worker.signal("KILL").await;
    let status = worker.wait(world).await;
    assert_eq!(status.code(), None, "it did not end by itself");
}

fn assert_latest(world: &World, reply: &Value, refresh: &str) {
    assert_eq!(reply["refresh"], refresh, "{reply}");
    let latest = world.scm.latest_pair("jdoe").expect("jdoe has authorised").access_token;
    assert_eq!(reply["token"]["value"], json!(latest));
    assert!(world.scm.is_alive(&latest));
}

on_every_database! {
    async fn a_killed_worker_s_request_is_answered_by_another_one(kind: Kind) {
        let world = world_with_short_leases(kind, Dialect::BitbucketServer).await;
        let doomed = world.spawn_worker().await;
        world.user_with_expired_token("jdoe").await;
        let gate = world.scm.hold_refreshes();
        let request = world.send("jdoe").await;
        gate.wait_for_parked(1).await;
        let other = world.spawn_worker().await;

        kill(doomed, &world).await;
        gate.discard();

        assert_latest(&world, &request.reply().await.body, "required");
        assert_eq!((world.scm.refreshes("jdoe"), world.scm.max_overlap("jdoe")), (1, 1));
        other.stop(&world).await;
    }

    async fn a_worker_that_is_told_to_stop_in_the_middle_of_a_refresh_finishes_it(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        let worker = world.spawn_worker().await;
        world.user_with_expired_token("jdoe").await;
        let gate = world.scm.hold_refreshes();
        let request = world.send("jdoe").await;
        gate.wait_for_parked(1).await;

        worker.signal("TERM").await;
        worker.wait_for_log(STOPPING, 1).await;
        gate.release();

        assert_latest(&world, &request.reply().await.body, "required");
        let status = worker.wait(&world).await;
        assert!(status.success(), "{status}");
        assert_eq!(world.scm.refreshes("jdoe"), 1);
        let successor = world.start_worker().await;
        assert_latest(&world, &world.request("jdoe").await, "reserved");
        successor.stop().await;
        assert_eq!(world.broker.stray_replies().len(), 0, "what was answered was acked as well");
    }

    async fn the_old_token_is_not_handed_out_when_the_new_pair_died_with_its_worker(kind: Kind) {
        let world = world_with_short_leases(kind, Dialect::BitbucketServer).await;
        let doomed = world.spawn_worker().await;
        let old = world.user_with_token("jdoe").await;
        let gate = world.scm.hold_refreshes();
        let request = world.send("jdoe").await;
        gate.wait_for_parked(1).await;
        let other = world.spawn_worker().await;

        kill(doomed, &world).await;
        gate.release();

        let reply = request.reply().await.body;
        assert!(!world.scm.is_alive(&old.access_token), "the SCM acted for the worker that died");
        assert_eq!(reply["error"]["code"], "reauthorization_required", "{reply}");
        let later = world.request("jdoe").await;
        assert_eq!(later["error"]["code"], "reauthorization_required", "{later}");
        other.stop(&world).await;
    }

    async fn a_pair_that_arrives_after_the_grace_period_is_stored(kind: Kind) {
        let mut world = World::new(kind, Dialect::BitbucketServer).await;
        world.set("worker.grace_period_secs", 1);
        let stopping = world.spawn_worker().await;
        world.user_with_expired_token("jdoe").await;
        let gate = world.scm.hold_refreshes();
        let request = world.send("jdoe").await;
        gate.wait_for_parked(1).await;
        let other = world.spawn_worker().await;

        stopping.signal("TERM").await;
        stopping.wait_for_log(GRACE_PERIOD_OVER, 1).await;
        other.wait_for_lease_waits(&world, 1).await;
        gate.release();

        let status = stopping.wait(&world).await;
        assert!(status.success(), "{status}");
        assert_latest(&world, &request.reply().await.body, "reserved");
        assert_eq!(world.scm.refresh_requests("jdoe"), 1, "the second worker waited for the first one's pair");
        other.stop(&world).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_is_answered_once_each_when_its_worker_stops_and_another_one_comes() {
    let mut world = World::with_scm(
        Kind::Sqlite,
        ScmOptions { latency: Duration::from_millis(5), ..ScmOptions::new(Dialect::BitbucketServer) },
    )
    .await;
    world.set("worker.prefetch_token_requests", 60);
    let stopping = world.spawn_worker().await;
    let users: Vec<String> = (0..20).map(|number| format!("user-{number}")).collect();
    join_all(users.iter().map(|user| world.user_with_expired_token(user))).await;
    let gate = world.scm.hold_refreshes();
    let requests = join_all((0..10).flat_map(|_| &users).map(|user| world.send(user))).await;
    assert_eq!(requests.len(), 200);
    eventually("a worker with its hands full", PATIENCE, async || {
        (stopping.requests_in_hand().await == 60).then_some(())
    })
    .await;
    assert_eq!(world.broker.queue_depth("token-requests").await, 140);

    stopping.signal("TERM").await;
    stopping.wait_for_log(STOPPING, 1).await;
    // At once: a host that keeps its first request waiting for a second is stalled, and those over its share of the
    // prefetch are sent away (bulkhead.rs).
    gate.release();
    let other = world.spawn_worker().await;

    let status = stopping.wait(&world).await;
    assert!(status.success(), "{status}");
    for reply in join_all(requests.into_iter().map(PendingReply::reply)).await {
        let turned_away = reply.body["error"]["code"] == "provider_unavailable";
        assert!(reply.body["status"] == "ok" || turned_away, "{}", reply.body);
    }
    let answered =
        |outcome| format!(r#"tokenkeeper_messages_total{{type="token.request",outcome="{outcome}"}}"#);
    eventually("the rest to be answered by the other worker", PATIENCE, async || {
        let (ok, error) = (other.count(&answered("ok")).await, other.count(&answered("error")).await);
        (ok + error == 140).then_some(())
    })
    .await;
    assert_eq!(world.broker.stray_replies().len(), 0, "nobody is answered twice");
    other.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_with_nothing_in_hand_stops_at_once() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    for signal in ["TERM", "INT"] {
        let worker = world.spawn_worker().await;
        let told = Instant::now();
        worker.signal(signal).await;
        let status = worker.wait(&world).await;
        assert!(status.success(), "SIG{signal}: {status}");
        assert!(told.elapsed() < Duration::from_secs(10), "SIG{signal}: {:?}", told.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_a_worker_that_waits_for_a_refresh() {
    let world = world_with_short_leases(Kind::Sqlite, Dialect::BitbucketServer).await;
    let impatient = world.spawn_worker().await;
    world.user_with_expired_token("jdoe").await;
    let gate = world.scm.hold_refreshes();
    let request = world.send("jdoe").await;
    gate.wait_for_parked(1).await;

    impatient.signal("TERM").await;
    impatient.wait_for_log(STOPPING, 1).await;
    impatient.signal("TERM").await;
    let status = impatient.wait(&world).await;

    assert!(status.code().is_some_and(|code| code != 0), "{status}");
    gate.discard();
    let other = world.spawn_worker().await;
    assert_latest(&world, &request.reply().await.body, "required");
    other.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_hangs_beyond_the_grace_period_is_given_to_another_worker() {
    let mut world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    world
        .set("worker.grace_period_secs", 1)
        .set("refresh.total_timeout_secs", 3)
        .set("refresh.connect_timeout_secs", 1);
    let stopping = world.spawn_worker().await;
    world.user_with_expired_token("jdoe").await;
    world.scm.fail_next(1, Fault::Hang);
    let request = world.send("jdoe").await;
    world.scm.wait_for_refreshes_in_flight(1).await;
    let other = world.spawn_worker().await;

    stopping.signal("TERM").await;
    let status = stopping.wait(&world).await;

    assert!(status.success(), "{status}");
    assert_latest(&world, &request.reply().await.body, "required");
    assert_eq!(world.scm.refresh_requests("jdoe"), 2, "the one that hung, and the other worker's");
    other.stop(&world).await;
}
