//! Bulkheads: a dead host does not take the prefetch window from the others, and a burst is no dead host.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokenkeeper::domain::provider::RequiredWhileReserved;
use tokenkeeper_testkit::queues::{
    BasicProperties, PendingReply, TOKEN_REQUEST, TOKEN_STORE, WORKSPACE_START,
};

use crate::harness::reply::{error_message, token};
use crate::harness::{Dialect, Kind, PATIENCE, ScmOptions, SimulatedScm, WorkerProcess, World, eventually};

/// Users with expired tokens.
async fn expired_users(world: &World, name: &str, count: usize) -> Vec<String> {
    let users: Vec<String> = (0..count).map(|number| format!("{name}-{number}")).collect();
    join_all(users.iter().map(|user| world.user_with_expired_token(user))).await;
    users
}

/// Another host in the same world, with one user whose token has expired.
async fn another_host(world: &World, user: &str) -> SimulatedScm {
    let scm = SimulatedScm::start_as(Dialect::GitHub).await;
    world.apply(&scm, |_| {}).await;
    let pair = scm.authorize_until(user, scm.now_ms() - 1_000);
    let stored = world.broker.request(TOKEN_STORE, scm.token_store_body(&pair)).await;
    assert_eq!(stored.body, json!({"status": "ok"}));
    scm
}

async fn bodies(pending: Vec<PendingReply>) -> Vec<Value> {
    join_all(pending.into_iter().map(PendingReply::reply)).await.into_iter().map(|reply| reply.body).collect()
}

