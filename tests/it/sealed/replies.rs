//! `reply_public_key`: the token of a reply goes to its requester, and to nobody who reads along.

use super::*;
use crate::cli::Cli;

/// Its form in a clone URL looks different.
const TOKEN: &str = "gh/token+0123456789~abcdef";
const IN_A_URL: &str = "gh%2Ftoken%2B0123456789~abcdef";

async fn world_with_token() -> World {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    world.store_pair(&world.scm.authorize_with("jdoe", TOKEN)).await;
    worker.stop().await;
    world
}

fn assert_holds_no_token(reply: &Value) {
    let body = reply.to_string();
    for form in [TOKEN, IN_A_URL] {
        assert!(!body.contains(form), "{body}");
    }
    for name in ["value", "userinfo"] {
        assert!(reply["token"].get(name).is_none(), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_reply_opens_to_the_token_and_holds_it_nowhere_else() {
    let world = world_with_token().await;
    let worker = world.start_worker().await;
    let (key, host) = (SecretKey::generate(), world.scm.host());

    let reply = ask(&world, TOKEN_REQUEST, sealed_request(&world, "jdoe", &key)).await;

    assert_holds_no_token(&reply);
    let expected = json!({
        "user_id": "jdoe", "host": host, "value": TOKEN, "userinfo": format!("x-access-token:{IN_A_URL}"),
    });
    assert_eq!(opened(&key, token(&reply)), expected);
    // What is no secret stands where it always stands.
    let mut in_clear = world.request("jdoe").await;
    assert_eq!(token(&in_clear)["value"], TOKEN, "a bystander that asks for no seal gets none");
    let mut sealed = reply;
    for (reply, names) in [(&mut sealed, &["sealed"][..]), (&mut in_clear, &["value", "userinfo"])] {
        let fields = reply["token"].as_object_mut().unwrap();
        for name in [names, &["reserved_until"]].concat() {
            assert!(fields.remove(name).is_some(), "{name}");
        }
    }
    assert_eq!(sealed, in_clear);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_token_of_a_workspace_start_is_sealed_once_and_errors_are_as_before() {
    let world = world_with_token().await;
    let worker = world.start_worker().await;
    let key = SecretKey::generate();
    let url = world.scm.clone_url("proj", "repo");
    let mut body = json!({
        "workspace_id": "ws-1", "user_id": "jdoe",
        "repositories": [url, "https://unknown.example.org/o/r", "no url", world.scm.clone_url("proj", "another"), url],
    });
    let in_clear = ask(&world, WORKSPACE_START, body.clone()).await;
    body["reply_public_key"] = key.public_key().to_string().into();

    let reply = ask(&world, WORKSPACE_START, body).await;

    let tokens = reply["tokens"].as_array().unwrap();
    assert_eq!(tokens.len(), 3, "one for each host: {reply}");
    assert_holds_no_token(&tokens[0]);
    assert_eq!(opened(&key, token(&tokens[0]))["value"], TOKEN);
    assert_eq!((&tokens[1], &tokens[2]), (&in_clear["tokens"][1], &in_clear["tokens"][2]));
    error_message(&tokens[1], "unknown_host");
    error_message(&tokens[2], "invalid_request");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_reply_is_the_same_with_a_key_and_without() {
    let world = world_with_token().await;
    let worker = world.start_worker().await;
    let sealed = ask(&world, TOKEN_REQUEST, sealed_request(&world, "nobody", &SecretKey::generate())).await;
    error_message(&sealed, "user_not_found");
    assert_eq!(sealed, world.request("nobody").await);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_would_seal_nothing_gets_no_token_and_a_bystander_notices_nothing() {
    let world = world_with_token().await;
    let worker = world.start_worker().await;
    let wrong = [
        (json!(BASE64.encode([0; 32])), "low order"),
        (json!(BASE64.encode([&[1][..], &[0; 31]].concat())), "low order"),
        (json!(BASE64.encode([&[0xec][..], &[0xff; 31]].concat())), "low order"),
        (json!(BASE64.encode([7; 31])), "32 bytes in base64"),
        (json!(BASE64.encode([7; 33])), "32 bytes in base64"),
        (json!("no base64"), "32 bytes in base64"),
        (json!(""), "32 bytes in base64"),
        (json!(7), "must be a string"),
        (Value::Null, "must be"),
    ];
    for (reply_public_key, expected) in &wrong {
        let mut body = world.token_request("jdoe");
        body["reply_public_key"] = reply_public_key.clone();
        let reply = ask(&world, TOKEN_REQUEST, body).await;
        let message = error_message(&reply, "invalid_request");
        assert!(message.starts_with("reply_public_key: ") && message.contains(expected), "{message}");
        assert_eq!(token(&world.request("jdoe").await)["value"], TOKEN, "a bystander");
    }
    assert_eq!(world.broker.wait_for_dead_letters(wrong.len()).await.len(), wrong.len());
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_replies_must_be_sealed_no_token_goes_out_in_clear() {
    let mut world = world_with_token().await;
    let worker = world.set("access.require_sealed_replies", true).start_worker().await;
    let key = SecretKey::generate();

    let reply = world.request("jdoe").await;
    let message = error_message(&reply, "forbidden");
    assert!(
        message.contains("reply_public_key") && message.contains("access.require_sealed_replies"),
        "{message}"
    );
    let start =
        json!({"workspace_id": "w", "user_id": "jdoe", "repositories": [world.scm.clone_url("p", "r")]});
    let reply = ask(&world, WORKSPACE_START, start).await;
    assert!(error_message(&reply, "forbidden").contains("reply_public_key"), "{reply}");

    let reply = ask(&world, TOKEN_REQUEST, sealed_request(&world, "jdoe", &key)).await;
    assert_eq!(opened(&key, token(&reply))["value"], TOKEN);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_asks_for_a_sealed_reply_and_opens_it() {
    let mut world = world_with_token().await;
    let worker = world.set("access.require_sealed_replies", true).start_worker().await;
    let (cli, host) = (Cli::of(&world), world.scm.host());
    let request = ["request", "--user", "jdoe", "--host", &host];
    let url = world.scm.clone_url("proj", "repo");
    let start = ["workspace-start", "--user", "jdoe", "--workspace", "ws-1", &url];

    assert_eq!(cli.run(&request).await.with_code(1).value("error"), "forbidden");
    let sealed = [&request[..], &["--sealed"]].concat();
    cli.run(&sealed).await.good().keeps_secrets_of(&world);
    let shown = cli.run(&[&sealed[..], &["--show-token"]].concat()).await.good();
    assert_eq!(
        (shown.value("token"), shown.value("userinfo")),
        (TOKEN, &*format!("x-access-token:{IN_A_URL}"))
    );
    let json = cli.run(&[&sealed[..], &["--json"]].concat()).await.good().json();
    assert_eq!((&json["token"]["value"], json["token"].get("sealed")), (&json!(TOKEN), None));

    let json = cli.run(&[&start[..], &["--sealed", "--json"]].concat()).await.good().json();
    assert_eq!(json["tokens"][0]["token"]["value"], TOKEN);
    let unknown = cli.run(&["request", "--sealed", "--user", "nobody", "--host", &host]).await.with_code(1);
    assert_eq!(unknown.value("error"), "user_not_found");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_audit_log_says_which_tokens_the_broker_could_not_read_and_nothing_more() {
    let mut world = world_with_token().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.jsonl");
    let worker = world.set("audit.to", "file").set("audit.file", file.display()).spawn_worker().await;
    let key = SecretKey::generate();

    token(&world.request("jdoe").await);
    token(&ask(&world, TOKEN_REQUEST, sealed_request(&world, "jdoe", &key)).await);
    worker.stop(&world).await;

    let text = std::fs::read_to_string(&file).unwrap();
    let sealed: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line["event"] == "token_handed_out")
        .map(|line| line["sealed"].clone())
        .collect();
    assert_eq!(sealed, [false, true]);
    let key = key.public_key().to_string();
    assert!(!text.contains(TOKEN) && !text.contains(&key), "{text}");
}
