//! One refresh, however many ask for it: at once or during it, in one process or in several.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;
use tokenkeeper::domain::clock::Timestamp;
use tokenkeeper_testkit::queues::PendingReply;

use crate::harness::{
    Dialect, Kind, PATIENCE, ScmOptions, WorkerProcess, World, eventually, on_every_database,
};

const CROWD: usize = 100;

/// A world whose SCM takes a while for a refresh, so that requests meet refreshes that are under way.
async fn world_with_slow_scm(kind: Kind, dialect: Dialect) -> World {
    World::with_scm(kind, ScmOptions { latency: Duration::from_millis(150), ..ScmOptions::new(dialect) })
        .await
}

async fn replies(pending: Vec<PendingReply>) -> Vec<Value> {
    join_all(pending.into_iter().map(PendingReply::reply)).await.into_iter().map(|reply| reply.body).collect()
}

/// How many replies say this of their refresh.
fn saying(replies: &[Value], refresh: &str) -> usize {
    replies.iter().filter(|reply| reply["refresh"] == refresh).count()
}

/// Every reply carries the one new token, which lives; one request refreshed it, and the others say so much.
async fn assert_refreshed_once(world: &World, user: &str, replies: &[Value], refresh: &str, others: &str) {
    let latest = world.scm.latest_pair(user).expect("the user has authorised");
    let entry = world.entry(user).await;
    let reserved_until = entry.state.reserved_until.expect("the token is reserved");
    for reply in replies {
        assert_eq!(reply["status"], "ok", "{reply}");
        assert_eq!(reply["token"]["value"], latest.access_token.as_str(), "{}", reply["refresh"]);
        let promised = Timestamp::parse_rfc3339(reply["token"]["reserved_until"].as_str().unwrap()).unwrap();
        assert!(promised <= reserved_until, "promised until {promised}, reserved until {reserved_until}");
    }
    assert!(world.scm.is_alive(&latest.access_token));
    assert_eq!((saying(replies, refresh), saying(replies, others)), (1, replies.len() - 1));
    assert_eq!((world.scm.refreshes(user), world.scm.refresh_requests(user)), (1, 1));
    assert_eq!(world.scm.max_overlap(user), 1);
    assert_eq!(entry.generation, 2, "one pair was stored after the login's");
    assert_eq!(world.broker.stray_replies().len(), 0, "nobody is answered twice");
}

/// Each of the workers has answered some of the requests, and all of them together as many as there were.
async fn assert_all_took_part(workers: &[WorkerProcess], requests: usize) {
    let series = r#"tokenkeeper_messages_total{type="token.request",outcome="ok"}"#;
    eventually(&format!("{requests} requests answered by {} workers", workers.len()), PATIENCE, async || {
        let answered = join_all(workers.iter().map(|worker| worker.count(series))).await;
        (answered.iter().sum::<usize>() == requests && !answered.contains(&0)).then_some(())
    })
    .await;
}

/// Waits until the workers have so many requests in hand.
async fn wait_for_requests_in_hand(workers: &[WorkerProcess], count: usize) {
    eventually(&format!("{count} requests in hand"), PATIENCE, async || {
        let in_hand = join_all(workers.iter().map(WorkerProcess::requests_in_hand)).await;
        (in_hand.iter().sum::<usize>() == count).then_some(())
    })
    .await;
}

async fn stop(workers: Vec<WorkerProcess>, world: &World) {
    join_all(workers.into_iter().map(|worker| worker.stop(world))).await;
}

