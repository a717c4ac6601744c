//! Fields that the contract does not know: the message is served, and its requester told.

use serde_json::{Value, json};
use tokenkeeper_testkit::queues::{TOKEN_REPORT, TOKEN_REQUEST, TOKEN_STORE, WORKSPACE_START};

use crate::harness::reply::{error_message, token};
use crate::harness::{Dialect, Kind, World};

async fn ask(world: &World, routing_key: &str, body: Value) -> Value {
    world.broker.request(routing_key, body).await.body
}

fn unknown<const N: usize>(names: [&str; N]) -> Value {
    names.map(|name| format!("unknown_field: {name}")).into_iter().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_misspelled_field_is_named_in_the_reply_to_a_message_of_any_kind() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.spawn_worker().await;
    let host = world.scm.host();
    let pair = world.scm.authorize("jdoe");

    let login = json!({"user_id": "jdoe", "host": host, "authId": "j",
        "token": {"value": pair.access_token, "refreshToken": pair.refresh_token}});
    let stored = ask(&world, TOKEN_STORE, login).await;
    assert_eq!(stored, json!({"status": "ok", "warnings": unknown(["authId", "token.refreshToken"])}));

    let request = json!({"user_id": "jdoe", "host": host, "requestedLifetimeSecs": 60, "zone": {"x": [1]}});
    let served = ask(&world, TOKEN_REQUEST, request).await;
    assert_eq!(token(&served)["value"], pair.access_token.as_str());
    assert_eq!(served["warnings"], unknown(["requestedLifetimeSecs", "zone"]));

    let start = json!({"workspace_id": "ws-1", "user_id": "jdoe", "lifetime": 60,
        "repositories": [world.scm.clone_url("proj", "repo")]});
    let started = ask(&world, WORKSPACE_START, start).await;
    token(&started["tokens"][0]);
    assert_eq!(
        (&started["warnings"], &started["tokens"][0]["warnings"]),
        (&unknown(["lifetime"]), &json!([]))
    );

    let report = json!({"user_id": "jdoe", "host": host, "token_sha256": "0".repeat(64), "why": "401"});
    let reported = ask(&world, TOKEN_REPORT, report).await;
    assert_eq!(reported, json!({"status": "ok", "result": "not_current", "warnings": unknown(["why"])}));

    // Also where there is an error, and above all where the misspelling is the reason for it.
    let refused = ask(&world, TOKEN_REQUEST, json!({"user_id": "nobody", "host": host, "x": 1})).await;
    error_message(&refused, "user_not_found");
    assert_eq!(refused["warnings"], unknown(["x"]));
    let wrong = ask(&world, TOKEN_REQUEST, json!({"user_id": "jdoe", "Host": host})).await;
    error_message(&wrong, "invalid_request");
    assert_eq!(wrong["warnings"], unknown(["Host"]));

    let clean = ask(&world, TOKEN_STORE, world.scm.token_store_body(&world.scm.authorize("jdoe"))).await;
    assert_eq!(clean, json!({"status": "ok"}));
    for (kind, count) in [(TOKEN_REQUEST, 3), (WORKSPACE_START, 1), (TOKEN_STORE, 1), (TOKEN_REPORT, 1)] {
        let series = format!(r#"tokenkeeper_unknown_fields_total{{type="{kind}"}}"#);
        assert_eq!(worker.count(&series).await, count, "{kind}");
    }
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_publisher_gets_more_than_a_few_short_and_printable_names_into_a_reply() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.spawn_worker().await;
    world.user_with_token("jdoe").await;
    world.user_with_token("bystander").await;
    let mut body = world.token_request("jdoe");
    let fields = body.as_object_mut().unwrap();
    fields.insert("\u{1b}[2J\u{202e}".into(), json!(1));
    fields.insert("gho_0123456789abcdef0123456789abcdef0123".into(), json!("s3cret-value"));
    fields.extend((0..3_000).map(|number| (format!("x{number}"), json!({"y": number}))));

    let (served, bystander) = tokio::join!(ask(&world, TOKEN_REQUEST, body), world.request("bystander"));

    token(&served);
    token(&bystander);
    let warnings = served["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 4, "{served}");
    for warning in warnings {
        let warning = warning.as_str().unwrap();
        assert!(warning.len() <= 60 && !warning.contains(char::is_control), "{warning:?}");
    }
    let said = served["warnings"].to_string();
    assert!(!said.contains("89abcdef") && !said.contains("s3cret"), "{said}");
    worker.stop(&world).await;
}
