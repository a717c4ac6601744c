//! Waiting: for the refresh of another, for a worker that died, and only for as long as the requester does.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokenkeeper::domain::clock::{Clock, SystemClock, Timestamp};
use tokenkeeper::store::{Guarded, Lease};
use tokenkeeper_testkit::queues::{BasicProperties, PendingReply};

use crate::harness::{Dialect, Kind, PATIENCE, World, eventually, on_every_database};

/// Leaves the lease of a worker that died: nobody renews it, and nobody gives it back.
async fn leave_lease_of_the_dead(world: &World, user: &str, ttl: Duration) -> Lease {
    let entry = world.entry(user).await;
    let taken = world.store.take_lease(&entry, None, "the dead", "sent", SystemClock.now(), ttl).await;
    assert_eq!(taken.unwrap(), Guarded::Done);
    world.entry(user).await.lease.expect("it was taken just now")
}

fn assert_error(reply: &Value, code: &str) {
    assert_eq!(reply["status"], "error", "{reply}");
    assert_eq!(reply["error"]["code"], code, "{reply}");
    assert_eq!(reply["error"]["retryable"], true, "{reply}");
}

fn date(reply: &Value, field: &str) -> Timestamp {
    Timestamp::parse_rfc3339(reply["token"][field].as_str().expect("a date")).expect("a date")
}

