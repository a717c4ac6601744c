//! What it answers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest, Sha256};
use tokenkeeper::contract::ErrorCode;
use tokenkeeper::domain::clock::{Clock, SystemClock, Timestamp};
use tokenkeeper::domain::sealed_box::SecretKey;
use tokenkeeper::domain::secret::KeyRing;
use tokenkeeper_testkit::queues::{
    BasicProperties, TOKEN_REPORT, TOKEN_REQUEST, TOKEN_STORE, WORKSPACE_START,
};

use super::*;

/// The encryption key of a fake whose settings have none.
const KEY: &str = "k-2020:ICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICA=";

#[allow(clippy::needless_pass_by_value, reason = "a `json!` reads better without an ampersand")]
fn login(user: &str, token: Value) -> Value {
    json!({"user_id": user, "host": HOST, "token": token})
}

fn report(user: &str, token: &str) -> Value {
    let digest = Sha256::digest(token).iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    json!({"user_id": user, "host": HOST, "token_sha256": digest})
}

fn start(user: &str, repositories: &[&str]) -> Value {
    json!({"workspace_id": "ws-1", "user_id": user, "repositories": repositories})
}

#[tokio::test]
async fn a_lifetime_that_nobody_says_is_within_what_the_publisher_may_have() {
    let broker = TestBroker::connect().await;
    let url = url::Url::parse(broker.url()).expect("the broker's URL");
    let user = if url.username().is_empty() { "guest" } else { url.username() };
    let publishers = json!([{
        "amqp_user": user, "messages": ["token.request", "workspace.start"], "hosts": ["*"], "users": ["*"],
        "max_lifetime_secs": 20,
    }]);
    let _fake = Fake::start_with(&broker, &[], &[("TOKENKEEPER__PUBLISHERS", &publishers.to_string())]).await;
    let repositories = ["https://git.example.org/p/r"];
    for (routing_key, body, token) in [
        (TOKEN_REQUEST, request("u-1"), "/token"),
        (WORKSPACE_START, start("u-1", &repositories), "/tokens/0/token"),
    ] {
        let before = SystemClock.now();
        let named = BasicProperties::default().with_user_id(user.into());
        let reply = broker.send(routing_key, body.to_string(), named).await.reply().await.body;
        let token = reply.pointer(token).unwrap_or_else(|| panic!("{reply}"));
        let reserved = token["reserved_until"].as_str().and_then(|date| Timestamp::parse_rfc3339(date).ok());
        let most = before.plus(std::time::Duration::from_secs(20 + PATIENCE.as_secs()));
        assert!(reserved.is_some_and(|reserved| reserved < most), "{reply}");
    }
}

async fn ask(broker: &TestBroker, routing_key: &str, body: Value) -> Value {
    broker.request(routing_key, body).await.body
}

#[tokio::test]
async fn every_code_is_the_answer_to_each_kind_of_message_that_asks_for_it() {
    let broker = TestBroker::connect().await;
    let _fake = Fake::start(&broker, &[]).await;
    for code in ErrorCode::ALL {
        let user = format!("error-{}.u-1", code.name());
        let repositories = ["https://git.example.org/p/r"];
        let token = report(&user, "any");
        for (routing_key, body, error) in [
            (TOKEN_REQUEST, request(&user), "/error"),
            (WORKSPACE_START, start(&user, &repositories), "/tokens/0/error"),
            (TOKEN_STORE, login(&user, json!({"value": "t"})), "/error"),
            (TOKEN_REPORT, token, "/error"),
        ] {
            let reply = ask(&broker, routing_key, body).await;
            let error = reply.pointer(error).unwrap_or_else(|| panic!("{reply}"));
            assert_eq!((&reply["status"], &error["code"]), (&json!("error"), &json!(code.name())));
            assert_eq!(error["retryable"], code.is_retryable());
            assert_eq!(error["retry_after_secs"].is_u64(), code == ErrorCode::ProviderUnavailable);
            assert_eq!(error["reason"].is_string(), code == ErrorCode::ReauthorizationRequired);
        }
    }
}

