//! A worker is frozen in the middle of a refresh for longer than its lease, and thawed.

use std::time::Duration;

use tokenkeeper_testkit::scm::SpentRefreshToken;

use crate::harness::reply::{error_message, token};
use crate::harness::{
    Dialect, Fault, Kind, PATIENCE, ScmOptions, WorkerProcess, World, eventually, on_every_database,
};

/// A lease of two seconds, and a message at a time: the broker has none for a frozen worker that it waits for.
async fn world_with_short_leases(kind: Kind) -> World {
    let mut world = World::new(kind, Dialect::BitbucketServer).await;
    world.set("refresh.lease_ttl_secs", 2).set("worker.prefetch_token_requests", 1);
    world
}

/// A worker that is frozen while it waits for jdoe's new pair, whose answer lies where it will find it; and another one that
/// comes when the lease is over.
async fn frozen_and_overtaken(world: &World) -> (WorkerProcess, WorkerProcess) {
    let frozen = world.spawn_worker().await;
    world.user_with_expired_token("jdoe").await;
    let gate = world.scm.hold_refreshes();
    let _request = world.send("jdoe").await;
    gate.wait_for_parked(1).await;
    frozen.signal("STOP").await;
    gate.release();
    eventually("the SCM to act", PATIENCE, async || (world.scm.refreshes("jdoe") == 1).then_some(())).await;
    lease_is_over(world).await;
    (frozen, world.spawn_worker().await)
}

async fn lease_is_over(world: &World) {
    eventually("the lease to be over", PATIENCE, async || {
        let now = world.store.now().await.unwrap();
        (!world.entry("jdoe").await.has_live_lease(now)).then_some(())
    })
    .await;
}

fn assert_latest(world: &World, reply: &serde_json::Value) {
    let latest = world.scm.latest_pair("jdoe").unwrap().access_token;
    assert_eq!(token(reply)["value"], latest.as_str());
    assert!(world.scm.is_alive(&latest));
}

on_every_database! {
    async fn a_pair_that_comes_back_with_a_frozen_worker_is_stored_and_lifts_the_failure_recorded_meanwhile(kind: Kind) {
        let world = world_with_short_leases(kind).await;
        let (frozen, other) = frozen_and_overtaken(&world).await;
        let meanwhile = world.request("jdoe").await;
        error_message(&meanwhile, "reauthorization_required");
        assert_eq!(meanwhile["error"]["reason"], "refresh_interrupted");
        assert_eq!(world.entry("jdoe").await.failure.unwrap().kind.name(), "refresh_interrupted");

        frozen.signal("CONT").await;

        eventually("the pair to be stored", PATIENCE, async || {
            (world.entry("jdoe").await.generation == 2).then_some(())
        })
        .await;
        assert_eq!(world.entry("jdoe").await.failure, None);
        assert_latest(&world, &world.request("jdoe").await);
        frozen.stop(&world).await;
        other.stop(&world).await;
    }

    async fn a_refusal_waits_for_a_frozen_worker_that_is_thawed_in_time(kind: Kind) {
        let world = world_with_short_leases(kind).await;
        let (frozen, other) = frozen_and_overtaken(&world).await;
        let meanwhile = world.send("jdoe").await;
        eventually("the other worker to ask", PATIENCE, async || {
            (world.scm.refresh_requests("jdoe") == 2).then_some(())
        })
        .await;

        frozen.signal("CONT").await;

        assert_latest(&world, &meanwhile.reply().await.body);
        frozen.stop(&world).await;
        other.stop(&world).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_came_while_its_worker_was_frozen_is_read_however_long_that_was() {
    let mut world = world_with_short_leases(Kind::Postgres).await;
    world.set("refresh.connect_timeout_secs", 1).set("refresh.total_timeout_secs", 1);
    for user in ["one", "two", "three", "four", "five"] {
        let worker = world.spawn_worker().await;
        world.user_with_expired_token(user).await;
        let gate = world.scm.hold_refreshes();
        let request = world.send(user).await;
        gate.wait_for_parked(1).await;
        worker.signal("STOP").await;
        let frozen_at = world.store.now().await.unwrap();
        gate.release();
        eventually("the time of the call to be over", PATIENCE, async || {
            (world.store.now().await.unwrap() > frozen_at.plus(Duration::from_millis(1_500))).then_some(())
        })
        .await;

        worker.signal("CONT").await;

        let latest = world.scm.latest_pair(user).unwrap().access_token;
        assert_eq!(token(&request.reply().await.body)["value"], latest.as_str());
        assert_eq!(world.scm.refresh_requests(user), 1);
        worker.stop(&world).await;
    }
}

/// A world whose SCM takes a spent refresh token again, and ends what it issued for it the first time.
async fn world_that_accepts_spent_refresh_tokens() -> World {
    let options = ScmOptions {
        spent_refresh_token: SpentRefreshToken::Accepted,
        ..ScmOptions::new(Dialect::BitbucketServer)
    };
    let mut world = World::with_scm(Kind::Postgres, options).await;
    world.set("refresh.lease_ttl_secs", 2).set("worker.prefetch_token_requests", 1);
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_pair_that_comes_back_with_a_frozen_worker_does_not_take_the_place_of_the_newer_one() {
    let world = world_that_accepts_spent_refresh_tokens().await;
    let (frozen, other) = frozen_and_overtaken(&world).await;
    assert_latest(&world, &world.request("jdoe").await);

    frozen.signal("CONT").await;
    frozen.wait_for_log("refreshed pair dropped: a login stored a newer one", 1).await;

    assert_latest(&world, &world.request("jdoe").await);
    assert_eq!(world.scm.refreshes("jdoe"), 2);
    frozen.stop(&world).await;
    other.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newer_of_two_pairs_is_stored_over_the_older_one_that_a_thawed_worker_stored_first() {
    let world = world_that_accepts_spent_refresh_tokens().await;
    let (frozen, other) = frozen_and_overtaken(&world).await;
    let gate = world.scm.hold_refreshes();
    let request = world.send("jdoe").await;
    gate.wait_for_parked(1).await;

    frozen.signal("CONT").await;
    eventually("the older pair to be stored", PATIENCE, async || {
        (world.entry("jdoe").await.generation == 2).then_some(())
    })
    .await;
    gate.release();

    assert_latest(&world, &request.reply().await.body);
    assert_latest(&world, &world.request("jdoe").await);
    assert_eq!((world.scm.refreshes("jdoe"), world.entry("jdoe").await.generation), (2, 3));
    frozen.stop(&world).await;
    other.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_worker_that_has_lost_its_lease_does_not_ask_again() {
    let mut world = world_with_short_leases(Kind::Postgres).await;
    world.set("refresh.retry_initial_ms", 2_000);
    let frozen = world.spawn_worker().await;
    world.user_with_expired_token("jdoe").await;
    world.scm.fail_next(1, Fault::Status(500));
    let request = world.send("jdoe").await;
    // It is about to wait for its second try.
    frozen.wait_for_log("refresh failed; it will be retried", 1).await;
    frozen.signal("STOP").await;
    lease_is_over(&world).await;
    let other = world.spawn_worker().await;
    assert_latest(&world, &world.request("jdoe").await);

    frozen.signal("CONT").await;

    assert_latest(&world, &request.reply().await.body);
    frozen.stop(&world).await;
    other.stop(&world).await;
    assert_eq!(world.scm.refresh_requests("jdoe"), 2, "the one that failed, and the other worker's");
}
