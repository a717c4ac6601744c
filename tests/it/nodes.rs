//! Several nodes of the broker: one that is away, refuses, or has fallen silent keeps no worker from the others.

use futures_util::future::join_all;
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use tokenkeeper_testkit::proxy::FaultProxy;
use tokenkeeper_testkit::queues::{BasicProperties, TOKEN_REQUEST, TestBroker};
use url::Url;

use crate::cli::Cli;
use crate::harness::{Dialect, Kind, PATIENCE, World, eventually};

/// The broker's URL, with these hosts in the place of its own.
fn url_of(broker: &TestBroker, hosts: &[String]) -> String {
    let url = Url::parse(broker.url()).unwrap();
    let own = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap_or(5672));
    let text = broker.url();
    assert!(text.contains(&own), "a URL with a port");
    text.replace(&own, &hosts.join(","))
}

/// A world whose broker seems to have so many nodes: each is a proxy before the one that there is.
async fn world_with_nodes(count: usize) -> (World, Vec<FaultProxy>) {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let starting = (0..count).map(|_| FaultProxy::start_for_url(world.broker.url(), 5672));
    let nodes = join_all(starting).await;
    let hosts: Vec<String> = nodes.iter().map(|node| node.address().to_string()).collect();
    let url = url_of(&world.broker, &hosts);
    world.set_broker_url(url);
    (world, nodes)
}

/// An address of this machine where nobody listens.
fn nobody() -> String {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().to_string()
}

/// The nodes that have connections, and the others.
fn in_use(nodes: &[FaultProxy]) -> (Vec<&FaultProxy>, Vec<&FaultProxy>) {
    nodes.iter().partition(|node| node.connections() > 0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_and_every_command_find_the_one_node_that_works_among_three_that_do_not() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let [silent, refusing, works] = [0, 1, 2].map(|_| FaultProxy::start_for_url(world.broker.url(), 5672));
    let (silent, refusing, works) = tokio::join!(silent, refusing, works);
    silent.freeze();
    refusing.refuse();
    let hosts = [&silent, &refusing, &works].map(|node| node.address().to_string());
    let url = url_of(&world.broker, &[&hosts[..], &[nobody()]].concat());
    world.set_broker_url(url).set("broker.connect_timeout_secs", 4);

    let worker = world.spawn_worker().await;

    world.user_with_token("jdoe").await;
    assert_eq!(world.request("jdoe").await["status"], "ok");
    assert!(works.connections() >= 4, "all of its connections are there");
    Cli::of(&world).run(&["doctor"]).await.with_code(0);
    Cli::of(&world).run(&["dead", "list"]).await.with_code(0);
    let host = world.scm.host();
    Cli::of(&world).run(&["request", "--user", "jdoe", "--host", &host]).await.with_code(0);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_leaves_a_node_that_falls_silent_for_another_one() {
    let (mut world, nodes) = world_with_nodes(2).await;
    // Whoever tried the silent node again would wait for longer than a test does.
    world.set("broker.heartbeat_secs", 1).set("broker.connect_timeout_secs", 300);
    let worker = world.spawn_worker().await;
    world.user_with_token("jdoe").await;
    let (before, after) = in_use(&nodes);
    assert_eq!((before.len(), after.len()), (1, 1), "all connections are at one node");

    before[0].freeze();

    let replies = join_all((0..20).map(|_| world.request("jdoe"))).await;
    assert!(replies.iter().all(|reply| reply["status"] == "ok"), "{replies:?}");
    after[0].wait_for_connections(4).await;
    worker.wait_until_ready().await;
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_while_one_node_after_the_other_goes_and_comes() {
    let (world, nodes) = world_with_nodes(3).await;
    let worker = world.spawn_worker().await;
    world.user_with_token("jdoe").await;
    for _ in 0..4 {
        let (there, _) = in_use(&nodes);
        let requests = join_all((0..50).map(|_| world.request("jdoe")));
        let goes = async {
            for node in &there {
                node.refuse();
                node.cut_all();
            }
        };
        let (replies, ()) = tokio::join!(requests, goes);
        assert!(replies.iter().all(|reply| reply["status"] == "ok"), "{replies:?}");
        for node in there {
            node.accept();
        }
    }
    worker.wait_until_ready().await;
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_node_works_all_are_named_and_a_worker_waits_for_the_first_that_does() {
    let (world, nodes) = world_with_nodes(2).await;
    nodes.iter().for_each(FaultProxy::refuse);
    let worker = world.launch_worker_process().await;
    let [first, second] = [&nodes[0], &nodes[1]].map(|node| node.address().to_string());
    let named = |text: &str| text.contains(&first) && text.contains(&second);
    eventually("both nodes to be named", PATIENCE, async || {
        let (status, text) = worker.get("readyz").await;
        (status == 503 && text.lines().next().is_some_and(named)).then_some(())
    })
    .await;
    assert_eq!(worker.count("tokenkeeper_ready").await, 0);

    nodes[1].accept();

    worker.wait_until_ready().await;
    assert_eq!(worker.count("tokenkeeper_ready").await, 1);
    world.user_with_token("jdoe").await;
    assert_eq!(world.request("jdoe").await["status"], "ok");
    worker.stop(&world).await;
}

/// RabbitMQ 4.0 ended a connection over it (541).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requesters_who_delete_their_quorum_reply_queue_during_replies_disturb_nobody() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.spawn_worker().await;
    world.user_with_token("jdoe").await;
    let channel = world.broker.channel().await;
    for round in 0..10 {
        let queue = format!("{}-replies-{round}", world.broker.prefix());
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        channel.queue_declare(queue.as_str().into(), durable, arguments).await.unwrap();
        for _ in 0..20 {
            let properties = BasicProperties::default().with_reply_to(queue.as_str().into());
            let body = world.token_request("jdoe").to_string();
            world.broker.publish(TOKEN_REQUEST, body, properties).await;
        }

        let bystanders = join_all((0..10).map(|_| world.request("jdoe")));
        let delete = channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default());
        let (replies, deleted) = tokio::join!(bystanders, delete);

        deleted.unwrap();
        assert!(replies.iter().all(|reply| reply["status"] == "ok"), "{replies:?}");
    }
    eventually("all of them to be settled", PATIENCE, async || {
        (worker.requests_in_hand().await == 0).then_some(())
    })
    .await;
    worker.wait_until_ready().await;
    worker.stop(&world).await;
}
