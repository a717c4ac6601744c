//! Replayed and dropped: those that were meant, once, to where they came from.

use lapin::options::QueueDeleteOptions;
use serde_json::json;
use tokenkeeper_testkit::queues::{TOKEN_REQUEST, TOKEN_STORE};

use super::*;

#[tokio::test]
async fn a_replayed_request_is_answered_like_any_other() {
    let world = world().await;
    let cli = Cli::of(&world);
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    worker.stop().await;
    let user = world.publisher();
    let died = BasicProperties::default()
        .with_correlation_id("c-1".into())
        .with_reply_to(world.broker.reply_queue().into())
        .with_user_id(user.as_str().into())
        .with_timestamp(1_577_840_700);
    die_of_deliveries(&world, TOKEN_REQUEST, "token-requests", world.token_request("jdoe"), died).await;
    let worker = world.start_worker().await;

    let ended = cli.run(&["dead", "replay", "--reason", "delivery_limit"]).await.good();

    assert_eq!(ended.stdout, "replayed 1, failed 0\n");
    let reply = eventually("the reply", PATIENCE, async || world.broker.stray_replies().pop()).await;
    assert_eq!(reply.body["status"], "ok", "neither too old nor lost: {}", reply.body);
    assert_eq!(reply.properties.correlation_id().as_ref().unwrap().as_str(), "c-1");
    assert_eq!(world.broker.queue_depth("dead-letters").await, 0);
    worker.stop().await;
}

#[tokio::test]
async fn a_replayed_message_that_fails_again_comes_back_and_is_replayed_once() {
    let world = world().await;
    let cli = Cli::of(&world);
    let worker = world.start_worker().await;
    for number in 0..20 {
        let id = format!("m-{number}");
        world.broker.send(TOKEN_REQUEST, "{}", BasicProperties::default().with_message_id(id.into())).await;
    }
    for round in 1..=2 {
        eventually("the letters to be there", PATIENCE, async || {
            (world.broker.queue_depth("dead-letters").await == 20).then_some(())
        })
        .await;
        assert_eq!(
            cli.run(&["dead", "replay", "--all"]).await.good().stdout,
            "replayed 20, failed 0\n",
            "{round}"
        );
    }

    let letters = world.broker.wait_for_dead_letters(20).await;

    assert_eq!(letters.len(), 20);
    for letter in letters {
        assert_eq!(header(&letter.headers, "x-tokenkeeper-replay-count"), Some(&AMQPValue::LongLongInt(2)));
    }
    worker.stop().await;
}

#[tokio::test]
async fn a_replayed_message_keeps_its_body_and_its_properties_but_those_that_would_kill_it() {
    let world = world().await;
    let cli = Cli::of(&world);
    let user = world.publisher();
    let died = BasicProperties::default()
        .with_message_id("m-1".into())
        .with_content_type("application/json".into())
        .with_user_id(user.as_str().into())
        .with_expiration("3600000".into())
        .with_timestamp(7);
    let body = json!({"user_id": "u-1", "host": "h", "token": {"value": "t"}});
    die_of_deliveries(&world, TOKEN_STORE, "token-stores", body.clone(), died).await;
    cli.run(&["dead", "replay", "--id", "m-1"]).await.good();
    let channel = world.broker.channel().await;
    let queue = world.broker.name("token-stores");
    let got =
        channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap().expect("it is there");
    assert_eq!(got.exchange.as_str(), world.broker.prefix());
    assert_eq!(got.routing_key.as_str(), TOKEN_STORE);
    assert_eq!(got.data, body.to_string().as_bytes());
    let properties = &got.properties;
    assert_eq!(properties.content_type().as_ref().unwrap().as_str(), "application/json");
    assert_eq!(
        (properties.user_id(), properties.expiration(), properties.timestamp()),
        (&None, &None, &None)
    );
    let headers = properties.headers().clone().unwrap();
    let names: Vec<&str> = headers.inner().keys().map(lapin::types::ShortString::as_str).collect();
    // The first one is the broker's: it counts the deliveries of its new life.
    assert_eq!(names, ["x-delivery-count", "x-tokenkeeper-publisher", "x-tokenkeeper-replay-count"]);
    assert_eq!(header(&headers, "x-delivery-count"), Some(&AMQPValue::LongLongInt(0)));
}

#[tokio::test]
async fn a_message_that_no_queue_takes_stays_a_dead_letter() {
    let world = world().await;
    let cli = Cli::of(&world);
    lay_many(&world, 3).await;
    lay(
        &world,
        TOKEN_STORE,
        b"{}",
        "invalid_request",
        BasicProperties::default().with_message_id("s".into()),
    )
    .await;
    lay(&world, "nobody.knows", b"{}", "invalid_request", BasicProperties::default()).await;
    let channel = world.broker.channel().await;
    let queue = world.broker.name("token-requests");
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();

    let ended = cli.run(&["dead", "replay", "--all"]).await.with_code(1);

    assert_eq!(ended.stdout, "replayed 1, failed 4\n");
    let ended = ended.says("3 not replayed: no queue takes it from exchange");
    ended.says("1 not replayed: nothing in it tells which queue it came from");
    assert_eq!(world.broker.queue_depth("token-stores").await, 1);
    assert_eq!(world.broker.queue_depth("dead-letters").await, 4);
    let exchange = world.broker.prefix().to_owned();
    channel.exchange_delete(exchange.into(), lapin::options::ExchangeDeleteOptions::default()).await.unwrap();
    cli.run(&["dead", "replay", "--all"]).await.with_code(1).says("no queue takes it from exchange");
    assert_eq!(world.broker.queue_depth("dead-letters").await, 4);
}

#[tokio::test]
async fn only_the_letters_that_were_named_are_replayed_or_dropped() {
    let world = world().await;
    let cli = Cli::of(&world);
    lay_many(&world, 4).await;
    lay(
        &world,
        TOKEN_REQUEST,
        b"{}",
        "invalid_request",
        BasicProperties::default().with_message_id("o".into()),
    )
    .await;
    for command in ["drop", "replay"] {
        cli.run(&["dead", command]).await.with_code(2).says("--reason, --id or --all");
    }
    cli.run(&["dead", "drop", "--all", "--id", "m-1"]).await.with_code(2);
    cli.run(&["dead", "replay", "--all", "--reason", "x"]).await.with_code(2);
    assert_eq!(world.broker.queue_depth("dead-letters").await, 5);

    let by_reason = cli.run(&["dead", "drop", "--reason", "invalid_request"]).await.good();
    assert_eq!(by_reason.stdout, "dropped 1, failed 0\n");
    let by_id = cli.run(&["dead", "drop", "--id", "m-1", "--id", "m-9", "--id", "m-3"]).await.with_code(1);
    assert_eq!(by_id.says("no dead letter has the ID m-9").stdout, "dropped 2, failed 0\n");
    cli.run(&["dead", "replay", "--reason", "none"]).await.good().says("No dead letter has the reason none.");

    assert_eq!(ids(&listed(&cli).await), ["m-0", "m-2"]);
    assert_eq!(cli.run(&["dead", "drop", "--all"]).await.good().stdout, "dropped 2, failed 0\n");
    assert_eq!(world.broker.queue_depth("dead-letters").await, 0);
    assert_eq!(world.broker.queue_depth("token-requests").await, 0);
}