on_every_database! {
    async fn a_hundred_requests_on_two_processes_refresh_an_expired_token_once(kind: Kind) {
        let world = world_with_slow_scm(kind, Dialect::BitbucketServer).await;
        let workers = world.spawn_workers(2).await;
        world.user_with_expired_token("jdoe").await;

        let replies = replies(world.send_many("jdoe", CROWD).await).await;

        assert_refreshed_once(&world, "jdoe", &replies, "required", "reserved").await;
        assert_all_took_part(&workers, CROWD).await;
        stop(workers, &world).await;
    }

    async fn a_hundred_requests_on_two_processes_refresh_a_valid_token_opportunistically_once(kind: Kind) {
        let world = world_with_slow_scm(kind, Dialect::BitbucketServer).await;
        let workers = world.spawn_workers(2).await;
        world.user_with_token("jdoe").await;

        let replies = replies(world.send_many("jdoe", CROWD).await).await;

        assert_refreshed_once(&world, "jdoe", &replies, "opportunistic", "reserved").await;
        assert_all_took_part(&workers, CROWD).await;
        stop(workers, &world).await;
    }

    async fn three_workers_in_one_process_refresh_once(kind: Kind) {
        let world = world_with_slow_scm(kind, Dialect::GitHub).await;
        let workers = join_all((0..3).map(|_| world.start_worker())).await;
        world.user_with_expired_token("jdoe").await;

        let replies = replies(world.send_many("jdoe", CROWD).await).await;

        assert_refreshed_once(&world, "jdoe", &replies, "required", "none").await;
        for worker in workers {
            worker.stop().await;
        }
    }

    async fn a_request_during_a_refresh_waits_for_it_in_the_same_process_and_in_another(kind: Kind) {
        let mut world = World::new(kind, Dialect::BitbucketServer).await;
        world.set("refresh.wait_secs", 30);
        let workers = world.spawn_workers(2).await;
        world.user_with_expired_token("jdoe").await;
        let gate = world.scm.hold_refreshes();
        let mut requests = world.send_many("jdoe", 1).await;
        gate.wait_for_parked(1).await;

        requests.extend(world.send_many("jdoe", 40).await);
        wait_for_requests_in_hand(&workers, 41).await;
        for worker in &workers {
            worker.wait_for_lease_waits(&world, 1).await;
        }
        gate.release();

        assert_refreshed_once(&world, "jdoe", &replies(requests).await, "required", "reserved").await;
        stop(workers, &world).await;
    }

    async fn fifty_users_at_once_are_refreshed_once_each(kind: Kind) {
        let world = World::with_scm(
            kind,
            ScmOptions { latency: Duration::from_millis(10), ..ScmOptions::new(Dialect::BitbucketServer) },
        )
        .await;
        let workers = world.spawn_workers(2).await;
        let users: Vec<String> = (0..50).map(|number| format!("user-{number}")).collect();
        join_all(users.iter().map(|user| world.user_with_expired_token(user))).await;

        let of_users = join_all(users.iter().map(async |user| replies(world.send_many(user, 4).await).await)).await;

        for (user, replies) in users.iter().zip(&of_users) {
            assert_refreshed_once(&world, user, replies, "required", "reserved").await;
        }
        assert_eq!(world.scm.log().len(), users.len());
        assert_all_took_part(&workers, 4 * users.len()).await;
        stop(workers, &world).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_has_no_more_refreshes_in_flight_at_a_host_than_it_may() {
    let world = world_with_slow_scm(Kind::Sqlite, Dialect::Bitbucket).await;
    world.apply_provider(|provider| provider.max_concurrent_refreshes = Some(3)).await;
    let worker = world.start_worker().await;
    let users: Vec<String> = (0..12).map(|number| format!("user-{number}")).collect();
    join_all(users.iter().map(|user| world.user_with_expired_token(user))).await;
    let gate = world.scm.hold_refreshes();

    let requests = join_all(users.iter().map(|user| world.send(user))).await;
    gate.wait_for_parked(3).await;
    gate.release();
    let replies = replies(requests).await;

    assert_eq!(saying(&replies, "required"), users.len());
    assert_eq!(world.scm.max_overlap_total(), 3, "as many as it may, and not one more");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_of_one_host_does_not_hold_another_host_up() {
    let world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    let other = crate::harness::SimulatedScm::start_as(Dialect::GitHub).await;
    world.apply(&other, |_| {}).await;
    let worker = world.start_worker().await;
    join_all(["one", "two", "three"].map(|user| world.user_with_expired_token(user))).await;
    let elsewhere = other.authorize_until("jdoe", other.now_ms() - 1000);
    let stored = world.broker.request("token.store", other.token_store_body(&elsewhere)).await;
    assert_eq!(stored.body["status"], "ok");
    let gate = world.scm.hold_refreshes();
    let held = join_all(["one", "two", "three"].map(|user| world.send(user))).await;
    gate.wait_for_parked(2).await;

    let body = serde_json::json!({"user_id": "jdoe", "host": other.host()});
    let reply = world.broker.request("token.request", body).await.body;

    assert_eq!(reply["refresh"], "required", "{reply}");
    gate.release();
    assert_eq!(saying(&replies(held).await, "required"), 3);
    worker.stop().await;
}
