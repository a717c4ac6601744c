//! Messages that break the contract: an `invalid_request` that names the field, and a dead letter with the message as
//! it came. Nothing is lost, nobody is disturbed, and a token in the wrong place is told nobody.

use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use tokenkeeper::broker::dead_letters;
use tokenkeeper_testkit::queues::{BasicProperties, DeadLetter, TOKEN_REQUEST, TOKEN_STORE, WORKSPACE_START};

use crate::harness::logs::captured;
use crate::harness::reply::{error_message, token};
use crate::harness::{Dialect, Kind, World};

const USER: &str = "jdoe";
const HOST: &str = "git.example.org";
const WORKSPACE: &str = "ws-1";
/// A secret where none belongs.
const MISPLACED: &str = "s3cret-in-the-wrong-place";

/// A message that breaks the contract.
struct Malformed {
    routing_key: &'static str,
    body: Vec<u8>,
    /// What the error has to name.
    names: &'static str,
    /// What the reply repeats of the message.
    echo: &'static [&'static str],
}

const ALL: &[&str] = &["user_id", "host"];
const ALL_OF_START: &[&str] = &["user_id", "workspace_id"];

fn raw(routing_key: &'static str, names: &'static str, body: impl Into<Vec<u8>>) -> Malformed {
    Malformed { routing_key, body: body.into(), names, echo: &[] }
}

fn request(names: &'static str, change: Value) -> Malformed {
    let body = merged(json!({"user_id": USER, "host": HOST}), change);
    Malformed { echo: ALL, ..raw(TOKEN_REQUEST, names, body) }
}

fn start(names: &'static str, change: Value) -> Malformed {
    let repository = format!("https://{HOST}/scm/proj/repo.git");
    let good = json!({"workspace_id": WORKSPACE, "user_id": USER, "repositories": [repository]});
    Malformed { echo: ALL_OF_START, ..raw(WORKSPACE_START, names, merged(good, change)) }
}

fn store(names: &'static str, change: Value) -> Malformed {
    let good = json!({"user_id": USER, "host": HOST, "token": {"value": MISPLACED}});
    Malformed { echo: ALL, ..raw(TOKEN_STORE, names, merged(good, change)) }
}

/// A `token.store` with this changed in its pair.
fn pair(names: &'static str, change: Value) -> Malformed {
    let mut pair = json!({"value": MISPLACED});
    merge(&mut pair, change);
    store(names, json!({"token": pair}))
}

impl Malformed {
    fn echoing(self, echo: &'static [&'static str]) -> Self {
        Self { echo, ..self }
    }

    /// As a failure shows it.
    fn shown(&self) -> String {
        let body: String = String::from_utf8_lossy(&self.body).chars().take(120).collect();
        format!("{} {body}", self.routing_key)
    }
}

/// `null` takes a field away; a field that shall be null is given as the text `null`.
fn merge(good: &mut Value, change: Value) {
    let Value::Object(change) = change else { panic!("the change of a body is an object") };
    for (field, value) in change {
        match value {
            Value::Null => drop(good.as_object_mut().expect("an object").remove(&field)),
            value if value == "null" => good[field] = Value::Null,
            value => good[field] = value,
        }
    }
}

fn merged(mut good: Value, change: Value) -> Vec<u8> {
    merge(&mut good, change);
    good.to_string().into_bytes()
}

fn nested(depth: usize) -> String {
    "[".repeat(depth) + &"]".repeat(depth)
}