#[tokio::test]
async fn anybody_else_gets_a_token_that_says_it_is_fake_and_the_same_one_again() {
    let broker = TestBroker::connect().await;
    let _fake = Fake::start(&broker, &[]).await;
    let first = ask(&broker, TOKEN_REQUEST, request("jane.doe")).await;
    assert_eq!(
        (&first["status"], &first["refresh"], &first["warnings"]),
        (&json!("ok"), &json!("none"), &json!([]))
    );
    let value = first["token"]["value"].as_str().unwrap();
    assert!(value.starts_with("fake-not-a-real-token-"), "{first}");
    assert_eq!(first["token"]["userinfo"], format!("fake:{value}"));
    let again = broker.request_direct(TOKEN_REQUEST, request("jane.doe")).await.body;
    assert_eq!(again["token"]["value"], value);
    assert_ne!(ask(&broker, TOKEN_REQUEST, request("john.doe")).await["token"]["value"], value);

    let repositories = ["https://git.example.org/p/r", "git@github.com:o/r.git", "no url"];
    let reply = ask(&broker, WORKSPACE_START, start("jane.doe", &repositories)).await;
    assert_eq!((&reply["status"], &reply["workspace_id"]), (&json!("error"), &json!("ws-1")));
    let hosts: Vec<&Value> = reply["tokens"].as_array().unwrap().iter().map(|token| &token["host"]).collect();
    assert_eq!(hosts, [&json!(HOST), &json!("github.com"), &Value::Null]);
    assert_eq!(reply["tokens"][0]["token"]["value"], value);
    assert_eq!(reply["tokens"][2]["error"]["code"], "invalid_request");
}

#[tokio::test]
async fn words_say_how_long_a_token_lives_and_what_is_said_of_it() {
    let broker = TestBroker::connect().await;
    let _fake = Fake::start(&broker, &[]).await;
    let began = SystemClock.now();
    let reply =
        ask(&broker, TOKEN_REQUEST, request("expires-60s.warning-refresh_failed.refresh-required")).await;
    let date = |name: &str| Timestamp::parse_rfc3339(reply["token"][name].as_str().unwrap()).unwrap();
    let minute = 60_000..=90_000;
    assert!(minute.contains(&(date("expires_at").as_millis() - began.as_millis())), "{reply}");
    // As the contract has it: less than five minutes were not asked for.
    assert_eq!(date("reserved_until"), date("expires_at"));
    assert_eq!(reply["warnings"], json!(["refresh_failed", "lifetime_short"]));
    assert_eq!(reply["refresh"], "required");
    let never = ask(&broker, TOKEN_REQUEST, request("expires-never")).await;
    assert_eq!(never["token"]["expires_at"], Value::Null);
    let held = ask(&broker, TOKEN_REPORT, report("result-held", "any")).await;
    assert_eq!(held, json!({"status": "ok", "result": "held"}));
}

#[tokio::test]
async fn a_stored_pair_is_handed_out_and_reports_are_answered_by_it() {
    let broker = TestBroker::connect().await;
    let _fake = Fake::start(&broker, &[]).await;
    let pair = json!({"value": "stored-1", "username": "jdoe", "scopes": ["repo", "wiki"]});
    assert_eq!(ask(&broker, TOKEN_STORE, login("u-1", pair)).await, json!({"status": "ok"}));
    let token = ask(&broker, TOKEN_REQUEST, request("u-1")).await["token"].clone();
    assert_eq!((&token["value"], &token["userinfo"]), (&json!("stored-1"), &json!("jdoe:stored-1")));
    assert_eq!((&token["scopes"], &token["expires_at"]), (&json!(["repo", "wiki"]), &Value::Null));

    let result = async |user: &str, token: &str| ask(&broker, TOKEN_REPORT, report(user, token)).await;
    assert_eq!(result("u-1", "another").await["result"], "not_current");
    assert_eq!(result("u-1", "stored-1").await["result"], "withdrawn");
    assert_eq!(ask(&broker, TOKEN_REQUEST, request("u-1")).await["error"]["code"], "not_refreshable");

    let pair = json!({"value": "stored-2", "refresh_token": "r"});
    ask(&broker, TOKEN_STORE, login("u-2", pair)).await;
    assert_eq!(result("u-2", "stored-2").await["result"], "refreshed");
    let new = ask(&broker, TOKEN_REQUEST, request("u-2")).await;
    assert!(new["token"]["value"].as_str().unwrap().starts_with("fake-"), "{new}");

    let soon = SystemClock.now().plus(std::time::Duration::from_secs(10)).to_string();
    ask(&broker, TOKEN_STORE, login("u-3", json!({"value": "t", "refresh_token": "r", "expires_at": soon})))
        .await;
    assert_eq!(ask(&broker, TOKEN_REQUEST, request("u-3")).await["refresh"], "required");
    ask(&broker, TOKEN_STORE, login("u-4", json!({"value": "t", "expires_at": soon}))).await;
    assert_eq!(ask(&broker, TOKEN_REQUEST, request("u-4")).await["error"]["code"], "not_refreshable");
}

