//! Partitions: a user's requests meet in one worker, and the workers share the partitions among themselves.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use serde_json::{Value, json};
use tokenkeeper::broker;
use tokenkeeper::settings::{Broker, Topology};
use tokenkeeper_testkit::queues::{BasicProperties, PendingReply};

use crate::harness::links::{BrokerLinks, Link};
use crate::harness::{
    Dialect, Kind, PATIENCE, ScmOptions, WorkerProcess, World, eventually, on_every_database,
};

const PARTITIONS: usize = 8;
const KINDS: [&str; 3] = ["token-requests", "workspace-starts", "token-stores"];

/// A worker that stops takes itself off the list, so the others need no more than their next look. Less than the time
/// after which one that says nothing is taken for dead.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(4);

async fn world_with_partitions(kind: Kind, options: ScmOptions) -> World {
    let mut world = World::with_scm(kind, options).await;
    world.set("broker.partitions", PARTITIONS);
    world
}

/// One whose SCM takes a while for a refresh, so that requests meet refreshes that are under way.
async fn world_with_slow_scm(kind: Kind) -> World {
    let latency = Duration::from_millis(150);
    world_with_partitions(kind, ScmOptions { latency, ..ScmOptions::new(Dialect::BitbucketServer) }).await
}

fn users(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("user-{number}")).collect()
}

async fn owned(worker: &WorkerProcess) -> usize {
    worker.count("tokenkeeper_partitions_owned").await
}

/// Waits until the workers have so many partitions, in any order, and each partition has one consumer.
async fn wait_for_shares(world: &World, workers: &[&WorkerProcess], expected: &[usize]) {
    eventually(&format!("shares of {expected:?}"), PATIENCE, async || {
        let mut shares = join_all(workers.iter().map(|worker| owned(worker))).await;
        shares.sort_unstable();
        (shares == expected).then_some(())
    })
    .await;
    for kind in KINDS {
        for index in 0..expected.iter().sum() {
            let queue = format!("{kind}.{index}");
            eventually(&format!("one consumer of {queue}"), PATIENCE, async || {
                (world.broker.consumers(&queue).await == 1).then_some(())
            })
            .await;
        }
    }
}

async fn answers(requests: Vec<PendingReply>) -> Vec<Value> {
    join_all(requests.into_iter().map(PendingReply::reply))
        .await
        .into_iter()
        .map(|reply| reply.body)
        .collect()
}

fn assert_ok(replies: &[Value]) {
    for reply in replies {
        assert_eq!(reply["status"], "ok", "{reply}");
    }
}

