//! No token lies among the dead letters in clear, whoever laid it there; with the key, an operator has all of it back.

use std::time::Duration;

use lapin::Connection;
use lapin::options::BasicNackOptions;
use secrecy::ExposeSecret;
use serde_json::json;
use tokenkeeper::broker::dead_letters;
use tokenkeeper::domain::secret::KeyRing;
use tokenkeeper_testkit::queues::{TOKEN_REQUEST, TOKEN_STORE};

use super::*;

const SECRET: &str = "s3cret-0123456789";

/// The bodies that lie there, as they lie there. They stay.
async fn raw(world: &World) -> Vec<Vec<u8>> {
    let channel = world.broker.channel().await;
    let mut bodies = Vec::new();
    let queue = world.broker.name("dead-letters");
    while let Some(got) = channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await.unwrap()
    {
        bodies.push(got.delivery.data);
    }
    let all = BasicNackOptions { multiple: true, requeue: true };
    channel.basic_nack(0, all).await.unwrap();
    channel.close(200, "done".into()).await.unwrap();
    until_there_are(world, bodies.len()).await;
    bodies
}

fn in_clear(bodies: &[Vec<u8>]) -> usize {
    let holds = |body: &&Vec<u8>| body.windows(SECRET.len()).any(|word| word == SECRET.as_bytes());
    bodies.iter().filter(holds).count()
}

async fn until_there_are(world: &World, count: usize) {
    eventually("the letters to be there", PATIENCE, async || {
        (world.broker.queue_depth("dead-letters").await as usize == count).then_some(())
    })
    .await;
}

