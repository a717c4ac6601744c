//! `[[publishers]]`: what each user of the broker may ask a worker for. Real users publish over connections of their own.

mod hostile;
mod open;

use std::time::Duration;

use serde_json::{Value, json};
use tokenkeeper::domain::clock::Timestamp;
use tokenkeeper_testkit::queues::{
    BasicProperties, PendingReply, Publisher, TOKEN_REPORT, TOKEN_REQUEST, TOKEN_STORE, WORKSPACE_START,
};

use crate::harness::accounts::Accounts;
use crate::harness::reply::{error_message, token};
use crate::harness::{Dialect, Kind, SimulatedScm, World};

/// A platform whose services have users of their own at the broker: one that requests, one that stores, one CI, and one that
/// the settings do not name. `u-1` and `ci-1` have tokens.
struct Platform {
    world: World,
    accounts: Accounts,
    server: Publisher,
    login: Publisher,
    ci: Publisher,
    stranger: Publisher,
}

const SERVICES: [&str; 4] = ["server", "login", "ci", "stranger"];

impl Platform {
    /// `change` changes the entry of a publisher.
    async fn new(change: impl Fn(&str, &mut Value)) -> Self {
        let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
        let before_the_policy = world.start_worker().await;
        for user in ["u-1", "ci-1"] {
            world.user_with_token(user).await;
        }
        before_the_policy.stop().await;
        let own = format!("^{}.*", world.broker.prefix());
        let users = SERVICES.map(|service| (service, Some([own.clone(), own.clone(), own.clone()])));
        let accounts = Accounts::create(&world, &users).await;
        let hosts = json!([world.scm.host()]);
        let mut entries = [
            (
                "server",
                json!({"messages": ["token.request", "workspace.start", "token.report"], "users": ["*"]}),
            ),
            ("login", json!({"messages": ["token.store"], "may_store_for": ["u-*"]})),
            ("ci", json!({"messages": ["token.request"], "users": ["ci-*"]})),
        ];
        for (service, entry) in &mut entries {
            entry["amqp_user"] = accounts.name(service).into();
            entry["hosts"] = hosts.clone();
            change(service, entry);
        }
        world.set("publishers", Value::from_iter(entries.map(|(_, entry)| entry)));
        let publisher = async |service| world.broker.publisher(&accounts.url(service), service).await;
        let (server, login) = (publisher("server").await, publisher("login").await);
        let (ci, stranger) = (publisher("ci").await, publisher("stranger").await);
        Self { world, accounts, server, login, ci, stranger }
    }

    fn publisher(&self, service: &str) -> &Publisher {
        match service {
            "server" => &self.server,
            "login" => &self.login,
            "ci" => &self.ci,
            _ => &self.stranger,
        }
    }

    /// Publishes as this service, which says who it is.
    async fn send(&self, service: &str, kind: &str, body: Value) -> PendingReply {
        let named = BasicProperties::default().with_user_id(self.accounts.name(service).into());
        self.publisher(service).send(kind, body.to_string(), named).await
    }

    async fn ask(&self, service: &str, kind: &str, body: Value) -> Value {
        self.send(service, kind, body).await.reply().await.body
    }

    async fn request(&self, service: &str, user: &str) -> Value {
        self.ask(service, TOKEN_REQUEST, self.world.token_request(user)).await
    }

