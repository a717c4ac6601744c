//! Listed and shown: all of them, nothing secret, and all as it was before.

use lapin::options::QueueDeleteOptions;
use serde_json::json;
use tokenkeeper_testkit::queues::{TOKEN_REQUEST, TOKEN_STORE, WORKSPACE_START};

use super::*;

const SECRET: &str = "s3cret-0123456789";

#[tokio::test]
async fn dead_letters_of_workers_and_of_the_broker_are_listed_with_what_is_known_of_them() {
    let world = world().await;
    let cli = Cli::of(&world).unset("TOKENKEEPER_KEYS").unset("DATABASE_URL");
    let worker = world.start_worker().await;
    let started = json!({"workspace_id": "ws-1", "user_id": "u-2", "repositories": []}).to_string();
    world
        .broker
        .send(WORKSPACE_START, started, BasicProperties::default().with_message_id("m-2".into()))
        .await;
    eventually("the worker to lay it aside", PATIENCE, async || {
        (world.broker.queue_depth("dead-letters").await == 1).then_some(())
    })
    .await;
    worker.stop().await;
    let user = world.publisher();
    let with = BasicProperties::default().with_user_id(user.as_str().into());
    die_of_deliveries(&world, TOKEN_REQUEST, "token-requests", json!({"user_id": "u-1", "host": "h"}), with)
        .await;
    lay(&world, "nonsense", &[0xff; 9], "whatever", BasicProperties::default()).await;

    let letters = listed(&cli).await;

    assert_eq!(letters.len(), 3);
    let [ours, brokers, nonsense] = &letters[..] else { panic!("three") };
    assert_eq!((&ours["id"], &ours["reason"]), (&json!("m-2"), &json!("invalid_request")));
    assert_eq!((&ours["type"], &ours["user_id"]), (&json!("workspace.start"), &json!("u-2")));
    assert_eq!(ours["detail"], "repositories: must be 1 to 16 clone URLs");
    assert_eq!((&brokers["reason"], &brokers["type"]), (&json!("delivery_limit"), &json!("token.request")));
    assert_eq!((&brokers["user_id"], &brokers["hosts"]), (&json!("u-1"), &json!(["h"])));
    assert_eq!(brokers["publisher"], user.as_str());
    for letter in [ours, brokers] {
        let at = letter["at"].as_str().unwrap();
        assert!(at.starts_with("202") && at.ends_with('Z'), "{at}");
    }
    assert_eq!((&nonsense["type"], &nonsense["user_id"]), (&json!(null), &json!(null)));
    assert_eq!((&nonsense["bytes"], &nonsense["at"]), (&json!(9), &json!("2020-01-01T01:05:00.000Z")));

    let table = cli.run(&["dead", "list"]).await.good();
    let rows = table.table();
    assert_eq!(rows[0], ["WHEN", "REASON", "TYPE", "USER", "HOST", "REPLAYS", "ID", "DETAIL"]);
    assert_eq!(
        rows[1][1..],
        [
            "invalid_request",
            "workspace.start",
            "u-2",
            "-",
            "0",
            "m-2",
            "repositories: must be 1 to 16 clone URLs"
        ]
    );
    assert_eq!(rows.len(), 4);
}