on_every_database! {
    async fn a_lease_that_outlasts_the_wait_is_a_refresh_timeout(kind: Kind) {
        let mut world = World::new(kind, Dialect::BitbucketServer).await;
        world.set("refresh.wait_secs", 1);
        let worker = world.start_worker().await;
        world.user_with_expired_token("jdoe").await;
        leave_lease_of_the_dead(&world, "jdoe", Duration::from_hours(1)).await;
        let asked = Instant::now();

        let reply = world.request("jdoe").await;

        assert_error(&reply, "refresh_timeout");
        assert!(asked.elapsed() >= Duration::from_secs(1), "it was waited for");
        assert_eq!(world.scm.refresh_requests("jdoe"), 0);
        worker.stop().await;
    }

    async fn a_lease_of_a_worker_that_died_is_taken_over_when_it_is_over(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        let worker = world.start_worker().await;
        world.user_with_expired_token("jdoe").await;
        let lease = leave_lease_of_the_dead(&world, "jdoe", Duration::from_secs(2)).await;

        let reply = world.request("jdoe").await;

        assert_eq!(reply["refresh"], "required", "{reply}");
        assert!(date(&reply, "updated_at") >= lease.until, "not before it was over");
        assert_eq!((world.scm.refresh_requests("jdoe"), world.scm.refreshes("jdoe")), (1, 1));
        worker.stop().await;
    }

    async fn a_refresh_that_takes_longer_than_its_lease_is_not_taken_over(kind: Kind) {
        let ttl = Duration::from_secs(3);
        let mut world = World::new(kind, Dialect::BitbucketServer).await;
        world.set("refresh.lease_ttl_secs", ttl.as_secs()).set("refresh.wait_secs", 30);
        let workers = world.spawn_workers(2).await;
        world.user_with_expired_token("jdoe").await;
        let gate = world.scm.hold_refreshes();
        let mut requests = world.send_many("jdoe", 1).await;
        gate.wait_for_parked(1).await;
        let taken = world.entry("jdoe").await.lease.expect("the refresh is under way");
        requests.extend(world.send_many("jdoe", 10).await);
        for worker in &workers {
            worker.wait_for_lease_waits(&world, 1).await;
        }

        // A lease that was renewed to here has outlived the one that was taken.
        let renewed = taken.until.plus(ttl);
        eventually("the lease to be renewed again and again", PATIENCE, async || {
            let lease = world.entry("jdoe").await.lease.expect("the refresh is under way");
            assert_eq!(lease.holder, taken.holder);
            (lease.until >= renewed).then_some(())
        })
        .await;
        gate.release();

        for reply in join_all(requests.into_iter().map(PendingReply::reply)).await {
            assert_eq!(reply.body["status"], "ok", "{}", reply.body);
        }
        assert_eq!((world.scm.refresh_requests("jdoe"), world.scm.max_overlap("jdoe")), (1, 1));
        join_all(workers.into_iter().map(|worker| worker.stop(&world))).await;
    }

    async fn a_refresh_goes_on_when_its_requester_has_stopped_waiting(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        let worker = world.start_worker().await;
        let old = world.user_with_expired_token("jdoe").await;
        let gate = world.scm.hold_refreshes();

        let impatient = world.send_with("jdoe", BasicProperties::default().with_expiration("2000".into())).await;
        gate.wait_for_parked(1).await;
        let reply = impatient.reply().await.body;

        assert_error(&reply, "deadline_exceeded");
        assert_eq!(world.entry("jdoe").await.generation, 1, "the refresh is still under way");
        gate.release();
        let stored = async || (world.entry("jdoe").await.generation == 2).then_some(());
        eventually("the new pair to be stored all the same", PATIENCE, stored).await;
        let reply = world.request("jdoe").await;
        let latest = world.scm.latest_pair("jdoe").unwrap();
        assert_ne!(latest, old);
        assert_eq!(reply["token"]["value"], json!(latest.access_token));
        assert_eq!((&reply["refresh"], world.scm.refresh_requests("jdoe")), (&json!("reserved"), 1));
        worker.stop().await;
    }

    async fn a_request_with_a_longer_expiration_has_more_time_than_others(kind: Kind) {
        let mut world = World::new(kind, Dialect::BitbucketServer).await;
        world.set("worker.request_budget_secs", 1).set("refresh.wait_secs", 1).set("refresh.opportunistic_budget_secs", 1);
        let worker = world.start_worker().await;
        world.user_with_expired_token("jdoe").await;
        let gate = world.scm.hold_refreshes();

        let patient = world.send_with("jdoe", BasicProperties::default().with_expiration("30000".into())).await;
        gate.wait_for_parked(1).await;
        assert_error(&world.request("jdoe").await, "deadline_exceeded");
        gate.release();

        assert_eq!(patient.reply().await.body["status"], "ok");
        worker.stop().await;
    }

    async fn a_request_that_is_too_old_begins_no_refresh(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        let worker = world.start_worker().await;
        world.user_with_expired_token("jdoe").await;
        let a_minute_ago = u64::try_from(SystemClock.now().as_millis() / 1000 - 60).unwrap();

        let late = world.send_with("jdoe", BasicProperties::default().with_timestamp(a_minute_ago)).await;
        let reply = late.reply().await.body;

        assert_error(&reply, "deadline_exceeded");
        assert_eq!(world.scm.refresh_requests("jdoe"), 0);
        let entry = world.entry("jdoe").await;
        assert_eq!((entry.lease, entry.state.reserved_until), (None, None));
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_too_long_is_told_so_while_the_refresh_itself_goes_on() {
    let mut world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    world.set("refresh.wait_secs", 1);
    let workers = world.spawn_workers(2).await;
    world.user_with_expired_token("jdoe").await;
    let gate = world.scm.hold_refreshes();
    let first = world.send("jdoe").await;
    gate.wait_for_parked(1).await;

    // Some of them in the process that refreshes, some in the other one.
    for reply in join_all(world.send_many("jdoe", 10).await.into_iter().map(PendingReply::reply)).await {
        assert_error(&reply.body, "refresh_timeout");
    }
    for worker in &workers {
        assert!(worker.lease_waits(&world).await > 0);
    }
    gate.release();

    assert_eq!(first.reply().await.body["refresh"], "required");
    assert_eq!(world.scm.refresh_requests("jdoe"), 1);
    join_all(workers.into_iter().map(|worker| worker.stop(&world))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_look_finds_a_token_that_came_during_the_wait() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("refresh.wait_secs", 3);
    let worker = world.spawn_worker().await;
    world.user_with_expired_token("jdoe").await;
    let gate = world.scm.hold_refreshes();
    let first = world.send("jdoe").await;
    gate.wait_for_parked(1).await;
    let second = world.send("jdoe").await;
    worker.wait_for_lease_waits(&world, 1).await;

    // The user logs in again, which wins over the refresh that hangs.
    let login = world.user_with_token("jdoe").await;
    let reply = second.reply().await.body;

    assert_eq!(reply["token"]["value"], json!(login.access_token), "{}", reply["error"]);
    assert_eq!(reply["refresh"], "none");
    let entry = world.entry("jdoe").await;
    assert_eq!(entry.state.reserved_until, Some(date(&reply, "reserved_until")));
    let counted = format!(
        r#"gitpod_scm_token_refresh_requests_total{{host="{}",result="success_after_timeout",opportunisticRefresh="false"}}"#,
        world.scm.host()
    );
    assert_eq!(worker.count(&counted).await, 1);
    gate.release();
    let reply = first.reply().await.body;
    assert_eq!(reply["token"]["value"], json!(login.access_token), "{}", reply["error"]);
    assert!(world.scm.is_alive(&login.access_token));
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timestamp_in_the_future_gives_a_request_no_more_time() {
    let world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    let worker = world.start_worker().await;
    world.user_with_expired_token("jdoe").await;
    let gate = world.scm.hold_refreshes();
    let in_an_hour = u64::try_from(SystemClock.now().as_millis() / 1000 + 3600).unwrap();

    let properties = BasicProperties::default().with_timestamp(in_an_hour).with_expiration("1500".into());
    let reply = world.send_with("jdoe", properties).await.reply().await.body;

    assert_error(&reply, "deadline_exceeded");
    gate.release();
    worker.stop().await;
}