/// How often one of the workers watched the other one's refresh.
async fn lease_watches(world: &World, workers: &[WorkerProcess]) -> usize {
    let series = format!(r#"tokenkeeper_lease_watches_total{{host="{}"}}"#, world.scm.host());
    join_all(workers.iter().map(|worker| worker.count(&series))).await.iter().sum()
}

/// Which of the workers have settled requests of this user.
fn that_worked_for(user: &str, workers: &[WorkerProcess]) -> Vec<usize> {
    let settled_one = |worker: &WorkerProcess| {
        let log = worker.log();
        let mut events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.any(|event| {
            let span = &event["span"];
            event["message"] == "message settled" && span["kind"] == "token.request" && span["user"] == user
        })
    };
    (0..workers.len()).filter(|number| settled_one(&workers[*number])).collect()
}

async fn stop(workers: Vec<WorkerProcess>, world: &World) {
    join_all(workers.into_iter().map(|worker| worker.stop(world))).await;
}

/// Declares what a worker would.
async fn declare(world: &World) {
    let settings = Broker { topology: Topology::Declare, ..world.settings().broker };
    let connection = broker::connect(&settings, "operator").await.unwrap();
    broker::declare(&connection, &settings).await.unwrap();
    connection.close(200, "declared".into()).await.unwrap();
}

/// Says which partition of this kind holds so many messages, and sees that no other one holds any.
async fn index_of_the_only_queue_with(world: &World, kind: &str, count: u32) -> usize {
    let depth = async |index| world.broker.queue_depth(&format!("{kind}.{index}")).await;
    let depths = join_all((0..PARTITIONS).map(depth)).await;
    let filled: Vec<usize> = (0..PARTITIONS).filter(|index| depths[*index] > 0).collect();
    assert_eq!(filled.len(), 1, "{kind}: {depths:?}");
    assert_eq!(depths[filled[0]], count, "{kind}: {depths:?}");
    filled[0]
}

on_every_database! {
    async fn the_shares_are_fair_and_follow_who_is_there(kind: Kind) {
        let world = world_with_partitions(kind, ScmOptions::new(Dialect::GitHub)).await;
        let (one, other) = tokio::join!(world.spawn_worker(), world.spawn_worker());
        wait_for_shares(&world, &[&one, &other], &[4, 4]).await;
        let third = world.spawn_worker().await;
        wait_for_shares(&world, &[&one, &other, &third], &[2, 3, 3]).await;

        let told = Instant::now();
        one.signal("TERM").await;
        eventually("the partitions to be handed over", HANDED_OVER_WITHIN, async || {
            let all = owned(&other).await + owned(&third).await;
            (all == PARTITIONS).then_some(())
        })
        .await;
        assert!(told.elapsed() < HANDED_OVER_WITHIN, "{:?}", told.elapsed());
        assert!(one.wait(&world).await.success());

        wait_for_shares(&world, &[&other, &third], &[4, 4]).await;
        stop(vec![other, third], &world).await;
        assert_eq!(world.store.replicas(world.broker.prefix()).await.unwrap(), vec![], "nobody is left on the list");
    }

    async fn a_killed_worker_s_partitions_are_taken_over_and_its_requests_answered(kind: Kind) {
        let world = world_with_partitions(kind, ScmOptions::new(Dialect::GitHub)).await;
        let users = users(40);
        let (doomed, other) = tokio::join!(world.spawn_worker(), world.spawn_worker());
        wait_for_shares(&world, &[&doomed, &other], &[4, 4]).await;
        join_all(users.iter().map(|user| world.user_with_token(user))).await;
        let before = join_all(users.iter().map(|user| world.send_to_partition(user))).await;

        doomed.signal("KILL").await;
        let after = join_all(users.iter().map(|user| world.send_to_partition(user))).await;

        assert_ok(&answers(before).await);
        assert_ok(&answers(after).await);
        doomed.wait(&world).await;
        wait_for_shares(&world, &[&other], &[PARTITIONS]).await;
        other.stop(&world).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_s_messages_are_in_one_partition_the_same_for_each_kind() {
    let world = world_with_partitions(Kind::Sqlite, ScmOptions::new(Dialect::GitHub)).await;
    declare(&world).await;
    let start = json!({"workspace_id": "ws-1", "user_id": "jdoe",
        "repositories": [format!("https://{}/owner/repo.git", world.scm.host())]});

    let mut requests = join_all((0..20).map(|_| world.send_to_partition("jdoe"))).await;
    let index = index_of_the_only_queue_with(&world, "token-requests", 20).await;
    let properties = BasicProperties::default();
    requests.push(
        world.broker.send_to_partition("workspace-starts", "jdoe", start.to_string(), properties).await,
    );
    assert_eq!(index_of_the_only_queue_with(&world, "workspace-starts", 1).await, index);

    let worker = world.spawn_worker().await;
    for reply in answers(requests).await {
        let code = reply["error"]["code"].as_str().or(reply["tokens"][0]["error"]["code"].as_str());
        assert_eq!(code, Some("user_not_found"), "{reply}");
    }
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_go_to_their_user_s_partition_meet_in_one_worker() {
    let world = world_with_slow_scm(Kind::Sqlite).await;
    world.apply_provider(|provider| provider.max_concurrent_refreshes = Some(16)).await;
    let (one, other) = tokio::join!(world.spawn_worker(), world.spawn_worker());
    let workers = vec![one, other];
    wait_for_shares(&world, &[&workers[0], &workers[1]], &[4, 4]).await;
    // An odd number: two workers that take turns at the plain queue would have each user's requests meet by accident.
    let users = users(11);
    join_all(users.iter().map(|user| world.user_with_expired_token(user))).await;

    let crowd = (0..10).flat_map(|_| &users);
    let requests = join_all(crowd.map(|user| world.send_to_partition(user))).await;
    assert_ok(&answers(requests).await);

    // A message is settled a moment after its reply is seen.
    eventually("each user to have had one worker", PATIENCE, async || {
        users.iter().all(|user| that_worked_for(user, &workers).len() == 1).then_some(())
    })
    .await;
    let both: BTreeSet<usize> = users.iter().flat_map(|user| that_worked_for(user, &workers)).collect();
    assert_eq!(both.len(), 2, "and the users are spread over both workers");
    for user in &users {
        assert_eq!(world.scm.refresh_requests(user), 1, "{user}");
    }
    assert_eq!(world.broker.stray_replies().len(), 0, "nobody is answered twice");
    let in_partitions = lease_watches(&world, &workers).await;

    let others = (11..22).map(|number| format!("user-{number}")).collect::<Vec<_>>();
    join_all(others.iter().map(|user| world.user_with_expired_token(user))).await;
    let crowd = (0..10).flat_map(|_| &others);
    let requests = join_all(crowd.map(|user| world.send(user))).await;
    assert_ok(&answers(requests).await);
    let on_the_plain_queue = lease_watches(&world, &workers).await - in_partitions;
    assert!(in_partitions < on_the_plain_queue, "{in_partitions} watches, else {on_the_plain_queue}");
    println!(
        "watches of another worker's refresh: {in_partitions}; on the plain queue: {on_the_plain_queue}"
    );
    for user in &others {
        assert_eq!(
            that_worked_for(user, &workers).len(),
            2,
            "the plain queue spreads {user} over the workers"
        );
    }
    stop(workers, &world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_are_switched_on_and_off_while_requests_come_and_each_is_answered_once() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let users = users(30);
    let old = world.spawn_worker().await;
    join_all(users.iter().map(|user| world.user_with_token(user))).await;
    let mut requests = join_all(users.iter().map(|user| world.send(user))).await;

    world.set("broker.partitions", PARTITIONS);
    let first = world.spawn_worker().await;
    requests.extend(join_all(users.iter().map(|user| world.send_to_partition(user))).await);
    old.signal("TERM").await;
    requests.extend(join_all(users.iter().map(|user| world.send(user))).await);
    let second = world.spawn_worker().await;
    requests.extend(join_all(users.iter().map(|user| world.send_to_partition(user))).await);
    assert!(old.wait(&world).await.success());
    first.signal("TERM").await;
    requests.extend(join_all(users.iter().map(|user| world.send_to_partition(user))).await);
    assert!(first.wait(&world).await.success());

    // Publishers go back first, and the partitions run empty.
    requests.extend(join_all(users.iter().map(|user| world.send(user))).await);
    world.set("broker.partitions", 0);
    let last = world.spawn_worker().await;
    eventually("the partitions to be empty", PATIENCE, async || {
        let depths = (0..PARTITIONS)
            .map(async |index| world.broker.queue_depth(&format!("token-requests.{index}")).await);
        (join_all(depths).await.iter().sum::<u32>() == 0).then_some(())
    })
    .await;
    second.signal("TERM").await;
    requests.extend(join_all(users.iter().map(|user| world.send(user))).await);

    assert_eq!(requests.len(), 7 * users.len());
    assert_ok(&answers(requests).await);
    assert!(second.wait(&world).await.success());
    last.stop(&world).await;
    assert_eq!(world.broker.stray_replies().len(), 0, "nobody is answered twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_number_grows_worker_by_worker_no_partition_is_left_alone() {
    let mut world = world_with_partitions(Kind::Sqlite, ScmOptions::new(Dialect::GitHub)).await;
    world.set("broker.partitions", 2);
    let old = world.spawn_worker().await;
    world.set("broker.partitions", PARTITIONS);
    let new = world.spawn_worker().await;
    wait_for_shares(&world, &[&old, &new], &[1, 7]).await;
    let users = users(20);
    join_all(users.iter().map(|user| world.user_with_token(user))).await;

    assert_ok(&answers(join_all(users.iter().map(|user| world.send_to_partition(user))).await).await);

    stop(vec![old, new], &world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_without_a_broker_leaves_its_partitions_to_the_others_and_has_its_share_when_it_is_back() {
    let mut world = world_with_partitions(Kind::Sqlite, ScmOptions::new(Dialect::GitHub)).await;
    let url = world.broker.url().to_owned();
    let links = BrokerLinks::start(&url).await;
    world.set("broker.url", links.url(&url));
    let apart = world.spawn_worker().await;
    world.set("broker.url", &url);
    let other = world.spawn_worker().await;
    wait_for_shares(&world, &[&apart, &other], &[4, 4]).await;
    let users = users(20);
    join_all(users.iter().map(|user| world.user_with_token(user))).await;

    links.cut(Link::Consume).await;
    eventually("a new connection", PATIENCE, async || {
        (apart.reconnects(Link::Consume).await > 0).then_some(())
    })
    .await;
    wait_for_shares(&world, &[&apart, &other], &[4, 4]).await;
    assert_eq!(
        other.count("tokenkeeper_partition_replicas").await,
        2,
        "so short an absence is nobody's business"
    );

    drop(links);
    assert_ok(&answers(join_all(users.iter().map(|user| world.send_to_partition(user))).await).await);
    wait_for_shares(&world, &[&other, &apart], &[0, PARTITIONS]).await;
    let (status, body) = apart.get("readyz").await;
    assert_eq!(status, 503);
    assert!(body.contains("this worker's share is not known yet"), "{body}");
    stop(vec![apart, other], &world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_is_missing_is_told_until_somebody_has_declared_it() {
    let mut world = world_with_partitions(Kind::Sqlite, ScmOptions::new(Dialect::GitHub)).await;
    declare(&world).await;
    world.set("broker.topology", "none");
    let worker = world.spawn_worker().await;
    let channel = world.broker.channel().await;
    let queue = world.broker.name("token-requests.3");
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();

    worker.wait_for_log("cannot consume queue", 1).await;
    let (status, body) = worker.get("readyz").await;
    assert_eq!(
        (status, body.trim()),
        (503, "broker: 23 of the 24 queues of this worker's partitions are consumed")
    );
    declare(&world).await;

    worker.wait_until_ready().await;
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_whose_queue_is_deleted_comes_back() {
    let world = world_with_partitions(Kind::Sqlite, ScmOptions::new(Dialect::GitHub)).await;
    let worker = world.spawn_worker().await;
    wait_for_shares(&world, &[&worker], &[PARTITIONS]).await;
    let channel = world.broker.channel().await;
    let queue = world.broker.name("token-requests.3");

    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();

    worker.wait_for_log("consumer lost; subscribing again", 1).await;
    world.broker.wait_for_consumer("token-requests.3").await;
    worker.wait_until_ready().await;
    let users = users(20);
    join_all(users.iter().map(|user| world.user_with_token(user))).await;
    assert_ok(&answers(join_all(users.iter().map(|user| world.send_to_partition(user))).await).await);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_setting_nothing_is_declared_for_partitions_and_nobody_is_on_the_list() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    // To be deleted, should a worker declare some after all.
    world.broker.expect_partitions(1);
    let worker = world.spawn_worker().await;
    world.user_with_token("jdoe").await;
    assert_eq!(world.request("jdoe").await["status"], "ok");
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let channel = world.broker.channel().await;
    let queue = world.broker.name("token-requests.0");
    let found = channel.queue_declare(queue.into(), passive, FieldTable::default()).await;
    assert!(found.is_err(), "{found:?}");
    assert_eq!(world.store.replicas(world.broker.prefix()).await.unwrap(), vec![]);
    worker.stop(&world).await;
}