fn not_even_an_object() -> Vec<Malformed> {
    let open = format!(r#"{{"user_id":"{USER}","host":"{HOST}""#);
    let mut malformed = vec![
        raw(TOKEN_REQUEST, "the body", ""),
        raw(TOKEN_REQUEST, "the body", MISPLACED),
        raw(TOKEN_REQUEST, "the body", open.clone()),
        raw(TOKEN_REQUEST, "the body", format!("{open}}} {MISPLACED}")),
        raw(TOKEN_REQUEST, "the body", format!("{open},}}")),
        raw(TOKEN_REQUEST, "the body", format!("\u{feff}{open}}}")),
        raw(TOKEN_REQUEST, "the body", r#"{"user_id":"\ud800","host":"git.example.org"}"#),
        raw(TOKEN_REQUEST, "the body", [open.as_bytes(), b",\"x\":", &[b'['; 200]].concat()),
        raw(TOKEN_REQUEST, "the body", vec![0_u8; 64]),
        raw(TOKEN_REQUEST, "UTF-8", b"{\"user_id\":\"\xff\xfe\",\"host\":\"git.example.org\"}".as_slice()),
        raw(TOKEN_REQUEST, "UTF-8", [open.as_bytes(), b",\"x\":\"\xc3\"}"].concat()),
        raw(TOKEN_REQUEST, "65536", format!("{open},\"x\":\"{}\"}}", "y".repeat(64 * 1024 - open.len() - 7))),
        raw(TOKEN_STORE, "the body", format!("{{\"token\":{{\"value\":\"{MISPLACED}")),
    ];
    for routing_key in [TOKEN_REQUEST, WORKSPACE_START, TOKEN_STORE] {
        let others = [json!([USER, HOST, MISPLACED]), json!(MISPLACED), json!(300), json!(null), json!(true)];
        malformed.extend(others.map(|body| raw(routing_key, "object", body.to_string())));
    }
    malformed
}

fn wrong_token_requests() -> Vec<Malformed> {
    let lifetime =
        |value: Value| request("requested_lifetime_secs", json!({"requested_lifetime_secs": value}));
    let twice = |field: &str| {
        format!(
            r#"{{"user_id":"{USER}","host":"{HOST}","requested_lifetime_secs":5,"{field}":["{MISPLACED}"]}}"#
        )
    };
    vec![
        request("user_id", json!({"user_id": null})).echoing(&["host"]),
        request("user_id", json!({"user_id": "null"})).echoing(&["host"]),
        request("user_id", json!({"user_id": 7})).echoing(&["host"]),
        request("user_id", json!({"user_id": {"id": MISPLACED}})).echoing(&["host"]),
        request("user_id", json!({"user_id": ""})).echoing(&["host"]),
        request("user_id", json!({"user_id": "u".repeat(256)})).echoing(&["host"]),
        request("user_id", json!({"user_id": format!("{MISPLACED}\n")})).echoing(&["host"]),
        request("user_id", json!({"user_id": "nul\u{0}"})).echoing(&["host"]),
        request("user_id", json!({"user_id": serde_json::from_str::<Value>(&nested(100)).unwrap()}))
            .echoing(&["host"]),
        raw(TOKEN_REQUEST, "user_id", format!(r#"{{"user_id":{},"host":"{HOST}"}}"#, nested(5000))),
        request("host", json!({"host": null})).echoing(&["user_id"]),
        request("host", json!({"host": [MISPLACED]})).echoing(&["user_id"]),
        request("host", json!({"host": ""})).echoing(&["user_id"]),
        request("host", json!({"host": "h".repeat(256)})).echoing(&["user_id"]),
        request("host", json!({"host": "https://git.example.org/"})).echoing(&["user_id"]),
        request("host", json!({"host": "git.example.org /"})).echoing(&["user_id"]),
        request("host", json!({"host": format!("jdoe:{MISPLACED}@git.example.org")})).echoing(&["user_id"]),
        lifetime(json!(0)),
        lifetime(json!(-1)),
        lifetime(json!(86_401)),
        lifetime(json!(1.5)),
        lifetime(json!("300")),
        lifetime(json!(MISPLACED)),
        lifetime(json!(u64::MAX)),
        lifetime(json!([300])),
        lifetime(json!(true)),
        raw(TOKEN_REQUEST, "requested_lifetime_secs", twice("requested_lifetime_secs")).echoing(ALL),
        raw(TOKEN_REQUEST, "host", twice("host")).echoing(&["user_id"]),
    ]
}

fn wrong_workspace_starts() -> Vec<Malformed> {
    let repositories = |value: Value| start("repositories", json!({"repositories": value}));
    let many: Vec<String> = (0..17).map(|number| format!("https://{HOST}/p/{number}.git")).collect();
    vec![
        start("workspace_id", json!({"workspace_id": null})).echoing(&["user_id"]),
        start("workspace_id", json!({"workspace_id": 1})).echoing(&["user_id"]),
        start("user_id", json!({"user_id": null})).echoing(&["workspace_id"]),
        start("requested_lifetime_secs", json!({"requested_lifetime_secs": "10m"})),
        repositories(json!(null)),
        repositories(json!([])),
        repositories(json!(many)),
        repositories(json!(format!("https://{HOST}/p/r.git"))),
        repositories(json!([7])),
        repositories(json!([format!("https://{HOST}/p/r.git"), [MISPLACED]])),
    ]
}

fn wrong_token_stores() -> Vec<Malformed> {
    vec![
        store("user_id", json!({"user_id": null})).echoing(&["host"]),
        store("host", json!({"host": null})).echoing(&["user_id"]),
        store("auth_id", json!({"auth_id": ""})),
        store("auth_name", json!({"auth_name": {"name": MISPLACED}})),
        store("token", json!({"token": null})),
        store("token", json!({"token": MISPLACED})),
        store("token", json!({"token": [MISPLACED, MISPLACED]})),
        pair("value", json!({"value": null})),
        pair("token.value", json!({"value": ""})),
        pair("token.value", json!({"value": [MISPLACED]})),
        pair("token.value", json!({"value": format!("{MISPLACED}é")})),
        pair("token.value", json!({"value": format!("{MISPLACED}\n")})),
        pair("token.value", json!({"value": MISPLACED.repeat(1_600)})),
        pair("token.refresh_token", json!({"refresh_token": ""})),
        pair("token.refresh_token", json!({"refresh_token": {"value": MISPLACED}})),
        pair("token.username", json!({"username": "u".repeat(256)})),
        pair("token.scopes", json!({"scopes": MISPLACED})),
        pair("token.scopes[1]", json!({"scopes": ["repo", 7]})),
        pair("token.expires_at", json!({"expires_at": "tomorrow"})),
        pair("token.expires_at", json!({"expires_at": MISPLACED})),
        pair("token.expires_at", json!({"expires_at": 1_577_840_700_000_i64})),
        pair("token.expires_at", json!({"expires_at": "2020-02-30T00:00:00Z"})),
        pair("token.expires_at", json!({"expires_at": "2020-01-01T00:00:00"})),
        pair("token.refresh_token_expires_at", json!({"refresh_token_expires_at": "2020-01-01"})),
    ]
}

fn all() -> Vec<Malformed> {
    [not_even_an_object(), wrong_token_requests(), wrong_workspace_starts(), wrong_token_stores()]
        .into_iter()
        .flatten()
        .collect()
}

fn header(letter: &DeadLetter, name: &str) -> Option<String> {
    match letter.headers.inner().get(name)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        other => panic!("the header {name} is no text: {other:?}"),
    }
}

/// Every header that is a text; `Debug` shows those as numbers.
fn texts(letter: &DeadLetter) -> Vec<String> {
    let text = |value: &AMQPValue| match value {
        AMQPValue::LongString(text) => Some(text.to_string()),
        _ => None,
    };
    letter.headers.inner().values().filter_map(text).collect()
}

fn letter_of<'a>(letters: &'a [DeadLetter], correlation_id: &str) -> &'a DeadLetter {
    let of_message: Vec<_> = letters
        .iter()
        .filter(|letter| {
            letter.properties.correlation_id().as_ref().is_some_and(|id| id.as_str() == correlation_id)
        })
        .collect();
    assert_eq!(of_message.len(), 1, "one dead letter a message");
    of_message[0]
}

#[tokio::test]
async fn each_malformed_message_is_refused_by_field_name_and_dead_lettered_unchanged() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let keys = world.settings().key_ring().unwrap();
    let malformed = all();
    let mut sent = Vec::new();
    for message in &malformed {
        sent.push(world.broker.send(message.routing_key, &message.body, BasicProperties::default()).await);
    }

    let letters = world.broker.wait_for_dead_letters(malformed.len()).await;

    assert_eq!(letters.len(), malformed.len());
    for (message, pending) in malformed.iter().zip(sent) {
        let letter = letter_of(&letters, pending.correlation_id());
        let reply = pending.reply().await.body;
        let told = error_message(&reply, "invalid_request");
        assert!(told.contains(message.names), "{}: {told}", message.shown());
        for (field, value) in [("user_id", USER), ("host", HOST), ("workspace_id", WORKSPACE)] {
            if message.echo.contains(&field) {
                assert_eq!(reply[field], value, "{}", message.shown());
            }
        }
        let properties = letter.properties.clone().with_headers(letter.headers.clone());
        let opened = dead_letters::open(Some(&keys), &letter.routing_key, &properties, &letter.body).unwrap();
        assert_eq!(opened, message.body, "{}", message.shown());
        if message.routing_key == TOKEN_STORE {
            let shows = letter.body.windows(MISPLACED.len()).any(|word| word == MISPLACED.as_bytes());
            assert!(!shows, "{}: a token in clear", message.shown());
        }
        assert_eq!(header(letter, "x-tokenkeeper-reason").as_deref(), Some("invalid_request"));
        assert_eq!(header(letter, "x-tokenkeeper-detail").as_deref(), Some(told));
        let public = format!("{reply} {:?} {:?}", texts(letter), letter.properties);
        assert!(!public.contains(MISPLACED), "{}: {public}", message.shown());
    }
    assert!(world.broker.stray_replies().is_empty(), "one reply a message");
    let log = captured();
    assert!(log.contains("message moved to the dead letters"), "the log is captured");
    assert!(!log.contains(MISPLACED), "a misplaced secret is in the log");

    world.user_with_token(USER).await;
    assert_eq!(world.request(USER).await["refresh"], "none", "a good request is served as ever");
    worker.stop().await;
}

