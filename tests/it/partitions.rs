//! Partitions: a user's requests meet in one worker, and the broker chooses which.

mod changes;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use serde_json::{Value, json};
use tokenkeeper::broker;
use tokenkeeper::settings::{Broker, Topology};
use tokenkeeper_testkit::queues::{BasicProperties, PendingReply};

use crate::database_loss::{go_away, world_behind_a_proxy};
use crate::harness::links::{BrokerLinks, Link};
use crate::harness::{Dialect, Kind, PATIENCE, ScmOptions, WorkerProcess, World, eventually};

const PARTITIONS: usize = 8;

async fn world_with_partitions(count: usize) -> World {
    world_with(count, ScmOptions::new(Dialect::GitHub)).await
}

async fn world_with(partitions: usize, scm: ScmOptions) -> World {
    let mut world = World::with_scm(Kind::Sqlite, scm).await;
    world.set("broker.partitions", partitions);
    world
}

fn users(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("user-{number}")).collect()
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

/// The users whose requests this worker has settled, each as often as it did.
fn settled_by(worker: &WorkerProcess) -> Vec<String> {
    let log = worker.log();
    let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let settled = events
        .filter(|event| event["message"] == "message settled" && event["span"]["kind"] == "token.request");
    settled.filter_map(|event| event["span"]["user"].as_str().map(str::to_owned)).collect()
}

/// Which of the workers have settled requests of this user.
fn that_worked_for(user: &str, workers: &[WorkerProcess]) -> Vec<usize> {
    let settled_one = |number: &usize| settled_by(&workers[*number]).iter().any(|settled| settled == user);
    (0..workers.len()).filter(settled_one).collect()
}

/// The process of the worker that gets the messages of each partition.
async fn workers_of_partitions(
    world: &World,
    workers: &[&WorkerProcess],
    partitions: usize,
    round: &str,
) -> Vec<u32> {
    let asker = |index| format!("{round}-{index}");
    let requests = join_all((0..partitions).map(|index| send_to(world, index, asker(index)))).await;
    join_all(requests.into_iter().map(PendingReply::reply)).await;
    // A message is settled a moment after its reply is seen.
    eventually("every request to be settled", PATIENCE, async || {
        let mut by_user = BTreeMap::new();
        for worker in workers {
            by_user.extend(settled_by(worker).into_iter().map(|user| (user, worker.pid())));
        }
        (0..partitions).map(|index| by_user.get(&asker(index)).copied()).collect()
    })
    .await
}

/// Publishes a user's request to this partition.
async fn send_to(world: &World, index: usize, user: impl AsRef<str>) -> PendingReply {
    let (queue, body) = (format!("token-requests.{index}"), world.token_request(user.as_ref()));
    world.broker.send_to_queue(&queue, body.to_string(), BasicProperties::default()).await
}

