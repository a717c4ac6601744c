//! `reply_to` in the hands of a publisher who means harm: the worker may write where he may not, and does not do it for
//! him. What looks like a reply is no request either. Bystanders are answered throughout.

use futures_util::StreamExt;
use futures_util::future::join_all;
use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde_json::{Value, json};
use tokenkeeper_testkit::queues::{BasicProperties, DeadLetter, PendingReply, TOKEN_REQUEST, TOKEN_STORE};

use crate::harness::links::Link;
use crate::harness::reply::token;
use crate::harness::{Dialect, Kind, World};

const VICTIM: &str = "victim";
const BYSTANDERS: usize = 5;

/// A world with partitions, so that there are queues of every sort. Its users' tokens live for two hours.
async fn world() -> World {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("broker.partitions", 2);
    world
}

async fn users(world: &World) {
    for user in (0..BYSTANDERS).map(bystander).chain([VICTIM.to_owned()]) {
        world.user_with_token(&user).await;
    }
}

fn bystander(number: usize) -> String {
    format!("bystander-{number}")
}

/// Asks for each bystander's token once.
async fn bystanders_ask(world: &World) -> Vec<PendingReply> {
    join_all((0..BYSTANDERS).map(async |number| world.send(&bystander(number)).await)).await
}

async fn answered(pending: Vec<PendingReply>) {
    for reply in join_all(pending.into_iter().map(PendingReply::reply)).await {
        assert_eq!(reply.body["status"], "ok", "a bystander: {}", reply.body);
    }
}

fn detail(letter: &DeadLetter) -> String {
    let text = |name: &str| match letter.headers.inner().get(name) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!(text("x-tokenkeeper-reason"), "invalid_request");
    text("x-tokenkeeper-detail")
}

fn to(reply_to: &str) -> BasicProperties {
    BasicProperties::default().with_reply_to(reply_to.into())
}

