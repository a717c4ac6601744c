//! Texts that steer a terminal, forge a line or turn the direction of writing: refused where a publisher writes them, and
//! never let out raw where they stand in the database or in a message all the same.

use std::process::Stdio;

use lapin::options::{BasicGetOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use sea_orm::ActiveValue::{NotSet, Set};
use sea_orm::{ActiveModelTrait, ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter};
use serde_json::{Value, json};
use tokenkeeper_entity::{identity, token_entry};
use tokenkeeper_testkit::queues::{BasicProperties, TOKEN_REQUEST, TOKEN_STORE, WORKSPACE_START};

use crate::cli::{Cli, Ended};
use crate::harness::reply::{error_message, token};
use crate::harness::{Dialect, Kind, PATIENCE, World, eventually};

/// One of each kind: NUL, ESC, a line break, CSI of C1, a separator of lines, and marks that turn the direction of writing.
const NASTY: &str = "x\0\u{1b}[2J\r\nforged=1\u{7f}\u{9b}31m\u{2028}\u{202e}\u{2066}\u{200f}\u{61c}z";

/// What must not leave raw, as this test sees it. Line breaks between lines are for the caller to know.
fn is_raw(symbol: char) -> bool {
    let bidirectional =
        "\u{61c}\u{200e}\u{200f}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\u{2069}";
    symbol.is_control() || "\u{2028}\u{2029}".contains(symbol) || bidirectional.contains(symbol)
}

#[track_caller]
fn assert_nothing_raw(text: &str, what: &str) {
    let raw = text.lines().flat_map(str::chars).find(|symbol| is_raw(*symbol));
    assert_eq!(raw, None, "{what} lets it out: {text:?}");
    let forged = text.lines().any(|line| line.starts_with("forged"));
    assert!(!forged, "{what} has a forged line: {text:?}");
}

/// It shows the text, and nothing of it raw: neither here nor on standard error.
#[track_caller]
fn assert_escaped(ended: Ended, what: &str) -> Ended {
    let shown = ended.stdout.contains("\\u001b[2J") && ended.stdout.contains("\\u009b31m");
    assert!(shown && ended.stdout.contains("\\u202e"), "{what} does not show it: {ended:?}");
    assert_nothing_raw(&ended.stdout, what);
    assert_nothing_raw(&ended.stderr, what);
    ended
}

// --- What comes in ---

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_publisher_writes_is_refused_with_the_name_of_its_field_and_others_are_served() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    let host = world.scm.host();
    let with = |mut body: Value, place: &str, text: &str| {
        *body.pointer_mut(place).expect("the body has this field") = json!(text);
        body
    };
    let request = json!({"user_id": "u", "host": host});
    let start =
        json!({"workspace_id": "ws", "user_id": "u", "repositories": [format!("https://{host}/p/r.git")]});
    let login = json!({"user_id": "u", "host": host, "auth_id": "a", "auth_name": "A", "token":
        {"value": "t", "refresh_token": "r", "username": "x", "scopes": ["repo"]}});
    let mut refused = 0;
    for symbol in NASTY.chars().filter(|symbol| is_raw(*symbol)) {
        for (routing_key, good, place, names) in [
            (TOKEN_REQUEST, &request, "/user_id", "user_id: "),
            (TOKEN_REQUEST, &request, "/host", "host: "),
            (WORKSPACE_START, &start, "/workspace_id", "workspace_id: "),
            (TOKEN_STORE, &login, "/auth_id", "auth_id: "),
            (TOKEN_STORE, &login, "/auth_name", "auth_name: "),
            (TOKEN_STORE, &login, "/token/username", "token.username: "),
            (TOKEN_STORE, &login, "/token/scopes/0", "token.scopes[0]: "),
            (TOKEN_STORE, &login, "/token/value", "token.value: "),
            (TOKEN_STORE, &login, "/token/refresh_token", "token.refresh_token: "),
        ] {
            let reply =
                world.broker.request(routing_key, with(good.clone(), place, &format!("a{symbol}b"))).await;
            let message = error_message(&reply.body, "invalid_request");
            assert!(message.starts_with(names), "{symbol:?}: {message}");
            refused += 1;
        }
        token(&world.request("jdoe").await);
    }
    for place in ["/token/username", "/token/value", "/token/refresh_token"] {
        let reply = world.broker.request(TOKEN_STORE, with(login.clone(), place, "a b")).await;
        assert!(error_message(&reply.body, "invalid_request").contains("blank"), "{place}");
        refused += 1;
    }
    assert_eq!(world.broker.wait_for_dead_letters(refused).await.len(), refused);
    token(&world.request("jdoe").await);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copied_property_with_control_characters_is_refused_and_not_repeated() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    let nasty = "x\u{1b}[2J\u{202e}";
    for (property, properties) in [
        ("correlation_id", BasicProperties::default().with_correlation_id(nasty.into())),
        ("message_id", BasicProperties::default().with_message_id(nasty.into())),
    ] {
        let (properties_of_reply, body) = raw_reply(&world, properties).await;
        let reply: Value = serde_json::from_slice(&body).unwrap();
        let message = error_message(&reply, "invalid_request");
        assert!(message.starts_with(&format!("property {property}: ")), "{message}");
        assert_eq!(properties_of_reply.correlation_id(), &None);
    }
    assert_eq!(world.broker.wait_for_dead_letters(2).await.len(), 2);

    let mut headers = FieldTable::default();
    headers.insert("traceparent".into(), AMQPValue::LongString(nasty.into()));
    let traced = BasicProperties::default().with_correlation_id("c-1".into()).with_headers(headers);
    let (properties, body) = raw_reply(&world, traced).await;
    token(&serde_json::from_slice(&body).unwrap());
    assert_eq!(
        properties.headers(),
        &None,
        "a trace that is none is not carried on, and costs nobody his token"
    );
    worker.stop().await;
}

