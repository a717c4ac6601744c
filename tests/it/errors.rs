//! The error codes of the contract, in the order in which they are checked.

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokenkeeper_testkit::proxy::FaultProxy;
use tokenkeeper_testkit::queues::{BasicProperties, TOKEN_REQUEST, TOKEN_STORE};
use tokenkeeper_testkit::scm::SimulatedScm;

use crate::harness::{Dialect, Kind, World, on_every_database};

async fn ask(world: &World, body: Value) -> Value {
    world.broker.request(TOKEN_REQUEST, body).await.body
}

fn assert_refused(reply: &Value, code: &str, retryable: bool) {
    assert_eq!(reply["status"], "error", "{reply}");
    assert_eq!(reply["error"]["code"], code, "{reply}");
    assert_eq!(reply["error"]["retryable"], retryable, "{reply}");
    assert!(reply["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{reply}");
}

on_every_database! {
    async fn what_is_not_there_is_told_from_the_outside_in(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let elsewhere = SimulatedScm::start_as(Dialect::GitLab).await;
        world.apply(&elsewhere, |_| {}).await;
        let worker = world.start_worker().await;
        let host = world.scm.host();
        world.user_with_token("jdoe").await;

        let nobody_nowhere = ask(&world, json!({"user_id": "nobody", "host": "nowhere.example.org"})).await;
        assert_refused(&nobody_nowhere, "unknown_host", false);
        assert_eq!(nobody_nowhere["user_id"], "nobody");
        assert_eq!(nobody_nowhere["host"], "nowhere.example.org");
        let nobody = ask(&world, json!({"user_id": "nobody", "host": host})).await;
        assert_refused(&nobody, "user_not_found", false);
        let not_here = ask(&world, json!({"user_id": "jdoe", "host": elsewhere.host()})).await;
        assert_refused(&not_here, "identity_not_found", false);
        let malformed = ask(&world, json!({"user_id": "nobody", "host": "nowhere", "requested_lifetime_secs": 0})).await;
        assert_refused(&malformed, "invalid_request", false);
        assert!(malformed["error"].get("retry_after_secs").is_none(), "what does not apply is left out");
        worker.stop().await;
    }
}

#[tokio::test]
async fn an_identity_without_a_token_is_told_so() {
    use sea_orm::{ConnectionTrait, DatabaseBackend, Statement};
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    let removed = Statement::from_string(DatabaseBackend::Sqlite, "DELETE FROM token_entry");
    world.connection().await.execute_raw(removed).await.unwrap();
    assert_refused(&world.request("jdoe").await, "token_not_found", false);
    worker.stop().await;
}

#[tokio::test]
async fn access_rules_let_a_publisher_have_what_they_name_and_nothing_else() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let rules = json!([{"publisher": "guest", "hosts": [world.scm.host()], "messages": ["token.request"]}]);
    world.set("access.rules", rules);
    let worker = world.start_worker().await;
    let guest = || BasicProperties::default().with_user_id("guest".into());
    let send = async |routing_key, body: Value, properties| {
        world.broker.send(routing_key, body.to_string(), properties).await.reply().await.body
    };

    let known = send(TOKEN_REQUEST, world.token_request("nobody"), guest()).await;
    assert_refused(&known, "user_not_found", false);
    let unknown = send(TOKEN_REQUEST, world.token_request("nobody"), BasicProperties::default()).await;
    assert_refused(&unknown, "forbidden", false);
    let elsewhere = json!({"user_id": "nobody", "host": "nowhere.example.org"});
    assert_refused(&send(TOKEN_REQUEST, elsewhere, guest()).await, "forbidden", false);
    let store = json!({"user_id": "u", "host": world.scm.host(), "token": {"value": "some-token"}});
    assert_refused(&send(TOKEN_STORE, store, guest()).await, "forbidden", false);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_outlast_a_database_that_comes_back_in_time_and_are_told_when_it_does_not() {
    let mut world = World::new(Kind::Postgres, Dialect::GitHub).await;
    let database = world.settings().database.url;
    let url = secrecy::ExposeSecret::expose_secret(&database).to_owned();
    let proxy = FaultProxy::start_for_url(&url, 5432).await;
    let through = proxy.url(&url);
    world.set("database.url", through).set("database.acquire_timeout_secs", 1);
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;

    proxy.refuse();
    proxy.cut_all();
    let brief = BasicProperties::default().with_expiration("1500".into());
    let gone = world.broker.send(TOKEN_REQUEST, world.token_request("jdoe").to_string(), brief).await;
    assert_refused(&gone.reply().await.body, "internal", true);
    let waiting = join_all((0..10).map(|_| world.request("jdoe")));
    let back = async { proxy.accept() };
    let (replies, ()) = tokio::join!(waiting, back);

    assert!(replies.iter().all(|reply| reply["status"] == "ok"), "{replies:?}");
    worker.stop().await;
}