async fn messages_in_partitions(world: &World, partitions: usize) -> u32 {
    let depth = async |index| world.broker.queue_depth(&format!("token-requests.{index}")).await;
    join_all((0..partitions).map(depth)).await.iter().sum()
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_partition_has_a_worker_of_its_own_until_a_better_one_comes_or_that_one_goes() {
    // So many that two workers both have some: the odds against it are 1 to 32,768.
    const MANY: usize = 16;
    let world = world_with_partitions(MANY).await;
    let (one, other) = tokio::join!(world.spawn_worker(), world.spawn_worker());
    let two = workers_of_partitions(&world, &[&one, &other], MANY, "two").await;
    assert!(two.contains(&one.pid()) && two.contains(&other.pid()), "{two:?}");
    let again = workers_of_partitions(&world, &[&one, &other], MANY, "again").await;
    assert_eq!(again, two, "each partition keeps its worker");

    let third = world.spawn_worker().await;
    let three = workers_of_partitions(&world, &[&one, &other, &third], MANY, "three").await;
    for (before, after) in two.iter().zip(&three) {
        assert!(after == before || *after == third.pid(), "{two:?}, then {three:?}");
    }

    third.stop(&world).await;
    let without = workers_of_partitions(&world, &[&one, &other], MANY, "without").await;
    assert_eq!(without, two, "those that it took are back where they were");
    stop(vec![one, other], &world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_worker_s_requests_are_answered_by_the_others() {
    let world = world_with_partitions(PARTITIONS).await;
    let users = users(40);
    let (doomed, other) = tokio::join!(world.spawn_worker(), world.spawn_worker());
    join_all(users.iter().map(|user| world.user_with_token(user))).await;
    let before = join_all(users.iter().map(|user| world.send_to_partition(user))).await;

    doomed.signal("KILL").await;
    let after = join_all(users.iter().map(|user| world.send_to_partition(user))).await;

    assert_ok(&answers(before).await);
    assert_ok(&answers(after).await);
    doomed.wait(&world).await;
    let killed = Instant::now();
    let alone = workers_of_partitions(&world, &[&other], PARTITIONS, "alone").await;
    assert_eq!(alone, vec![other.pid(); PARTITIONS]);
    println!("a request in each partition answered within {:?}", killed.elapsed());
    other.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_partition_s_worker_has_no_room_for_goes_to_the_next_one() {
    let mut world = world_with_partitions(1).await;
    world.set("worker.prefetch_token_requests", 4);
    let (one, other) = tokio::join!(world.spawn_worker(), world.spawn_worker());
    let users = users(8);
    join_all(users.iter().map(|user| world.user_with_expired_token(user))).await;
    let gate = world.scm.hold_refreshes();

    let requests = join_all(users.iter().map(|user| send_to(&world, 0, user))).await;

    eventually("four requests in each worker's hand", PATIENCE, async || {
        let in_hand = (one.requests_in_hand().await, other.requests_in_hand().await);
        (in_hand == (4, 4)).then_some(())
    })
    .await;
    gate.release();
    answers(requests).await;
    stop(vec![one, other], &world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_partitions_together_fill_the_prefetch_once_and_a_worker_that_stops_gives_the_rest_back() {
    let mut world = world_with_partitions(PARTITIONS).await;
    world.set("worker.prefetch_token_requests", 4);
    let (leaving, staying) = tokio::join!(world.spawn_worker(), world.spawn_worker());
    let users = users(4 * PARTITIONS);
    join_all(users.iter().map(|user| world.user_with_expired_token(user))).await;
    let gate = world.scm.hold_refreshes();
    // Two for each worker from each partition: four times as many as may be in hand.
    let requests =
        join_all(users.iter().enumerate().map(|(number, user)| send_to(&world, number % PARTITIONS, user)))
            .await;
    eventually("both workers to have what the broker sends them", PATIENCE, async || {
        (messages_in_partitions(&world, PARTITIONS).await == 0).then_some(())
    })
    .await;
    assert_eq!((leaving.requests_in_hand().await, staying.requests_in_hand().await), (4, 4));

    leaving.signal("TERM").await;

    eventually("what waits in the worker to be given back", PATIENCE, async || {
        (messages_in_partitions(&world, PARTITIONS).await == 12).then_some(())
    })
    .await;
    gate.release();
    answers(requests).await;
    eventually("every request to be settled", PATIENCE, async || {
        (settled_by(&leaving).len() == 4 && settled_by(&staying).len() == 28).then_some(())
    })
    .await;
    assert!(leaving.wait(&world).await.success());
    assert_eq!(world.broker.stray_replies().len(), 0, "nobody is answered twice");
    staying.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_of_a_message_runs_while_it_waits_for_a_place() {
    let mut world = world_with_partitions(2).await;
    world.set("worker.prefetch_token_requests", 1);
    let worker = world.spawn_worker().await;
    world.user_with_expired_token("busy").await;
    world.user_with_token("late").await;
    world.user_with_token("bystander").await;
    let gate = world.scm.hold_refreshes();
    let within = async |index: usize, user: &str, expiration_ms: u64| {
        let with = BasicProperties::default().with_expiration(expiration_ms.to_string().into());
        let (queue, body) = (format!("token-requests.{index}"), world.token_request(user).to_string());
        world.broker.send_to_queue(&queue, body, with).await
    };
    let busy = within(0, "busy", 3_000).await;
    gate.wait_for_parked(1).await;
    // It has all the time that it wants once it has a place, and too little until then.
    let late = within(1, "late", 1_500).await;
    eventually("the worker to have it", PATIENCE, async || {
        (messages_in_partitions(&world, 2).await == 0).then_some(())
    })
    .await;
    assert_eq!(worker.requests_in_hand().await, 1);
    let bystander = send_to(&world, 1, "bystander").await;

    let [busy, late, bystander] = answers(vec![busy, late, bystander]).await.try_into().expect("three");

    for out_of_time in [busy, late] {
        assert_eq!(out_of_time["error"]["code"], "deadline_exceeded", "{out_of_time}");
    }
    assert_ok(&[bystander]);
    gate.release();
    worker.stop(&world).await;
}

/// The broker counts a message that is given back as delivered, and two such deliveries make a suspect of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_wait_for_a_place_are_not_given_back_when_the_database_goes_away() {
    let (mut world, proxy) = world_behind_a_proxy().await;
    world.set("broker.partitions", PARTITIONS).set("worker.prefetch_token_requests", 4);
    let worker = world.spawn_worker().await;
    let users = users(2 * PARTITIONS);
    join_all(users.iter().map(|user| world.user_with_expired_token(user))).await;
    let gate = world.scm.hold_refreshes();
    let requests =
        join_all(users.iter().enumerate().map(|(number, user)| send_to(&world, number % PARTITIONS, user)))
            .await;
    eventually("the worker to have all of them, and four in hand", PATIENCE, async || {
        let waiting = messages_in_partitions(&world, PARTITIONS).await;
        (waiting == 0 && worker.requests_in_hand().await == 4).then_some(())
    })
    .await;

    go_away(&proxy);

    eventually("the others to be taken in hand", PATIENCE, async || {
        (worker.requests_in_hand().await == users.len()).then_some(())
    })
    .await;
    proxy.accept();
    gate.release();
    assert_ok(&answers(requests).await);
    assert_eq!(messages_in_partitions(&world, PARTITIONS).await, 0);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_s_messages_are_in_one_partition_the_same_for_each_kind() {
    let world = world_with_partitions(PARTITIONS).await;
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
    // A refresh takes a while, so that requests meet refreshes that are under way.
    let latency = Duration::from_millis(150);
    let scm = ScmOptions { latency, ..ScmOptions::new(Dialect::BitbucketServer) };
    let world = world_with(PARTITIONS, scm).await;
    world.apply_provider(|provider| provider.max_concurrent_refreshes = Some(16)).await;
    let (one, other) = tokio::join!(world.spawn_worker(), world.spawn_worker());
    let workers = vec![one, other];
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