#[test]
fn there_are_at_least_twenty_five_kinds_over_the_three_routing_keys() {
    let malformed = all();
    for routing_key in [TOKEN_REQUEST, WORKSPACE_START, TOKEN_STORE] {
        let count = malformed.iter().filter(|message| message.routing_key == routing_key).count();
        assert!(count >= 10, "{count} of {routing_key}");
    }
    assert!(malformed.len() >= 25);
}

#[tokio::test]
async fn messages_just_within_the_limits_are_accepted() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let ask = async |routing_key, body: String| {
        world.broker.send(routing_key, body, BasicProperties::default()).await.reply().await.body
    };
    world.user_with_token(USER).await;
    let host = world.scm.host();
    let store = |user: &str, value: &str| {
        json!({"user_id": user, "host": host, "token": {"value": value}}).to_string()
    };

    for lifetime in [json!(1), json!(86_400), Value::Null] {
        let body = json!({"user_id": USER, "host": host, "requested_lifetime_secs": lifetime, "later": [{}]});
        token(&ask(TOKEN_REQUEST, body.to_string()).await);
    }
    let longest_user = "ü".repeat(255);
    assert_eq!(ask(TOKEN_STORE, store(&longest_user, &"t".repeat(32 * 1024))).await, json!({"status": "ok"}));
    token(&ask(TOKEN_REQUEST, json!({"user_id": longest_user, "host": host}).to_string()).await);
    let open = json!({"user_id": USER, "host": host}).to_string().replace('}', ",\"x\":\"");
    let largest = format!("{open}{}\"}}", "y".repeat(64 * 1024 - open.len() - 2));
    assert_eq!(largest.len(), 64 * 1024);
    token(&ask(TOKEN_REQUEST, largest).await);
    let repositories: Vec<_> = (0..16).map(|number| format!("http://{host}/scm/p/{number}.git")).collect();
    let start = json!({"workspace_id": "w", "user_id": USER, "repositories": repositories});
    assert_eq!(ask(WORKSPACE_START, start.to_string()).await["status"], "ok");
    let deep = format!(r#"{{"user_id":"{USER}","host":"{host}","x":{}}}"#, nested(20_000));
    token(&ask(TOKEN_REQUEST, deep).await);

    assert!(world.broker.dead_letters().await.is_empty());
    worker.stop().await;
}

