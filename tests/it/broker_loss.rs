//! The broker goes away, or what was declared there does: workers come back by themselves.

use futures_util::future::join_all;
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use tokenkeeper_testkit::proxy::FaultProxy;
use tokenkeeper_testkit::queues::PendingReply;
use tokenkeeper_testkit::scm::RefreshGate;

use crate::harness::links::{BrokerLinks, Link};
use crate::harness::{Dialect, Kind, PATIENCE, WorkerProcess, World, eventually};

/// How many requests are under way when the broker goes away.
const REQUESTS: usize = 30;

/// A world whose workers reach the broker through a proxy; what the test itself publishes goes straight there.
async fn world_behind_a_proxy() -> (World, FaultProxy) {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let proxy = FaultProxy::start_for_url(world.broker.url(), 5672).await;
    let url = proxy.url(world.broker.url());
    world.set("broker.url", url);
    (world, proxy)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_is_answered_although_connections_are_cut_under_load() {
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
    let problems = worker.health().problems();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_with_other_arguments_is_reported_and_consumed_once_it_is_corrected() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.spawn_worker().await;
    world.user_with_token("jdoe").await;
    let channel = world.broker.channel().await;
    let queue = world.broker.name("token-requests");
    // A classic queue in its place: declaring the right one closes the channel with 406.
    let classic = async || {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        world
            .broker
            .channel()
            .await
            .queue_declare(queue.as_str().into(), options, FieldTable::default())
            .await
    };

    eventually("the wrong queue to be there", PATIENCE, async || {
        channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
        classic().await.ok()
    })
    .await;
    worker.wait_for_log("exists with another x-", 1).await;
    let (status, problems) = worker.get("readyz").await;
    assert!(status == 503 && problems.contains("does not consume"), "{problems}");
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();

    worker.wait_until_ready().await;
    assert_eq!(world.request("jdoe").await["status"], "ok");
    worker.stop(&world).await;
}

/// Requests for a token that is being refreshed, all in the hands of one worker, and the network between it and
/// the broker.
struct InHand {
    world: World,
    links: BrokerLinks,
    worker: WorkerProcess,
    requests: Vec<PendingReply>,
    gate: RefreshGate,
}

impl InHand {
    async fn with(settings: &[(&str, u32)], parameters: &str) -> Self {
        let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
        let links = BrokerLinks::start(world.broker.url()).await;
        let url = links.url(world.broker.url()) + parameters;
        world.set("broker.url", url).set("refresh.wait_secs", 30);
        for (key, value) in settings {
            world.set(key, value);
        }
        let worker = world.spawn_worker().await;
        world.user_with_expired_token("jdoe").await;
        let gate = world.scm.hold_refreshes();
        let requests = world.send_many("jdoe", REQUESTS).await;
        gate.wait_for_parked(1).await;
        eventually("all requests to be in hand", PATIENCE, async || {
            (worker.requests_in_hand().await == REQUESTS).then_some(())
        })
        .await;
        Self { world, links, worker, requests, gate }
    }

    /// Waits until this connection was made anew.
    async fn wait_for_reconnect(&self, link: Link) {
        let what = format!("the connection to {} to be made anew", link.name());
        eventually(&what, PATIENCE, async || (self.worker.reconnects(link).await > 0).then_some(())).await;
        self.worker.wait_until_ready().await;
    }

    /// Lets the refresh go on, and sees every request answered with its token. Gives back how many replies came
    /// beside those that were waited for.
    async fn finish(self) -> usize {
        let Self { world, links: _links, worker, requests, gate } = self;
        gate.release();
        for reply in join_all(requests.into_iter().map(PendingReply::reply)).await {
            assert_eq!(reply.body["status"], "ok", "{}", reply.body);
        }
        assert_eq!(world.scm.refresh_requests("jdoe"), 1);
        assert_eq!(world.request("jdoe").await["refresh"], "none", "the worker goes on working");
        worker.stop(&world).await;
        world.broker.stray_replies().len()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_in_hand_are_delivered_again_when_the_consuming_connection_is_cut() {
    let in_hand = InHand::with(&[], "").await;
    in_hand.links.cut(Link::Consume).await;
    in_hand.wait_for_reconnect(Link::Consume).await;
    assert_eq!(in_hand.worker.reconnects(Link::Publish).await, 0, "the other connection lives on");
    in_hand.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_connection_for_what_is_published_beside_replies_costs_nobody_a_reply_and_brings_nobody_two() {
    let in_hand = InHand::with(&[], "").await;
    in_hand.links.cut(Link::Publish).await;
    in_hand.wait_for_reconnect(Link::Publish).await;
    assert_eq!(in_hand.worker.reconnects(Link::Consume).await, 0, "the other connection lives on");
    assert_eq!(in_hand.finish().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_that_are_ready_while_nothing_can_be_published_are_published_later() {
    let (world, proxy) = world_behind_a_proxy().await;
    let worker = world.spawn_worker().await;
    world.user_with_expired_token("jdoe").await;
    let gate = world.scm.hold_refreshes();
    let request = world.send("jdoe").await;
    gate.wait_for_parked(1).await;
    proxy.refuse();
    proxy.cut_all();

    gate.release();
    eventually("the new pair to be stored", PATIENCE, async || {
        (world.entry("jdoe").await.generation == 2).then_some(())
    })
    .await;
    eventually("it to try again", PATIENCE, async || {
        (worker.reconnects(Link::Consume).await >= 4).then_some(())
    })
    .await;
    proxy.accept();

    assert_eq!(request.reply().await.body["status"], "ok");
    assert_eq!(world.scm.refresh_requests("jdoe"), 1);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publishing_connection_that_has_gone_silent_is_made_anew() {
    let in_hand = InHand::with(&[("broker.operation_timeout_secs", 1)], "").await;
    in_hand.links.silence(Link::Publish).await;
    in_hand.gate.release();
    in_hand.wait_for_reconnect(Link::Publish).await;
    in_hand.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_whose_replies_are_not_confirmed_is_replaced_before_its_heartbeat_fails() {
    let in_hand = InHand::with(&[("broker.operation_timeout_secs", 1)], "?heartbeat=600").await;
    in_hand.links.silence(Link::Consume).await;
    in_hand.gate.release();
    in_hand.wait_for_reconnect(Link::Consume).await;
    // As far as the broker knows the silent one still has the requests in hand.
    in_hand.links.cut_silent();
    in_hand.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_consuming_connection_is_replaced() {
    let in_hand = InHand::with(&[], "?heartbeat=1").await;
    in_hand.links.silence(Link::Consume).await;
    in_hand.wait_for_reconnect(Link::Consume).await;
    in_hand.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_told_to_stop_when_the_broker_has_gone_silent_ends_with_its_grace_period() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let links = BrokerLinks::start(world.broker.url()).await;
    world.set("broker.url", links.url(world.broker.url()) + "?heartbeat=600");
    world.set("broker.operation_timeout_secs", 300).set("worker.grace_period_secs", 1);
    let worker = world.spawn_worker().await;
    links.silence(Link::Consume).await;
    links.silence(Link::Publish).await;

    worker.stop(&world).await;
}