/// The reply to a request for jdoe's token, as it lies in its queue.
async fn raw_reply(world: &World, properties: BasicProperties) -> (BasicProperties, Vec<u8>) {
    let channel = world.broker.channel().await;
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let name = format!("{}-raw", world.broker.prefix());
    let queue = channel.queue_declare(name.into(), exclusive, FieldTable::default()).await.unwrap();
    let properties = properties.with_reply_to(queue.name().clone());
    world.broker.publish(TOKEN_REQUEST, world.token_request("jdoe").to_string(), properties).await;
    eventually("the reply", PATIENCE, async || {
        let got = channel.basic_get(queue.name().clone(), BasicGetOptions { no_ack: true }).await.unwrap();
        got.map(|got| (got.delivery.properties, got.delivery.data))
    })
    .await
}

// --- What goes out ---

/// Writes into every text of jdoe's rows, past every check. The user and the host stay: nobody can ask for others.
async fn spoil_rows(world: &World) {
    let db = world.connection().await;
    let now = world.scm.now_ms();
    world
        .rewrite_in_format_1("jdoe", |row| {
            row.username = Some(NASTY.to_owned());
            row.scopes = json!([NASTY]).to_string();
            row.failure_code = Some("provider_unavailable".to_owned());
            row.failure_message = Some(NASTY.to_owned());
            row.failure_fingerprint = Some("f".to_owned());
            row.failed_at = Some(now - 1000);
            row.lease_holder = Some(NASTY.to_owned());
            row.lease_until = Some(now - 1000);
        })
        .await;
    let row =
        identity::Entity::find().filter(identity::Column::UserId.eq("jdoe")).one(&db).await.unwrap().unwrap();
    let spoilt = identity::ActiveModel {
        auth_id: Set(NASTY.to_owned()),
        auth_name: Set(Some(NASTY.to_owned())),
        ..row.into_active_model()
    };
    spoilt.update(&db).await.unwrap();
}

