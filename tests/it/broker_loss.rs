//! The broker goes away, or what was declared there does: workers come back by themselves.

use futures_util::future::join_all;
use lapin::options::QueueDeleteOptions;
use tokenkeeper_testkit::proxy::FaultProxy;

use crate::harness::{Dialect, Kind, PATIENCE, World, eventually};

/// A world whose workers reach the broker through a proxy; what the test itself publishes goes straight there.
async fn world_behind_a_proxy() -> (World, FaultProxy) {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let proxy = FaultProxy::start_for_url(world.broker.url(), 5672).await;
    let url = proxy.url(world.broker.url());
    world.set("broker.url", url);
    (world, proxy)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_cut_under_load_cost_no_request_its_answer() {
    let (world, proxy) = world_behind_a_proxy().await;
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    for _ in 0..3 {
        let requests = join_all((0..100).map(|_| world.request("jdoe")));
        let cut = async {
            proxy.wait_for_connections(2).await;
            proxy.cut_all();
        };
        let (replies, ()) = tokio::join!(requests, cut);
        assert!(replies.iter().all(|reply| reply["status"] == "ok"));
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_started_before_the_broker_waits_for_it() {
    let (world, proxy) = world_behind_a_proxy().await;
    proxy.refuse();
    let worker = world.launch_worker().await;
    let problems = worker.health().problems().await;
    assert!(problems.iter().any(|problem| problem.starts_with("broker:")), "{problems:?}");

    proxy.accept();

    worker.wait_until_ready().await;
    world.user_with_token("jdoe").await;
    assert_eq!(world.request("jdoe").await["status"], "ok");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_is_deleted_under_a_worker_is_declared_and_consumed_again() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    let channel = world.broker.channel().await;
    let queue = world.broker.name("token-requests");

    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();

    eventually("the queue to be consumed again", PATIENCE, async || {
        (world.broker.consumers("token-requests").await == 1).then_some(())
    })
    .await;
    assert_eq!(world.request("jdoe").await["status"], "ok");
    worker.stop().await;
}