#[tokio::test]
async fn looking_at_dead_letters_removes_none_and_keeps_their_order() {
    let world = world().await;
    let cli = Cli::of(&world);
    // More than fit on one channel.
    lay_many(&world, 1_200).await;
    let first = listed(&cli).await;
    let in_order: Vec<String> = (0..1_200).map(|number| format!("m-{number}")).collect();
    assert_eq!(ids(&first), in_order);
    for _ in 0..3 {
        assert_eq!(world.broker.queue_depth("dead-letters").await, 1_200);
        cli.run(&["dead", "show", "m-700"]).await.good();
        assert!(listed(&cli).await == first, "nothing has changed");
    }
    assert_eq!(ids_in(&world, "dead-letters").await, in_order);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_operators_who_look_at_once_both_see_every_letter() {
    let world = world().await;
    let cli = Cli::of(&world);
    lay_many(&world, 600).await;
    for _ in 0..5 {
        let (one, other, third) = tokio::join!(listed(&cli), listed(&cli), listed(&cli));
        assert_eq!((one.len(), other.len(), third.len()), (600, 600, 600));
    }
    assert_eq!(world.broker.queue_depth("dead-letters").await, 600);
}

#[tokio::test]
async fn a_letter_is_shown_with_everything_but_its_secrets() {
    let world = world().await;
    let cli = Cli::of(&world);
    let body = json!({
        "user_id": "u-1", "host": "git.example.org", "auth_name": format!("J. {SECRET}"),
        "token": {"value": SECRET, "refresh_token": SECRET.repeat(3), "scopes": ["repo"]}, "later": SECRET,
    });
    let mut headers = FieldTable::default();
    headers.insert("authorization".into(), AMQPValue::LongString(format!("Bearer {SECRET}").into()));
    headers.insert("traceparent".into(), AMQPValue::LongString("00-1-2-01".into()));
    headers.insert("x-tries".into(), AMQPValue::LongInt(7));
    let properties = BasicProperties::default()
        .with_message_id("m-1".into())
        .with_reply_to("somewhere".into())
        .with_timestamp(u64::MAX)
        .with_headers(headers);
    lay(&world, TOKEN_STORE, body.to_string().as_bytes(), "invalid_request", properties).await;

    let shown = cli.run(&["dead", "show", "m-1", "--json"]).await.good();

    assert!(!shown.stdout.contains(SECRET), "{shown:?}");
    let shown = shown.json();
    assert_eq!((&shown["type"], &shown["user_id"]), (&json!("token.store"), &json!("u-1")));
    assert_eq!(shown["properties"]["reply_to"], "somewhere");
    assert_eq!(shown["properties"]["timestamp"], json!(u64::MAX));
    assert_eq!(shown["headers"]["traceparent"], "00-1-2-01");
    assert_eq!(shown["headers"]["x-tries"], 7);
    assert_eq!(shown["headers"]["authorization"], "[not shown: 24 bytes]");
    assert_eq!(shown["body"]["token"]["value"], "[not shown: a string of 17 bytes]");
    assert_eq!(shown["body"]["token"]["scopes"], json!(["repo"]));
    let table = cli.run(&["dead", "show", "m-1"]).await.good();
    assert!(!table.stdout.contains(SECRET), "{table:?}");
    assert_eq!(table.value("property reply_to"), "somewhere");
    assert_eq!(table.value("reason"), "invalid_request");
    assert_eq!(world.broker.queue_depth("dead-letters").await, 1);
}

#[tokio::test]
async fn a_body_that_is_not_json_is_shown_by_its_size_and_a_hint() {
    let world = world().await;
    let cli = Cli::of(&world);
    let large = vec![b'x'; 10 * 1024 * 1024];
    let cut_off = format!("{{\"token\":{{\"value\":\"{SECRET}");
    let not_utf8 = [SECRET.as_bytes(), b"\xff"].concat();
    for (body, hint) in [
        (cut_off.as_bytes(), "not JSON (line 1, column 36)"),
        (&not_utf8, "not UTF-8 (at byte 17)"),
        (&large, "larger than a message may be (131072 bytes)"),
    ] {
        lay(&world, TOKEN_STORE, body, "invalid_request", BasicProperties::default()).await;
        let letters = listed(&cli).await;
        let id = *ids(&letters).last().unwrap();
        assert_eq!(id.len(), 16, "a fingerprint");
        let shown = cli.run(&["dead", "show", id]).await.good();
        assert_eq!(shown.value("body"), hint);
        assert_eq!(shown.value("body size"), format!("{} bytes", body.len()));
        assert!(!shown.stdout.contains(SECRET), "{shown:?}");
    }
}

#[tokio::test]
async fn a_missing_letter_or_queue_is_named_in_plain_words() {
    let world = world().await;
    let cli = Cli::of(&world);
    cli.run(&["dead", "list"]).await.good().says("There are no dead letters.");
    assert_eq!(cli.run(&["dead", "list", "--json"]).await.good().json(), json!([]));
    cli.run(&["dead", "show", "m-1"])
        .await
        .with_code(1)
        .says("no dead letter has the ID m-1; `tokenkeeper dead list`");
    cli.run(&["dead", "show"]).await.with_code(2);
    let channel = world.broker.channel().await;
    let queue = world.broker.name("dead-letters");
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    for command in [&["dead", "list"][..], &["dead", "replay", "--all"], &["dead", "drop", "--all"]] {
        let ended = cli.run(command).await.with_code(1);
        ended.says(&format!("there is no queue {queue} at amqp://")).says("`broker.prefix`");
    }
    let away = Cli::of(&world).set("AMQP_URL", "amqp://guest:s3cret@127.0.0.1:1/%2f");
    let ended = away.run(&["dead", "list"]).await.with_code(1).says("(broker.url): ");
    assert!(!ended.stderr.contains("s3cret"), "{ended:?}");
}