/// Another provider, and an identity there, whose names nobody would be let in with.
async fn add_nasty_names(world: &World) {
    world
        .apply_provider(|provider| {
            NASTY.clone_into(&mut provider.host);
            NASTY.clone_into(&mut provider.client_id);
            provider.username = Some(NASTY.to_owned());
            provider.redirect_uri = Some(NASTY.to_owned());
        })
        .await;
    let provider = world.store.provider(NASTY).await.unwrap().unwrap();
    let db = world.connection().await;
    let identity = identity::Entity::find().one(&db).await.unwrap().unwrap().into_active_model();
    let identity = identity::ActiveModel {
        id: NotSet,
        user_id: Set(NASTY.to_owned()),
        provider_id: Set(provider.id),
        ..identity
    };
    identity.insert(&db).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unchecked_rows_are_served_and_their_texts_leave_escaped() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("encryption.accept_format_1", true);
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    spoil_rows(&world).await;

    let (_, body) = raw_reply(&world, BasicProperties::default()).await;
    let body = String::from_utf8(body).unwrap();
    assert_nothing_raw(&body, "a reply");
    let reply: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(token(&reply)["username"], NASTY, "it says the same");
    assert_eq!(token(&reply)["scopes"], json!([NASTY]));
    assert!(
        token(&reply)["userinfo"].as_str().unwrap().starts_with("x%00%1B%5B2J%0D%0Aforged%3D1%7F%C2%9B31m")
    );

    let cli = Cli::of(&world);
    let host = world.scm.host();
    let request = ["request", "--user", "jdoe", "--host", &host];
    assert_escaped(cli.run(&request).await.good(), "`request`");
    let json =
        assert_escaped(cli.run(&[&request[..], &["--json"]].concat()).await.good(), "`request --json`");
    assert_eq!(json.json()["token"]["username"], NASTY);
    let start = ["workspace-start", "--user", "jdoe", "--workspace", "w", &world.scm.clone_url("p", "r")];
    assert_escaped(cli.run(&start).await.good(), "`workspace-start`");
    worker.stop().await;

    add_nasty_names(&world).await;
    for arguments in
        [&["token", "list"][..], &["token", "show", "--user", "jdoe", "--host", &host], &["provider", "list"]]
    {
        let what = format!("`{}`", arguments.join(" "));
        assert_escaped(cli.run(arguments).await.good(), &what);
        let json = cli.run(&[arguments, &["--json"]].concat()).await.good();
        assert!(assert_escaped(json, &format!("{what} with --json")).json().to_string().contains("forged"));
    }
    let list = cli.run(&["token", "list", "--json"]).await.good().json();
    let users: Vec<&Value> = list.as_array().unwrap().iter().map(|one| &one["user_id"]).collect();
    assert!(users.contains(&&json!(NASTY)), "it says the same: {users:?}");
    let missing = ["token", "show", "--user", "\u{9b}31m\u{202e}\u{1b}[2J", "--host", "h\nforged"];
    let missing = cli
        .run(&missing)
        .await
        .with_code(1)
        .says("user \\u009b31m\\u202e\\u001b[2J has no identity at h\\u000aforged");
    assert_nothing_raw(&missing.stderr, "an error");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_log_formats_escape_hostile_texts() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    world.user_with_token("bystander").await;
    worker.stop().await;
    let db = world.connection().await;
    let row = token_entry::Entity::find_by_id(world.entry("jdoe").await.id).one(&db).await.unwrap().unwrap();
    token_entry::ActiveModel { key_id: Set(NASTY.to_owned()), ..row.into_active_model() }
        .update(&db)
        .await
        .unwrap();

    for format in ["human", "json"] {
        world.set("log.format", format);
        let cli = Cli::of(&world);
        let log = cli.folder.path().join("worker.log");
        let stderr = std::fs::File::create(&log).unwrap();
        let mut worker = cli.command(&["worker"]).stdin(Stdio::null()).stderr(stderr).spawn().unwrap();
        world.broker.wait_for_consumer("token-requests").await;
        // The key that its row names is told in the log, and there alone.
        error_message(&world.request("jdoe").await, "internal");
        // A span has what the publisher calls it.
        raw_reply(
            &world,
            BasicProperties::default().with_correlation_id("c\u{1b}[2J\u{9b}31m\u{202e}".into()),
        )
        .await;
        token(&world.request("bystander").await);
        worker.kill().await.unwrap();

        let log = std::fs::read_to_string(&log).unwrap();
        assert!(
            log.contains("\\u009b31m\\u2028\\u202e\\u2066") && log.contains("forged=1"),
            "{format}: {log}"
        );
        assert_nothing_raw(&log, format);
        if format == "json" {
            let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
            let said = lines.iter().any(|line| line.to_string().contains('\u{9b}'));
            assert!(said, "a line says the same: {log}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_shown_with_hostile_texts_escaped() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let nasty = &NASTY[..NASTY.len() - 1];
    let mut headers = FieldTable::default();
    headers.insert(nasty.into(), AMQPValue::Boolean(true));
    headers.insert("traceparent".into(), AMQPValue::LongString(NASTY.into()));
    headers.insert("x-tokenkeeper-nasty".into(), AMQPValue::LongString(NASTY.into()));
    let properties = BasicProperties::default()
        .with_message_id(nasty.into())
        .with_correlation_id(nasty.into())
        .with_app_id(nasty.into())
        .with_type(nasty.into())
        .with_content_type(nasty.into())
        .with_headers(headers);
    let body = json!({"user_id": NASTY, "host": NASTY, "token": {"value": NASTY, "scopes": [NASTY], "username": NASTY}});
    world.broker.publish(TOKEN_STORE, body.to_string(), properties).await;
    eventually("the dead letter", PATIENCE, async || {
        (world.broker.queue_depth("dead-letters").await == 1).then_some(())
    })
    .await;
    worker.stop().await;

    let cli = Cli::of(&world);
    let list = cli.run(&["dead", "list"]).await.good();
    assert_nothing_raw(&list.stdout, "`dead list`");
    let listed = cli.run(&["dead", "list", "--json"]).await.good();
    assert_nothing_raw(&listed.stdout, "`dead list --json`");
    let id = listed.json()[0]["id"].as_str().unwrap().to_owned();
    assert_nothing_raw(&id, "an ID");
    assert_escaped(cli.run(&["dead", "show", &id]).await.good(), "`dead show`");
    let shown = assert_escaped(cli.run(&["dead", "show", &id, "--json"]).await.good(), "`dead show --json`");
    assert_eq!(shown.json()["properties"]["app_id"], nasty, "it says the same");
}