#[tokio::test]
async fn a_dead_letter_keeps_the_properties_that_its_message_came_with() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let mut headers = FieldTable::default();
    headers.insert(
        "traceparent".into(),
        AMQPValue::LongString("00-11111111111111111111111111111111-2222222222222222-01".into()),
    );
    headers.insert("x-upstream".into(), AMQPValue::LongInt(7));
    let publisher = world.publisher();
    let properties = BasicProperties::default()
        .with_correlation_id("c-1".into())
        .with_message_id("m-1".into())
        .with_reply_to(world.broker.reply_queue().into())
        .with_content_type("application/json".into())
        .with_content_encoding("utf-8".into())
        .with_type("token.request".into())
        .with_app_id("server".into())
        .with_user_id(publisher.as_str().into())
        .with_expiration("60000".into())
        .with_headers(headers);
    world.broker.publish(TOKEN_REQUEST, "{}", properties.clone()).await;

    let letters = world.broker.wait_for_dead_letters(1).await;

    let letter = &letters[0];
    let kept = &letter.properties;
    assert_eq!(kept.correlation_id(), properties.correlation_id());
    assert_eq!(kept.message_id(), properties.message_id());
    assert_eq!(kept.reply_to(), properties.reply_to());
    assert_eq!(kept.content_type(), properties.content_type());
    assert_eq!(kept.content_encoding(), properties.content_encoding());
    assert_eq!(kept.kind(), properties.kind());
    assert_eq!(kept.app_id(), properties.app_id());
    assert_eq!(letter.headers.inner().get("x-upstream"), Some(&AMQPValue::LongInt(7)));
    assert!(header(letter, "traceparent").is_some());
    assert_eq!(header(letter, "x-tokenkeeper-publisher"), Some(publisher), "the broker had checked it");
    assert_eq!(kept.expiration(), &None, "it must still be there when somebody looks");
    assert_eq!(*kept.delivery_mode(), Some(2), "and after a restart of the broker");
    worker.stop().await;
}
