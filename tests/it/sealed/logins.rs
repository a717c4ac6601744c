//! `token.store` with `sealed`: a login that the broker cannot read, and that counts for its own user and host alone.

use secrecy::ExposeSecret;
use tokenkeeper::domain::secret::KeyRing;

use super::*;
use crate::cli::Cli;
use crate::harness::WorkerProcess;

fn ring(world: &World) -> KeyRing {
    KeyRing::parse(&world.keys).unwrap()
}

fn sealed_to(ring: &KeyRing, content: &Value) -> String {
    BASE64.encode(ring.keys()[0].login_public_key().seal(content.to_string().as_bytes()))
}

/// The message that seals this login.
fn sealed_login(world: &World, login: &Value) -> Value {
    json!({"user_id": login["user_id"], "host": login["host"], "sealed": sealed_to(&ring(world), login)})
}

async fn refused(world: &World, body: Value) -> String {
    error_message(&ask(world, TOKEN_STORE, body).await, "invalid_request").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_login_is_stored_as_one_in_clear_is() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let pair = world.scm.authorize("jdoe");
    let body = sealed_login(&world, &world.scm.token_store_body(&pair));
    for secret in [&pair.access_token, &pair.refresh_token] {
        assert!(!body.to_string().contains(secret.as_str()), "{body}");
    }

    assert_eq!(ask(&world, TOKEN_STORE, body.clone()).await, json!({"status": "ok"}));

    assert_eq!(token(&world.request("jdoe").await)["value"], pair.access_token.as_str());
    let generation = world.entry("jdoe").await.generation;
    // In another box it is the same login.
    for body in
        [body, sealed_login(&world, &world.scm.token_store_body(&pair)), world.scm.token_store_body(&pair)]
    {
        assert_eq!(ask(&world, TOKEN_STORE, body).await, json!({"status": "ok"}));
    }
    assert_eq!(world.entry("jdoe").await.generation, generation, "a repeated login stores nothing");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_login_counts_for_nobody_else_and_nowhere_else() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let victim = world.user_with_token("victim").await;
    let mut body = sealed_login(&world, &world.scm.token_store_body(&world.scm.authorize("mallory")));

    body["user_id"] = "victim".into();
    assert_eq!(refused(&world, body.clone()).await, "sealed: its user_id is not that of the message");
    body["user_id"] = "mallory".into();
    body["host"] = "git.example.org".into();
    assert_eq!(refused(&world, body).await, "sealed: its host is not that of the message");

    assert_eq!(token(&world.request("victim").await)["value"], victim.access_token.as_str());
    error_message(&world.request("mallory").await, "user_not_found");
    let letters = world.broker.wait_for_dead_letters(2).await;
    assert_eq!(letters.len(), 2, "nothing is lost");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_sealed_login_is_told_without_its_content() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let good = world.scm.token_store_body(&world.scm.authorize("jdoe"));
    let host = world.scm.host();
    let sealing = |content: &Value| json!({"user_id": "jdoe", "host": host, "sealed": sealed_to(&ring(&world), content)});
    let with = |name: &str, value: Value| {
        let mut body = sealed_login(&world, &good);
        body[name] = value;
        body
    };
    let mut wrong_pair = good.clone();
    wrong_pair["token"]["value"] = "s3cret with blanks".into();
    let other_ring = KeyRing::parse(KeyRing::generate("test").expose_secret()).unwrap();
    for (body, expected) in [
        (with("token", good["token"].clone()), "token: stands in `sealed`"),
        (with("auth_id", json!("j")), "auth_id and auth_name: stand in `sealed`"),
        (with("sealed", json!("s3cret!")), "sealed: must be a sealed box"),
        (with("sealed", json!(BASE64.encode([1; 48]))), "sealed: must be a sealed box"),
        (with("sealed", json!(BASE64.encode([1; 4000]))), "sealed: no key of this worker opens it"),
        (with("sealed", json!(sealed_to(&other_ring, &good))), "sealed: no key of this worker opens it"),
        (with("key_id", json!("other")), "sealed: this worker does not have the key that `key_id` names"),
        (with("key_id", json!("a b")), "key_id: must be 1 to 64 letters"),
        (sealing(&wrong_pair), "sealed: its content is no token.store: token.value: must be printable ASCII"),
        (sealing(&sealed_login(&world, &good)), "sealed: its content is sealed again"),
        (sealing(&json!({"status": "ok"})), "sealed: its content is no token.store: status"),
        (
            sealing(&json!(["s3cret"])),
            "sealed: its content is no token.store: the body must be a JSON object",
        ),
    ] {
        let message = refused(&world, body).await;
        assert!(message.starts_with(expected) && !message.contains("s3cret"), "{message}");
    }
    error_message(&world.request("jdoe").await, "user_not_found");

    // A misspelled refresh token makes a token that is never refreshed, whether it is sealed or not.
    let mut misspelled = good.clone();
    misspelled["token"]["refreshToken"] = "r".into();
    let mut body = sealing(&misspelled);
    body["authId"] = 1.into();
    let reply = ask(&world, TOKEN_STORE, body).await;
    let mut warnings: Vec<&str> =
        reply["warnings"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    warnings.sort_unstable();
    assert_eq!(warnings, ["unknown_field: authId", "unknown_field: sealed.token.refreshToken"]);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_sealed_to_the_old_key_opens_until_that_key_is_dropped() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let new = KeyRing::generate("new").expose_secret().to_owned();
    let both = format!("{new},{}", world.keys);
    let new_ring = KeyRing::parse(&new).unwrap();
    let public = |keys: &str| Cli::of(&world).set("TOKENKEEPER_KEYS", keys);
    let printed = public(&both).run(&["keys", "public", "--json"]).await.good().keeps_secrets_of(&world);
    let expected = json!({"key_id": "new", "public_key": new_ring.keys()[0].login_public_key().to_string()});
    assert_eq!(printed.json(), expected);
    printed.says("once every worker has its key");
    let printed = public(&world.keys).run(&["keys", "public"]).await.good();
    assert_eq!(printed.stdout.trim(), ring(&world).keys()[0].login_public_key().to_string());
    assert!(printed.stderr.is_empty(), "{printed:?}");

    let worker = WorkerProcess::spawn_with_keys(&world, &both).await;
    for (user, key_id) in [("one", None), ("two", Some("test"))] {
        let mut body = sealed_login(&world, &world.scm.token_store_body(&world.scm.authorize(user)));
        body["key_id"] = json!(key_id);
        assert_eq!(ask(&world, TOKEN_STORE, body).await, json!({"status": "ok"}), "sealed to the old key");
    }
    let three = world.scm.token_store_body(&world.scm.authorize("three"));
    let mut body = sealed_login(&world, &three);
    body["sealed"] = sealed_to(&new_ring, &three).into();
    assert_eq!(ask(&world, TOKEN_STORE, body).await, json!({"status": "ok"}), "sealed to the new key");
    worker.stop(&world).await;

    let rotated = public(&both).run(&["keys", "rotate"]).await;
    assert_eq!(rotated.code, 0, "{rotated:?}");
    let worker = WorkerProcess::spawn_with_keys(&world, &new).await;
    let late = sealed_login(&world, &world.scm.token_store_body(&world.scm.authorize("four")));
    assert!(refused(&world, late).await.contains("`tokenkeeper keys public` prints the key"));
    assert_eq!(
        token(&world.request("one").await)["value"],
        world.scm.latest_pair("one").unwrap().access_token.as_str()
    );
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_logins_must_be_sealed_one_in_clear_is_not_stored() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.set("access.require_sealed_stores", true).start_worker().await;
    let good = world.scm.token_store_body(&world.scm.authorize("jdoe"));

    let reply = ask(&world, TOKEN_STORE, good.clone()).await;
    let message = error_message(&reply, "forbidden");
    assert!(message.starts_with("sealed: ") && message.contains("access.require_sealed_stores"), "{message}");
    error_message(&world.request("jdoe").await, "user_not_found");

    assert_eq!(ask(&world, TOKEN_STORE, sealed_login(&world, &good)).await, json!({"status": "ok"}));
    token(&world.request("jdoe").await);
    worker.stop().await;
}
