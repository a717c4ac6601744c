//! The number of partitions changes, or a queue or a connection goes away.

use super::*;

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
    let mut world = world_with_partitions(PARTITIONS).await;
    world.set("broker.partitions", 2);
    let old = world.spawn_worker().await;
    world.set("broker.partitions", PARTITIONS);
    let new = world.spawn_worker().await;
    let users = users(20);
    join_all(users.iter().map(|user| world.user_with_token(user))).await;

    assert_ok(&answers(join_all(users.iter().map(|user| world.send_to_partition(user))).await).await);

    stop(vec![old, new], &world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_loses_its_broker_leaves_the_partitions_to_the_others_until_it_is_back() {
    let mut world = world_with_partitions(PARTITIONS).await;
    let url = world.broker.url().to_owned();
    let links = BrokerLinks::start(&url).await;
    world.set("broker.url", links.url(&url));
    let apart = world.spawn_worker().await;
    world.set("broker.url", &url);
    let other = world.spawn_worker().await;
    let before = workers_of_partitions(&world, &[&apart, &other], PARTITIONS, "before").await;

    links.cut(Link::Consume).await;
    eventually("a new connection", PATIENCE, async || {
        (apart.reconnects(Link::Consume).await > 0).then_some(())
    })
    .await;
    apart.wait_until_ready().await;
    let back = workers_of_partitions(&world, &[&apart, &other], PARTITIONS, "back").await;
    assert_eq!(back, before);

    drop(links);
    let alone = workers_of_partitions(&world, &[&other], PARTITIONS, "alone").await;
    assert_eq!(alone, vec![other.pid(); PARTITIONS]);
    stop(vec![apart, other], &world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_is_missing_is_told_until_somebody_has_declared_it() {
    let mut world = world_with_partitions(PARTITIONS).await;
    declare(&world).await;
    world.set("broker.topology", "none");
    let worker = world.spawn_worker().await;
    let channel = world.broker.channel().await;
    let queue = world.broker.name("token-requests.3");
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();

    worker.wait_for_log(&format!("there is no queue {}", world.broker.name("token-requests.3")), 1).await;
    let (status, body) = worker.get("readyz").await;
    assert_eq!((status, body.lines().count()), (503, 2), "{body}");
    assert!(body.contains("broker: 23 of the 24 queues of partitions are consumed"), "{body}");
    declare(&world).await;

    worker.wait_until_ready().await;
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_whose_queue_is_deleted_comes_back() {
    let world = world_with_partitions(PARTITIONS).await;
    let worker = world.spawn_worker().await;
    let channel = world.broker.channel().await;
    let queue = world.broker.name("token-requests.3");

    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();

    worker.wait_for_log("the broker delivers nothing more from queue", 1).await;
    world.broker.wait_for_consumer("token-requests.3").await;
    worker.wait_until_ready().await;
    let users = users(20);
    join_all(users.iter().map(|user| world.user_with_token(user))).await;
    assert_ok(&answers(join_all(users.iter().map(|user| world.send_to_partition(user))).await).await);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_setting_nothing_is_declared_for_partitions() {
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
    worker.stop(&world).await;
}
