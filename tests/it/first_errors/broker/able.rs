//! A worker is ready when it may do its job, and takes no message before.

use std::fs;

use serde_json::json;
use tokenkeeper::broker::{self, Login, checks};
use tokenkeeper::settings::{Broker, Settings, Topology};
use tokenkeeper_testkit::queues::{BasicProperties, TOKEN_REQUEST, TOKEN_STORE};

use super::{Accounts, Permissions, patterns};
use crate::cli::Cli;
use crate::harness::{Dialect, Kind, PATIENCE, WorkerProcess, World, eventually};

/// The permissions of a user as `docs/operating.md` has them, for the prefix of a world.
fn documented(user: &str, world: &World) -> Permissions {
    let document = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operating.md")).unwrap();
    let command = format!("rabbitmqctl set_permissions -p VHOST {user} ");
    let (_, patterns) = document.split_once(&command).expect("the command");
    let mut patterns = patterns.split('\'').skip(1).step_by(2);
    let mut next = || patterns.next().expect("a pattern").replace("tokenkeeper", world.broker.prefix());
    [next(), next(), next()]
}

/// What a world's worker would find wrong as this user.
async fn found(world: &World, accounts: &Accounts, user: &str, topology: Topology) -> Vec<String> {
    let mut environment = world.environment().clone();
    environment.insert("AMQP_URL".to_owned(), accounts.url(user));
    let mut settings = Settings::load_from(None, environment).unwrap().broker;
    settings.topology = topology;
    let problems = checks::check(&settings).await.problems;
    problems.iter().map(ToString::to_string).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_permissions_are_enough_for_a_worker_and_for_a_publisher() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let passive = Broker { topology: Topology::Passive, ..world.settings().broker };
    let broker::Permissions { configure, write, read } = Login::of(&passive).permissions();
    let users = [
        ("USER", Some(documented("USER", &world))),
        ("PUBLISHER", Some(documented("PUBLISHER", &world))),
        ("PASSIVE-USER", Some(patterns(&configure, &write, &read))),
    ];
    let accounts = Accounts::create(&world, &users).await;
    world.set_broker_url(accounts.url("USER"));
    let before: &[&str] = &[];
    assert_eq!(found(&world, &accounts, "USER", Topology::Declare).await, before, "nothing is there yet");

    let worker = world.spawn_worker().await;

    assert_eq!(found(&world, &accounts, "USER", Topology::Declare).await, before);
    world.user_with_expired_token("jdoe").await;
    // As its publisher, by direct reply-to.
    let cli = Cli::of(&world).set("AMQP_URL", &accounts.url("PUBLISHER"));
    let host = world.scm.host();
    cli.run(&["request", "--user", "jdoe", "--host", &host]).await.good();
    // To a queue, into the dead letters, and back to work by its operator.
    assert_eq!(world.request("jdoe").await["status"], "ok");
    world.broker.publish(TOKEN_REQUEST, "not JSON", BasicProperties::default()).await;
    eventually("a dead letter", PATIENCE, async || {
        (world.broker.queue_depth("dead-letters").await == 1).then_some(())
    })
    .await;
    Cli::of(&world).run(&["dead", "drop", "--reason", "invalid_request"]).await.good();
    let login = json!({"user_id": "u", "host": "nowhere.example.org", "token": {"value": "t"}});
    world.broker.publish(TOKEN_STORE, login.to_string(), BasicProperties::default()).await;
    world.broker.wait_for_dead_letters(1).await;
    worker.stop(&world).await;

    // The same over what is there, without the permission to declare.
    world.set_broker_url(accounts.url("PASSIVE-USER")).set("broker.topology", "passive");
    assert_eq!(found(&world, &accounts, "PASSIVE-USER", Topology::Passive).await, before);
    let worker = world.spawn_worker().await;
    assert_eq!(world.request("jdoe").await["status"], "ok");
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_may_not_reply_is_not_ready_takes_nothing_and_goes_on_when_it_may() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let able = documented("USER", &world);
    let all = &format!("^{}.*$", world.broker.prefix());
    let accounts = Accounts::create(&world, &[("worker", Some(patterns(all, all, all)))]).await;
    let first = world.spawn_worker().await;
    world.user_with_token("jdoe").await;
    first.stop(&world).await;
    world.set_broker_url(accounts.url("worker"));

    let worker = world.launch_worker_process().await;
    let request = world.send("jdoe").await;

    let grant = Login::of(&world.settings().broker).grant();
    let cause = eventually("the cause", PATIENCE, async || {
        let (status, body) = worker.get("readyz").await;
        (status == 503 && body.contains("no write permission for exchange amq.default")).then_some(body)
    });
    assert!(cause.await.contains(&grant), "the command that mends it");
    assert_eq!(world.broker.consumers("token-requests").await, 0);
    assert_eq!(found(&world, &accounts, "worker", Topology::Declare).await.len(), 1);

    accounts.grant("worker", &able).await;

    assert_eq!(request.reply().await.body["status"], "ok");
    worker.wait_until_ready().await;
    worker.wait_for_log(r#""broker, over: user "#, 1).await;
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_may_no_longer_reply_gives_its_requests_back_and_says_so() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let able = documented("USER", &world);
    let accounts = Accounts::create(&world, &[("worker", Some(able.clone()))]).await;
    world.set_broker_url(accounts.url("worker"));
    let worker = WorkerProcess::spawn(&world).await;
    world.user_with_token("jdoe").await;
    let all = format!("^{}.*$", world.broker.prefix());
    accounts.grant("worker", &[all.clone(), all.clone(), all]).await;

    // The broker remembers for a channel what it may do. Direct replies have another connection, not yet opened.
    let body = world.token_request("jdoe").to_string();
    let request = world.broker.send_direct(TOKEN_REQUEST, body, BasicProperties::default()).await;
    eventually("the cause", PATIENCE, async || {
        let (status, body) = worker.get("readyz").await;
        (status == 503 && body.contains("no write permission for exchange amq.default")).then_some(())
    })
    .await;
    accounts.grant("worker", &able).await;

    assert_eq!(request.reply().await.body["status"], "ok");
    worker.wait_until_ready().await;
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_checks_change_nothing_and_name_what_is_wrong() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let users = [("worker", Some(documented("USER", &world))), ("no-read", Some(patterns("^$", ".*", "^$")))];
    let accounts = Accounts::create(&world, &users).await;
    assert!(found(&world, &accounts, "worker", Topology::Declare).await.is_empty());
    assert!(found(&world, &accounts, "worker", Topology::Passive).await[0].contains("there is no exchange"));
    let worker = world.spawn_worker().await;
    worker.stop(&world).await;
    world.broker.publish(TOKEN_REQUEST, "a message that waits", BasicProperties::default()).await;

    let problems = found(&world, &accounts, "no-read", Topology::Passive).await;

    assert_eq!(problems.len(), 7, "each queue that it may not read: {problems:?}");
    assert_eq!(world.broker.queue_depth("token-requests").await, 1, "nothing was taken");
    assert_eq!(world.broker.queue_depth("dead-letters").await, 0, "nothing was published");
}