    /// Someone who has nothing to do with it is served.
    async fn bystander_is_served(&self) {
        token(&self.request("server", "u-1").await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_publisher_has_what_its_policy_gives_and_nothing_else() {
    let platform = Platform::new(|_, _| {}).await;
    let world = &platform.world;
    let other = SimulatedScm::start_as(Dialect::GitLab).await;
    world.apply(&other, |_| {}).await;
    let worker = world.start_worker().await;
    let (here, there) = (world.scm.host(), other.host());
    let digest = "0".repeat(64);

    for (service, kind, user, host, told) in [
        ("server", TOKEN_REQUEST, "u-1", &here, "ok"),
        ("server", TOKEN_REQUEST, "ci-1", &here, "ok"),
        ("server", TOKEN_REPORT, "u-1", &here, "ok"),
        ("server", TOKEN_REQUEST, "u-1", &there, "may not: ask for this host"),
        ("server", TOKEN_STORE, "u-1", &here, "may not: send messages of this kind"),
        ("ci", TOKEN_REQUEST, "ci-1", &here, "ok"),
        ("ci", TOKEN_REQUEST, "u-1", &here, "may not: ask for this user"),
        ("ci", TOKEN_REPORT, "ci-1", &here, "may not: send messages of this kind"),
        ("login", TOKEN_REQUEST, "u-1", &here, "may not: send messages of this kind"),
        ("stranger", TOKEN_REQUEST, "u-1", &here, "may not: do not name this publisher"),
    ] {
        let body = json!({
            "user_id": user, "host": host, "token_sha256": digest, "token": {"value": "x"},
        });
        let reply = platform.ask(service, kind, body).await;
        match told.strip_prefix("may not: ") {
            None => assert_eq!(reply["status"], "ok", "{service} {kind} {user}: {reply}"),
            Some(told) => assert!(error_message(&reply, "forbidden").contains(told), "{reply}"),
        }
        platform.bystander_is_served().await;
    }
    let urls = [world.scm.clone_url("p", "r"), other.clone_url("p", "r")];
    let start = json!({"workspace_id": "w", "user_id": "u-1", "repositories": urls});
    let started = platform.ask("server", WORKSPACE_START, start.clone()).await;
    token(&started["tokens"][0]);
    error_message(&started["tokens"][1], "forbidden");
    error_message(&platform.ask("ci", WORKSPACE_START, start).await, "forbidden");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pair_is_replaced_only_by_a_publisher_that_may_store_for_its_user() {
    let platform = Platform::new(|_, _| {}).await;
    let world = &platform.world;
    let worker = world.start_worker().await;
    let store = async |service: &str, user: &str| {
        let pair = world.scm.authorize(user);
        platform.ask(service, TOKEN_STORE, world.scm.token_store_body(&pair)).await
    };

    let before = world.entry("ci-1").await.generation;
    error_message(&store("login", "ci-1").await, "forbidden");
    error_message(&store("ci", "ci-1").await, "forbidden");
    assert_eq!(world.entry("ci-1").await.generation, before, "nobody may store for ci-1");
    let before = world.entry("u-1").await.generation;
    assert_eq!(store("login", "u-1").await["status"], "ok");
    assert_eq!(world.entry("u-1").await.generation, before + 1);
    assert_eq!(store("login", "u-new").await["status"], "ok");
    platform.bystander_is_served().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_longer_lifetime_than_the_policy_has_is_refused_and_one_that_nobody_named_is_cut() {
    let platform = Platform::new(|service, entry| {
        if service == "ci" {
            entry["max_lifetime_secs"] = 60.into();
        }
    })
    .await;
    let world = &platform.world;
    let worker = world.start_worker().await;
    let for_secs = async |secs: Option<u64>| {
        let mut body = world.token_request("ci-1");
        if let Some(secs) = secs {
            body["requested_lifetime_secs"] = secs.into();
        }
        platform.ask("ci", TOKEN_REQUEST, body).await
    };

    let refused = for_secs(Some(61)).await;
    assert!(error_message(&refused, "forbidden").contains("60 seconds at most"), "{refused}");
    assert_eq!(world.entry("ci-1").await.state.reserved_until, None, "a refused request reserves nothing");
    token(&for_secs(Some(60)).await);
    let granted = for_secs(None).await;
    let until = token(&granted)["reserved_until"].as_str().unwrap();
    let until = Timestamp::parse_rfc3339(until).unwrap();
    let now = Timestamp::from_millis(world.scm.now_ms());
    assert!(until <= now.plus(Duration::from_secs(61)), "{until} is not a minute after {now}");
    platform.bystander_is_served().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_does_not_say_who_it_is_gets_nothing() {
    let platform = Platform::new(|_, _| {}).await;
    let worker = platform.world.start_worker().await;
    let body = platform.world.token_request("u-1").to_string();
    let unnamed =
        platform.server.send(TOKEN_REQUEST, body, BasicProperties::default()).await.reply().await.body;
    assert!(error_message(&unnamed, "forbidden").contains("user_id"), "{unnamed}");
    platform.bystander_is_served().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_has_a_limit_of_its_own_and_others_do_not_feel_it() {
    let platform = Platform::new(|service, entry| {
        if service == "ci" {
            entry["requests_per_second"] = 3.into();
        }
    })
    .await;
    let worker = platform.world.start_worker().await;
    let mut refused = 0;
    for _ in 0..50 {
        let asked = platform.send("ci", TOKEN_REQUEST, platform.world.token_request("ci-1")).await;
        platform.bystander_is_served().await;
        let reply = asked.reply().await.body;
        if reply["status"] == "error" {
            assert!(error_message(&reply, "provider_unavailable").contains("asks too often"), "{reply}");
            refused += 1;
        }
    }
    assert!(refused > 0, "50 requests took no seventeen seconds");
    worker.stop().await;
}
