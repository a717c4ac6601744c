//! Exchanges and queues: who declares them, and what a worker does where they are missing or not as it wants them.

use lapin::options::{ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use tokenkeeper::broker;
use tokenkeeper::settings::{Broker, Topology};
use tokenkeeper_testkit::queues::{BasicProperties, TOKEN_REQUEST};
use tokenkeeper_testkit::servers::RabbitMq;

use crate::cli::Cli;
use crate::harness::links::{BrokerLinks, Link};
use crate::harness::{Dialect, Kind, PATIENCE, WorkerProcess, World, eventually};
use crate::tls::can_run_servers;

async fn world_with_topology(mode: &str) -> World {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("broker.topology", mode);
    world
}

/// Declares what a worker with the setting `declare` would.
async fn declare_topology(world: &World) {
    let settings = Broker { topology: Topology::Declare, ..world.settings().broker };
    let connection = broker::connect(&settings, "operator").await.unwrap();
    broker::declare(&connection, &settings).await.unwrap();
    connection.close(200, "declared".into()).await.unwrap();
}

async fn delete_queue(world: &World, suffix: &str) {
    let queue = world.broker.name(suffix);
    let channel = world.broker.channel().await;
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
}

async fn assert_not_ready(worker: &WorkerProcess) {
    let (status, body) = worker.get("readyz").await;
    assert_eq!(status, 503);
    assert!(body.contains("does not consume "), "{body}");
}

async fn assert_answers(world: &World, worker: WorkerProcess) {
    worker.wait_until_ready().await;
    world.user_with_token("jdoe").await;
    assert_eq!(world.request("jdoe").await["status"], "ok");
    worker.stop(world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_passive_topology_a_worker_says_what_is_missing_and_is_ready_once_it_is_declared() {
    let world = world_with_topology("passive").await;
    let worker = world.launch_worker_process().await;
    worker.wait_for_log(&format!("there is no exchange {}.dead-letters", world.broker.prefix()), 1).await;
    assert_not_ready(&worker).await;
    assert_eq!(world.broker.consumers("token-requests").await, 0, "it declares nothing");

    declare_topology(&world).await;

    assert_answers(&world, worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_no_topology_a_worker_says_what_it_cannot_consume_and_is_ready_once_it_can() {
    let world = world_with_topology("none").await;
    let worker = world.launch_worker_process().await;
    worker.wait_for_log(&format!("there is no exchange {}", world.broker.name("dead-letters")), 1).await;
    assert_not_ready(&worker).await;

    declare_topology(&world).await;

    assert_answers(&world, worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_exists_with_other_arguments_is_named_and_left_as_it_is() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let links = BrokerLinks::start(world.broker.url()).await;
    let url = links.url(world.broker.url());
    world.set("broker.url", url);
    let classic = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let name = world.broker.name("workspace-starts");
    let channel = world.broker.channel().await;
    channel.queue_declare(name.as_str().into(), classic, FieldTable::default()).await.unwrap();

    let worker = world.launch_worker_process().await;

    worker.wait_for_log(&format!("queue {name} exists with another x-"), 1).await;
    assert_not_ready(&worker).await;
    eventually("no connection to pile up", PATIENCE, async || (links.open() <= 2).then_some(())).await;

    delete_queue(&world, "workspace-starts").await;

    assert_answers(&world, worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_is_deleted_comes_back_without_disturbing_the_others() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.spawn_worker().await;
    world.user_with_expired_token("jdoe").await;
    let gate = world.scm.hold_refreshes();
    let request = world.send("jdoe").await;
    gate.wait_for_parked(1).await;

    for suffix in ["token-stores", "workspace-starts"] {
        delete_queue(&world, suffix).await;
        world.broker.wait_for_consumer(suffix).await;
    }

    assert_eq!(worker.log().matches(r#""broker: the broker delivers nothing more from queue "#).count(), 2);
    assert_eq!(worker.log().matches(r#""broker: the connection to "#).count(), 0);
    gate.release();
    assert_eq!(request.reply().await.body["status"], "ok");
    assert_eq!(world.broker.stray_replies().len(), 0, "it was not delivered a second time");
    assert_answers(&world, worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_that_is_deleted_comes_back_with_the_next_connection() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let links = BrokerLinks::start(world.broker.url()).await;
    let url = links.url(world.broker.url());
    world.set("broker.url", url);
    let worker = world.spawn_worker().await;
    let channel = world.broker.channel().await;
    let exchange = world.broker.prefix();
    channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await.unwrap();

    links.cut(Link::Consume).await;
    eventually("a new connection", PATIENCE, async || {
        (worker.reconnects(Link::Consume).await > 0).then_some(())
    })
    .await;

    assert_answers(&world, worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_for_a_missing_queue_of_dead_letters_are_kept_until_it_is_there() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.spawn_worker().await;
    delete_queue(&world, "dead-letters").await;

    world.broker.publish(TOKEN_REQUEST, "{}", BasicProperties::default()).await;

    worker.wait_for_log("routes it nowhere", 2).await;
    world.user_with_token("jdoe").await;
    assert_eq!(world.request("jdoe").await["status"], "ok", "the others are not held up");
    declare_topology(&world).await;
    let letters = world.broker.wait_for_dead_letters(1).await;
    assert_eq!(letters[0].body, b"{}");
    worker.stop(&world).await;
}

/// A policy's name, pattern and definition in the command that `doctor` prints.
fn policy_in(told: &str) -> [String; 3] {
    let (_, command) = told.split_once("--apply-to queues ").unwrap();
    let (name, rest) = command.split_once(" '").unwrap();
    let (pattern, rest) = rest.split_once("' '").unwrap();
    let (definition, _) = rest.split_once('\'').unwrap();
    [name, pattern, definition].map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_that_are_left_to_a_policy_change_in_place_and_never_with_a_worker_that_declares_them() {
    use std::os::unix::fs::PermissionsExt;
    if !can_run_servers() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let rabbitmq = RabbitMq::start(folder.path(), None).await.unwrap();
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set_broker_url(rabbitmq.url()).set("broker.queue_arguments", "policy");
    let worker = world.spawn_worker().await;
    let limited_by = async |name: &str| {
        let policies = rabbitmq.list("queues", "policy").await.unwrap();
        policies.iter().filter(|policy| *policy == name).count()
    };
    let told = Cli::of(&world).run(&["doctor"]).await.stdout;
    let [name, pattern, definition] = policy_in(&told);
    assert_eq!(limited_by(&name).await, 0);
    for limit in ["5", "7"] {
        assert!(definition.contains("\"delivery-limit\":5"), "{definition}");
        rabbitmq.set_policy(&name, &pattern, &definition.replace('5', limit)).await.unwrap();
        assert_eq!(limited_by(&name).await, 6, "four kinds of messages, and the two queues of suspects");
    }
    worker.stop(&world).await;
    world.spawn_worker().await.stop(&world).await;

    world.set("broker.queue_arguments", "declare");
    let refused = world.launch_worker_process().await;
    refused.wait_for_log("exists with another x-delivery-limit (broker.queue_arguments)", 1).await;
    assert_not_ready(&refused).await;
    refused.stop(&world).await;
}