/// Waits until no more than so many requests are in hand, and none is left in the queue.
async fn wait_for_the_last(worker: &WorkerProcess, world: &World, count: usize) {
    eventually(&format!("{count} requests to be left in hand"), PATIENCE, async || {
        let waiting = world.broker.queue_depth("token-requests").await;
        (waiting == 0 && worker.requests_in_hand().await == count).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_host_holds_a_quarter_of_the_prefetch_and_the_others_are_served() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("worker.prefetch_token_requests", 16).set("refresh.wait_secs", 30);
    let worker = world.spawn_worker().await;
    let users = expired_users(&world, "user", 60).await;
    let other = another_host(&world, "alice").await;
    let gate = world.scm.hold_refreshes();
    let asked = Instant::now();
    let requests = join_all(users.iter().map(|user| world.send(user))).await;

    wait_for_the_last(&worker, &world, 4).await;
    let body = json!({"user_id": "alice", "host": other.host()});
    let served = world.broker.request(TOKEN_REQUEST, body).await.body;

    assert_eq!(served["refresh"], "required", "{served}");
    assert!(asked.elapsed() < Duration::from_secs(10), "in {:?}", asked.elapsed());
    gate.release();
    let replies = bodies(requests).await;
    let (good, refused): (Vec<&Value>, Vec<&Value>) =
        replies.iter().partition(|reply| reply["status"] == "ok");
    assert_eq!((good.len(), refused.len()), (4, 56));
    for reply in refused {
        error_message(reply, "provider_unavailable");
        assert_eq!(reply["error"]["retry_after_secs"], 5, "{reply}");
    }
    let series =
        format!(r#"tokenkeeper_bulkhead_refusals_total{{host="{}",type="token.request"}}"#, world.scm.host());
    assert_eq!(worker.count(&series).await, 56);
    assert_eq!(world.request(&users[59]).await["status"], "ok", "it is no dead host any more");
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_workers_hanging_refresh_holds_no_more_than_a_hosts_share_of_the_prefetch() {
    let mut world = World::new(Kind::Postgres, Dialect::GitHub).await;
    world.set("worker.prefetch_token_requests", 1).set("refresh.wait_secs", 30);
    let holding = world.spawn_worker().await;
    world.user_with_expired_token("jdoe").await;
    let gate = world.scm.hold_refreshes();
    let first = world.send("jdoe").await;
    gate.wait_for_parked(1).await;

    world.set("worker.prefetch_token_requests", 8);
    let watching = world.spawn_worker().await;
    let requests = world.send_many("jdoe", 40).await;
    wait_for_the_last(&watching, &world, 1).await;
    gate.release();

    assert_eq!(first.reply().await.body["refresh"], "required");
    let replies = bodies(requests).await;
    let refused = replies.iter().filter(|reply| reply["error"]["code"] == "provider_unavailable").count();
    assert_eq!(refused, 39, "the watching worker kept half of the host's share for its one user");
    assert_eq!(world.scm.refresh_requests("jdoe"), 1);
    holding.stop(&world).await;
    watching.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_requests_for_one_expired_token_is_answered_by_one_refresh() {
    let options =
        ScmOptions { latency: Duration::from_millis(100), ..ScmOptions::new(Dialect::BitbucketServer) };
    let world = World::with_scm(Kind::Postgres, options).await;
    let worker = world.spawn_worker().await;
    world.user_with_expired_token("jdoe").await;

    let replies = bodies(world.send_many("jdoe", 500).await).await;

    let latest = world.scm.latest_pair("jdoe").expect("the user has authorised").access_token;
    for reply in &replies {
        assert_eq!(token(reply)["value"], latest.as_str());
    }
    assert_eq!(world.scm.refresh_requests("jdoe"), 1);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_valid_token_is_handed_out_although_the_quota_of_its_host_is_used_up() {
    let mut world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    world.set("worker.prefetch_token_requests", 8).set("refresh.wait_secs", 30);
    let worker = world.spawn_worker().await;
    let users = expired_users(&world, "user", 10).await;
    let pair = world.user_with_token("jdoe").await;
    let gate = world.scm.hold_refreshes();
    let waiting = join_all(users.iter().map(|user| world.send(user))).await;
    wait_for_the_last(&worker, &world, 2).await;

    let reply = world.request("jdoe").await;

    assert_eq!(token(&reply)["value"], pair.access_token.as_str());
    assert_eq!((&reply["refresh"], &reply["warnings"]), (&json!("none"), &json!(["refresh_failed"])));
    assert_eq!(world.scm.refresh_requests("jdoe"), 0);
    assert_eq!(world.entry("jdoe").await.lease, None);
    gate.release();
    bodies(waiting).await;
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workspace_starts_have_a_share_of_their_own() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("worker.prefetch_token_requests", 4).set("worker.prefetch_workspace_starts", 4);
    world.set("refresh.wait_secs", 30);
    let worker = world.spawn_worker().await;
    let users = expired_users(&world, "user", 10).await;
    let gate = world.scm.hold_refreshes();
    let waiting = join_all(users.iter().take(8).map(|user| world.send(user))).await;
    wait_for_the_last(&worker, &world, 1).await;
    let start = |user: &String| {
        let repositories = [format!("http://{}/scm/p/r.git", world.scm.host())];
        json!({"user_id": user, "workspace_id": "ws-1", "repositories": repositories})
    };
    let seated =
        world.broker.send(WORKSPACE_START, start(&users[8]).to_string(), BasicProperties::default()).await;
    eventually("a workspace start to wait", PATIENCE, async || {
        let series = r#"tokenkeeper_messages_in_flight{type="workspace.start"}"#;
        (worker.count(series).await == 1).then_some(())
    })
    .await;

    let refused = world.broker.request(WORKSPACE_START, start(&users[9])).await.body;

    error_message(&refused["tokens"][0], "provider_unavailable");
    gate.release();
    assert_eq!(seated.reply().await.body["status"], "ok");
    bodies(waiting).await;
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_wait_for_a_reservation_to_end_leave_most_of_the_prefetch_to_others() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("worker.prefetch_token_requests", 16).set("worker.request_budget_secs", 60);
    world
        .apply_provider(|provider| {
            provider.required_while_reserved = Some(RequiredWhileReserved::Wait);
        })
        .await;
    let worker = world.spawn_worker().await;
    let pair = world.scm.authorize_until("jdoe", world.scm.now_ms() + 60_000);
    world.store_pair(&pair).await;
    world.user_with_token("alice").await;
    assert_eq!(world.request_for("jdoe", 45).await["status"], "ok", "somebody holds it for 45 s");
    let longer = json!({"user_id": "jdoe", "host": world.scm.host(), "requested_lifetime_secs": 3600});

    let waiting = join_all(
        (0..100).map(|_| world.broker.send(TOKEN_REQUEST, longer.to_string(), BasicProperties::default())),
    )
    .await;
    let asked = Instant::now();
    let served = world.request("alice").await;

    assert_eq!(served["status"], "ok", "{served}");
    assert!(asked.elapsed() < Duration::from_secs(10), "in {:?}", asked.elapsed());
    wait_for_the_last(&worker, &world, 2).await;
    let asked = Instant::now();
    assert_eq!(world.request("alice").await["status"], "ok");
    assert!(asked.elapsed() < Duration::from_secs(1), "nobody else notices: {:?}", asked.elapsed());
    let mut refused = 0;
    for request in waiting.into_iter().take(90) {
        if let Some(reply) = request.reply_within(Duration::from_millis(1)).await {
            error_message(&reply.body, "provider_unavailable");
            assert!(reply.body["error"]["retry_after_secs"].as_u64().unwrap() <= 45, "{}", reply.body);
            refused += 1;
        }
    }
    assert!(refused >= 88, "{refused}");
    worker.signal("KILL").await;
    worker.wait(&world).await;
}