#[tokio::test]
async fn replies_and_logins_are_sealed_as_ever() {
    let broker = TestBroker::connect().await;
    let fake = Fake::start(&broker, &[]).await;
    let secret = SecretKey::generate();
    let mut body = request("u-1");
    body["reply_public_key"] = secret.public_key().to_string().into();
    let reply = ask(&broker, TOKEN_REQUEST, body.clone()).await;
    let sealed = BASE64.decode(reply["token"]["sealed"].as_str().unwrap()).unwrap();
    let content: Value = serde_json::from_slice(&secret.open(&sealed).unwrap()).unwrap();
    let clear = ask(&broker, TOKEN_REQUEST, request("u-1")).await;
    assert_eq!((&content["value"], &content["user_id"]), (&clear["token"]["value"], &json!("u-1")));
    assert_eq!((&reply["token"]["value"], &reply["token"]["userinfo"]), (&Value::Null, &Value::Null));

    let key = KeyRing::parse(KEY).unwrap().newest().login_public_key();
    assert!(fake.log().contains(&key.to_string()), "it says what to seal logins to: {}", fake.log());
    let mut store = json!({"value": "sealed-1", "username": "jdoe", "expiresAt": "never"});
    store = login("u-2", store);
    let seal = |login: &Value| BASE64.encode(key.seal(login.to_string().as_bytes()));
    let sealed = json!({"user_id": "u-2", "host": HOST, "sealed": seal(&store)});
    let stored = ask(&broker, TOKEN_STORE, sealed).await;
    assert_eq!(stored, json!({"status": "ok", "warnings": ["unknown_field: sealed.token.expiresAt"]}));
    assert_eq!(ask(&broker, TOKEN_REQUEST, request("u-2")).await["token"]["value"], "sealed-1");
    let of_another = json!({"user_id": "u-3", "host": HOST, "sealed": seal(&store)});
    let refused = ask(&broker, TOKEN_STORE, of_another).await;
    assert_eq!(refused["error"]["code"], "invalid_request");
    assert!(refused["error"]["message"].as_str().unwrap().contains("user_id"), "{refused}");
}

#[tokio::test]
async fn what_breaks_the_contract_is_refused_as_a_worker_refuses_it() {
    let broker = TestBroker::connect().await;
    let mut fake = Fake::start(&broker, &[]).await;
    let refused = async |routing_key, body| {
        let reply = ask(&broker, routing_key, body).await;
        assert_eq!(reply["error"]["code"], "invalid_request", "{reply}");
        reply["error"]["message"].as_str().unwrap().to_owned()
    };
    let mut short = request("u-1");
    short["requested_lifetime_secs"] = 0.into();
    assert!(refused(TOKEN_REQUEST, short).await.starts_with("requested_lifetime_secs: "));
    let wrong = refused(TOKEN_REQUEST, request("error-no_such_code")).await;
    for code in ErrorCode::ALL {
        assert!(wrong.contains(code.name()), "{wrong}");
    }
    assert!(!wrong.contains("no_such_code"), "{wrong}");
    refused(WORKSPACE_START, start("slow-fast", &["https://git.example.org/p/r"])).await;

    let misspelled = json!({"user_id": "u-1", "host": HOST, "requestedLifetime": 300});
    let warned = ask(&broker, TOKEN_REQUEST, misspelled).await;
    assert_eq!(warned["warnings"], json!(["unknown_field: requestedLifetime"]));

    // Nobody can be told of these, and they do not come again.
    let body = || request("u-1").to_string();
    broker.publish(TOKEN_REQUEST, body(), BasicProperties::default()).await;
    let to_a_queue_of_ours = BasicProperties::default().with_reply_to(broker.name("token-requests").into());
    broker.publish(TOKEN_REQUEST, body(), to_a_queue_of_ours).await;
    eventually("the messages without an answer to be counted", PATIENCE, async || {
        fake.log().contains("\"count\":2").then_some(())
    })
    .await;
    assert_eq!(fake.end("TERM").await, Some(0));
    assert_eq!(broker.queue_depth("token-requests").await, 0);
    assert!(fake.log().contains("\"unanswerable\":2"), "{}", fake.log());
}