/// Declares a queue that is there at times.
async fn declare(world: &World, suffix: &str) -> lapin::Channel {
    let channel = world.broker.channel().await;
    let options = QueueDeclareOptions { auto_delete: true, ..QueueDeclareOptions::default() };
    let name = world.broker.name(suffix);
    channel.queue_declare(name.as_str().into(), options, FieldTable::default()).await.unwrap();
    channel
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_reply_goes_to_a_queue_of_the_workers_and_no_pair_is_lost_by_that() {
    let world = world().await;
    let worker = world.spawn_worker().await;
    users(&world).await;
    let before = world.entry(VICTIM).await;
    let at_times = [("dead-letters.in-use", declare(&world, "dead-letters.in-use").await)];
    let mut ours = vec![world.broker.prefix().to_owned()];
    ours.extend(
        [
            "token-requests",
            "workspace-starts",
            "token-stores",
            "token-stores.0",
            "token-stores.1",
            "parked-pairs",
            "dead-letters",
            "dead-letters.in-use",
            "suspects",
            "isolated",
            "of-a-later-version",
        ]
        .map(|suffix| world.broker.name(suffix)),
    );
    let body = world.token_request(VICTIM).to_string();

    let mut bystanders = Vec::new();
    for name in &ours {
        world.broker.publish(TOKEN_REQUEST, &body, to(name)).await;
        bystanders.extend(bystanders_ask(&world).await);
    }
    let letters = world.broker.wait_for_dead_letters(ours.len()).await;

    answered(bystanders).await;
    assert_eq!(letters.len(), ours.len(), "each once, and nothing that came of a reply");
    for letter in &letters {
        assert_eq!(String::from_utf8_lossy(&letter.body), body, "as it came");
        let told = detail(letter);
        assert!(told.starts_with("property reply_to: is or begins like the name of a queue"), "{told}");
    }
    for suffix in [
        "token-requests",
        "workspace-starts",
        "token-stores",
        "token-stores.0",
        "token-stores.1",
        "suspects",
        "isolated",
    ] {
        assert_eq!(world.broker.queue_depth(suffix).await, 0, "{suffix}");
    }
    for (suffix, channel) in at_times {
        assert_eq!(world.broker.queue_depth(suffix).await, 0, "{suffix}");
        let name = world.broker.name(suffix);
        channel.queue_delete(name.into(), QueueDeleteOptions::default()).await.unwrap();
    }
    assert!(world.broker.stray_replies().is_empty());
    let after = world.entry(VICTIM).await;
    assert_eq!((after.generation, after.state), (before.generation, before.state), "the pair is what it was");
    let refreshed = world.request_for(VICTIM, 3 * 3600).await;
    assert_eq!(refreshed["refresh"], "required", "and it can be refreshed: {refreshed}");
    worker.stop(&world).await;
}

/// What RabbitMQ makes of direct reply-to, for a channel that stays open.
async fn written_by_the_broker(world: &World) -> (String, lapin::Channel) {
    let channel = world.broker.channel().await;
    let no_ack = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let _replies = channel
        .basic_consume("amq.rabbitmq.reply-to".into(), "".into(), no_ack, FieldTable::default())
        .await
        .unwrap();
    let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare("".into(), options, FieldTable::default()).await.unwrap();
    let publish = BasicPublishOptions::default();
    let (to, name) = (to("amq.rabbitmq.reply-to"), queue.name().clone());
    channel.basic_publish("".into(), name.clone(), publish, b"", to).await.unwrap().await.unwrap();
    let mut own = channel.basic_consume(name, "own".into(), no_ack, FieldTable::default()).await.unwrap();
    let delivered = own.next().await.unwrap().unwrap();
    (delivered.properties.reply_to().as_ref().map(ShortString::to_string).unwrap(), channel)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_to_that_could_break_the_connection_is_refused_and_costs_nobody_anything() {
    let world = world().await;
    let worker = world.spawn_worker().await;
    users(&world).await;
    let (real, _channel) = written_by_the_broker(&world).await;
    let (head, key) = real.rsplit_once('.').unwrap();
    let names = [
        "amq.gen-JzTY20BRgKO-HjmUJj0wLg".to_owned(),
        "amq.rabbitmq.trace".to_owned(),
        "amq.rabbitmq.reply-to.".to_owned(),
        "amq.rabbitmq.reply-to.g1h2AA".to_owned(),
        format!("amq.rabbitmq.reply-to.{key}.{key}"),
        format!("{}.{key}", &head[..head.len() - 4]),
        // The same term with its atom in Latin-1, and of a node that is none of a cluster's.
        real.replacen("g1h2", "g1hk", 1),
        real.replacen("ZXBseUA", "ZXBseUB", 1),
        format!("{real}x"),
        "nowhere\0\n".to_owned(),
        "dwohs si siht\u{202e}".to_owned(),
    ];
    let body = world.token_request(VICTIM).to_string();

    let mut bystanders = Vec::new();
    for name in &names {
        assert_ne!(*name, real);
        world.broker.publish(TOKEN_REQUEST, &body, to(name)).await;
        bystanders.extend(bystanders_ask(&world).await);
    }
    let letters = world.broker.wait_for_dead_letters(names.len()).await;

    answered(bystanders).await;
    assert_eq!(letters.len(), names.len());
    for letter in &letters {
        let told = detail(letter);
        assert!(told.starts_with("property reply_to: ") && !told.contains("gen-Jz"), "{told}");
    }
    for link in [Link::Consume, Link::Publish] {
        assert_eq!(worker.reconnects(link).await, 0, "none of them costs a connection");
    }
    // One that the broker wrote is answered.
    let direct = world.broker.request_direct(TOKEN_REQUEST, world.token_request(VICTIM)).await;
    token(&direct.body);
    worker.stop(&world).await;
}

fn reply_of(world: &World, user: &str) -> Value {
    json!({"user_id": user, "host": world.scm.host(), "token": {"value": "stolen-0123456789"}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_looks_like_a_reply_is_not_answered() {
    let world = world().await;
    let worker = world.spawn_worker().await;
    users(&world).await;
    let before = world.entry(VICTIM).await;
    let mut with_status = reply_of(&world, VICTIM);
    with_status["status"] = json!("ok");
    let plain = reply_of(&world, VICTIM);
    let typed = |kind: &str| BasicProperties::default().with_type(kind.into());
    let messages = [
        (with_status.clone(), BasicProperties::default(), "status: "),
        (with_status, typed("token.reply"), "property type: "),
        (plain.clone(), typed("token.reply"), "property type: "),
        (plain.clone(), typed("workspace.start.reply"), "property type: "),
        (plain.clone(), typed("token.store.reply"), "property type: "),
        (plain.clone(), typed("token.refreshed"), "property type: "),
        (plain, typed("parked.pair"), "property type: "),
    ];

    let mut bystanders = Vec::new();
    let mut sent = Vec::new();
    for (body, properties, _) in &messages {
        // Straight into the queue, as a reply would come, and by the exchange with somewhere to answer to.
        let channel = world.broker.channel().await;
        let queue = world.broker.name("token-stores");
        let publish = BasicPublishOptions::default();
        let body = body.to_string();
        let properties = properties.clone().with_correlation_id("straight".into());
        channel
            .basic_publish("".into(), queue.as_str().into(), publish, body.as_bytes(), properties.clone())
            .await
            .unwrap();
        sent.push(
            world
                .broker
                .send(TOKEN_STORE, body, properties.with_correlation_id(format!("c-{}", sent.len()).into()))
                .await,
        );
        bystanders.extend(bystanders_ask(&world).await);
    }
    let letters = world.broker.wait_for_dead_letters(2 * messages.len()).await;

    answered(bystanders).await;
    assert_eq!(letters.len(), 2 * messages.len());
    let mut told: Vec<String> = letters.iter().map(detail).collect();
    told.sort();
    let mut expected: Vec<&str> = messages.iter().flat_map(|(_, _, told)| [*told; 2]).collect();
    expected.sort_unstable();
    assert!(told.iter().zip(expected).all(|(told, begins)| told.starts_with(begins)), "{told:#?}");
    for letter in &letters {
        assert!(!letter.body.windows(6).any(|word| word == b"stolen"), "no token lies there in clear");
    }
    let after = world.entry(VICTIM).await;
    assert_eq!((after.generation, after.state), (before.generation, before.state), "the pair is what it was");
    // A good message of the same publisher is answered behind them: their replies would have come before.
    world.user_with_token("last").await;
    for pending in sent {
        let id = pending.correlation_id().to_owned();
        let reply = pending.reply_within(std::time::Duration::ZERO).await;
        assert!(reply.is_none(), "{id} got a reply: {reply:?}");
    }
    assert!(world.broker.stray_replies().is_empty());
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_with_a_queue_of_the_workers_as_reply_to_is_not_stored_and_dead_lettered_sealed() {
    let world = world().await;
    let worker = world.spawn_worker().await;
    users(&world).await;
    let body = reply_of(&world, "newcomer").to_string();
    let name = world.broker.name("dead-letters");
    world.broker.publish(TOKEN_STORE, &body, to(&name)).await;
    let channel = world.broker.channel().await;
    let letter = crate::harness::eventually("the letter", crate::harness::PATIENCE, async || {
        channel.basic_get(name.as_str().into(), BasicGetOptions { no_ack: true }).await.unwrap()
    })
    .await;
    assert!(!letter.data.windows(6).any(|word| word == b"stolen"));
    assert_eq!(world.request("newcomer").await["error"]["code"], "user_not_found");
    answered(bystanders_ask(&world).await).await;
    worker.stop(&world).await;
}