/// A `token.store` that no worker takes.
fn wrong_pair() -> Value {
    json!({"user_id": "u-1", "host": "git.example.org", "token": {"value": SECRET, "scopes": "repo"}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_pair_is_sealed_and_an_operator_with_the_key_sees_and_replays_it() {
    let world = world().await;
    let cli = Cli::of(&world);
    let without_keys = Cli::of(&world).unset("TOKENKEEPER_KEYS");
    let other_key = KeyRing::generate("other").expose_secret().to_owned();
    let with_another = Cli::of(&world).set("TOKENKEEPER_KEYS", &other_key);
    let worker = world.start_worker().await;
    let body = wrong_pair().to_string();
    let mut forged = FieldTable::default();
    forged.insert("x-tokenkeeper-content-type".into(), AMQPValue::LongString("text/html".into()));
    let with = BasicProperties::default()
        .with_message_id("m-1".into())
        .with_content_type("application/json".into())
        .with_headers(forged);
    world.broker.send(TOKEN_STORE, &body, with).await.reply().await;
    // The same where no pair belongs, and what is nearly one.
    for (id, body) in [
        ("m-2", json!({"user_id": "u-2", "host": 7, "token": SECRET}).to_string()),
        ("m-3", format!("{{\"token\":{{\"value\":\"{SECRET}")),
        ("m-4", json!({"user_id": "u-2", "host": 7, "auth": {"Password": SECRET}}).to_string()),
        ("m-5", json!({"user_id": "u-2", "host": format!("jdoe:{SECRET}@git.example.org")}).to_string()),
        ("m-6", json!([{"client_secret": SECRET}]).to_string()),
    ] {
        let with = BasicProperties::default().with_message_id(id.into());
        world.broker.send(TOKEN_REQUEST, body, with).await.reply().await;
    }
    until_there_are(&world, 6).await;
    worker.stop().await;

    let bodies = raw(&world).await;
    assert_eq!((bodies.len(), in_clear(&bodies)), (6, 0));
    assert!(bodies.iter().any(|sealed| sealed.len() == body.len()), "none has grown");
    let listed_with = listed(&cli).await;
    assert_eq!(ids(&listed_with), ["m-1", "m-2", "m-3", "m-4", "m-5", "m-6"]);
    assert_eq!(
        (&listed_with[0]["user_id"], &listed_with[0]["hosts"][0]),
        (&json!("u-1"), &json!("git.example.org"))
    );
    let listed_without = listed(&without_keys).await;
    assert_eq!(ids(&listed_without), ["m-1", "m-2", "m-3", "m-4", "m-5", "m-6"]);
    assert_eq!(
        (&listed_without[0]["user_id"], &listed_without[0]["type"]),
        (&json!(null), &json!("token.store"))
    );
    assert_eq!(listed_without[0]["detail"], listed_with[0]["detail"]);

    let shown = cli.run(&["dead", "show", "m-1", "--json"]).await.good();
    assert!(!shown.stdout.contains(SECRET), "{shown:?}");
    assert_eq!(shown.json()["body"]["token"]["value"], "[not shown: a string of 17 bytes]");
    assert_eq!(shown.json()["properties"]["content_type"], "application/vnd.tokenkeeper.sealed");
    let shown = without_keys.run(&["dead", "show", "m-1"]).await.with_code(1);
    assert_eq!(shown.value("body"), "sealed");
    shown.says("sealed with key `test`, and there are no encryption keys");
    let shown = with_another.run(&["dead", "show", "m-1"]).await.with_code(1);
    shown.says("sealed with key `test`, which is not among the configured encryption keys");

    let ended = without_keys.run(&["dead", "replay", "--id", "m-1"]).await.with_code(1);
    assert_eq!(ended.says("sealed with key `test`").stdout, "replayed 0, failed 1\n");
    until_there_are(&world, 6).await;
    assert_eq!(cli.run(&["dead", "replay", "--id", "m-1"]).await.good().stdout, "replayed 1, failed 0\n");
    let channel = world.broker.channel().await;
    let queue = world.broker.name("token-stores");
    let got = channel
        .basic_get(queue.into(), BasicGetOptions { no_ack: true })
        .await
        .unwrap()
        .expect("it is there");
    assert_eq!(got.data, body.as_bytes(), "as it was published");
    assert_eq!(got.properties.content_type().as_ref().unwrap().as_str(), "application/json");
    let headers = got.properties.headers().clone().unwrap();
    let left = headers
        .inner()
        .keys()
        .filter(|name| name.as_str().contains("sealed") || name.as_str().contains("content-type"));
    assert_eq!(left.count(), 0, "{headers:?}");
}

/// Publishes pairs that nobody takes in time, so that the broker lays them into the dead letters.
async fn expire(world: &World, count: usize) -> BTreeSet<String> {
    let ids: Vec<String> = (0..count).map(|number| format!("m-{number}")).collect();
    for id in &ids {
        let with = BasicProperties::default()
            .with_message_id(id.as_str().into())
            .with_content_type("application/json".into())
            .with_expiration("1".into());
        world.broker.publish(TOKEN_STORE, wrong_pair().to_string(), with).await;
    }
    until_there_are(world, count).await;
    set(ids)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_broker_dead_lettered_is_sealed_unchanged_by_the_next_worker() {
    let world = world().await;
    let cli = Cli::of(&world);
    expire(&world, 20).await;
    let died = BasicProperties::default().with_message_id("d-1".into());
    die_of_deliveries(&world, TOKEN_STORE, "token-stores", wrong_pair(), died).await;
    let harmless = BasicProperties::default().with_message_id("h-1".into());
    die_of_deliveries(
        &world,
        TOKEN_REQUEST,
        "token-requests",
        json!({"user_id": "u", "host": "h"}),
        harmless,
    )
    .await;
    assert_eq!(in_clear(&raw(&world).await), 21, "in clear as they came");
    // A seal that a publisher made up hides nothing.
    let mut forged = FieldTable::default();
    let note = format!("test:{}", "A".repeat(54) + "A=");
    forged.insert("x-tokenkeeper-sealed".into(), AMQPValue::LongString(note.into()));
    let forged = BasicProperties::default().with_message_id("f-1".into()).with_headers(forged);
    die_of_deliveries(&world, TOKEN_STORE, "token-stores", wrong_pair(), forged).await;
    let by_id = |mut letters: Vec<Value>| {
        letters.sort_by_key(|letter| letter["id"].to_string());
        letters
    };
    let before = by_id(listed(&cli).await);

    let worker = world.spawn_worker().await;
    worker.wait_for_log("sealed messages that the broker had moved", 1).await;
    assert_eq!(worker.count("tokenkeeper_dead_letters_sealed_total").await, 22);

    until_there_are(&world, 23).await;
    let bodies = raw(&world).await;
    assert_eq!((bodies.len(), in_clear(&bodies)), (23, 0));
    assert!(bodies.iter().any(|body| body.starts_with(b"{")), "what holds no token is left as it is");
    let mut after = by_id(listed(&cli).await);
    for (before, after) in before.iter().zip(&mut after) {
        if before["id"] == "f-1" {
            // Its user was not to be known before.
            after["user_id"] = before["user_id"].clone();
            after["hosts"] = before["hosts"].clone();
        }
    }
    assert_eq!(after, before, "reason, type, time and whose they are");
    world.user_with_token("bystander").await;
    assert_eq!(world.request("bystander").await["status"], "ok");
    worker.stop(&world).await;
    // Another worker finds nothing to do.
    let worker = world.spawn_worker().await;
    cli.run(&["dead", "replay", "--id", "m-7"]).await.good();
    eventually("the message to be refused again", PATIENCE, async || {
        let refused = worker
            .count(r#"tokenkeeper_dead_letters_total{type="token.store",reason="invalid_request"}"#)
            .await;
        (refused == 1).then_some(())
    })
    .await;
    assert_eq!(worker.count("tokenkeeper_dead_letters_sealed_total").await, 0);
    until_there_are(&world, 23).await;
    assert_eq!(in_clear(&raw(&world).await), 0);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_killed_while_it_seals_loses_no_dead_letter() {
    const LETTERS: usize = 300;
    const KILLS: usize = 4;
    let world = world().await;
    let laid = expire(&world, LETTERS).await;
    let keys = world.settings().key_ring().unwrap();
    for _ in 0..KILLS {
        let worker = world.launch_worker_process().await;
        eventually("it to be at work", PATIENCE, async || {
            (worker.count("tokenkeeper_dead_letters_sealed_total").await >= 20).then_some(())
        })
        .await;
        worker.signal("KILL").await;
        worker.wait(&world).await;
        eventually("the broker to have them all back", PATIENCE, async || {
            (world.broker.queue_depth("dead-letters").await as usize >= LETTERS).then_some(())
        })
        .await;
    }
    let worker = world.spawn_worker().await;
    eventually("the last worker to be done", PATIENCE, async || {
        (worker.log().contains("sealed messages that the broker had moved")).then_some(())
    })
    .await;
    worker.stop(&world).await;

    let letters = world.broker.wait_for_dead_letters(LETTERS).await;
    assert!(letters.len() <= LETTERS + KILLS, "at most the one in hand is there twice: {}", letters.len());
    assert_eq!(in_clear(&letters.iter().map(|letter| letter.body.clone()).collect::<Vec<_>>()), 0);
    let found = letters.iter().map(|letter| letter.properties.message_id().as_ref().unwrap().to_string());
    assert_eq!(set(found), laid);
    for letter in letters {
        let properties = letter.properties.clone().with_headers(letter.headers.clone());
        let opened = dead_letters::open(Some(&keys), &letter.routing_key, &properties, &letter.body).unwrap();
        assert_eq!(opened, wrong_pair().to_string().as_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_that_an_operator_works_on_are_not_sealed_meanwhile() {
    let world = world().await;
    expire(&world, 5).await;
    let operator =
        Connection::connect(world.broker.url(), lapin::ConnectionProperties::default()).await.unwrap();
    let channel = operator.create_channel().await.unwrap();
    let exclusive = lapin::options::QueueDeclareOptions { exclusive: true, ..Default::default() };
    let lock = world.broker.name("dead-letters.in-use");
    channel.queue_declare(lock.into(), exclusive, FieldTable::default()).await.unwrap();
    let worker = world.spawn_worker().await;
    worker.wait_for_log("somebody else consumes the dead letters", 1).await;
    assert_eq!(in_clear(&raw(&world).await), 5);
    world.user_with_token("bystander").await;
    assert_eq!(world.request("bystander").await["status"], "ok");
    worker.stop(&world).await;
    operator.close(200, "done".into()).await.unwrap();
    let worker = world.spawn_worker().await;
    worker.wait_for_log("sealed messages that the broker had moved", 1).await;
    worker.stop(&world).await;
    until_there_are(&world, 5).await;
    assert_eq!(in_clear(&raw(&world).await), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_the_limit_the_oldest_dead_letters_go_and_an_existing_queue_keeps_its_own_limit() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("broker.dead_letters_max_length", 3);
    declare_topology(&world).await;
    let channel = confirming(&world).await;
    for number in 0..5 {
        let with = BasicProperties::default().with_message_id(format!("m-{number}").into());
        publish(&world, &channel, TOKEN_REQUEST, b"{}", with).await;
    }
    until_there_are(&world, 3).await;
    assert_eq!(ids(&listed(&Cli::of(&world)).await), ["m-2", "m-3", "m-4"]);

    let mut with_age = World::new(Kind::Sqlite, Dialect::GitHub).await;
    with_age.set("broker.dead_letters_max_age_secs", 1);
    declare_topology(&with_age).await;
    let laid = tokio::time::Instant::now();
    lay(&with_age, TOKEN_REQUEST, b"{}", "invalid_request", BasicProperties::default()).await;
    until_there_are(&with_age, 0).await;
    assert!(laid.elapsed() >= Duration::from_millis(900), "{:?}", laid.elapsed());

    world.set("broker.dead_letters_max_length", 4);
    let connection = connect(&world.settings().broker, "test").await.unwrap();
    let refused = declare(&connection, &world.settings().broker).await.unwrap_err().to_string();
    let named = format!("cannot declare queue {}", world.broker.name("dead-letters"));
    assert!(refused.starts_with(&named) && refused.contains("x-max-length"), "{refused}");
    assert_eq!(world.broker.queue_depth("dead-letters").await, 3, "nothing is changed");
}
