//! `workspace.start`: one token for each distinct host, all at once, whatever becomes of the others.

use std::sync::Arc;

use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokenkeeper::domain::clock::{Clock, ManualClock, Timestamp};
use tokenkeeper::store::{AccountNames, NewPair, PairSource};
use tokenkeeper_testkit::queues::{TOKEN_REQUEST, WORKSPACE_START};

use crate::harness::logs::captured;
use crate::harness::reply::{error_message, token};
use crate::harness::world::minutes;
use crate::harness::{Dialect, Fault, Kind, ScmOptions, SimulatedScm, World, on_every_database};

/// Three SCMs; the first one is the world's own.
struct ThreeHosts {
    world: World,
    others: [SimulatedScm; 2],
}

impl ThreeHosts {
    async fn new(kind: Kind) -> Self {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        let others =
            [SimulatedScm::start_as(Dialect::GitHub).await, SimulatedScm::start_as(Dialect::GitLab).await];
        for scm in &others {
            world.apply(scm, |_| {}).await;
        }
        Self { world, others }
    }

    fn scms(&self) -> [&SimulatedScm; 3] {
        [&self.world.scm, &self.others[0], &self.others[1]]
    }

    /// A user with an expired token at each of them.
    async fn user_with_expired_tokens(&self, user: &str) {
        for scm in self.scms() {
            let pair = scm.authorize_until(user, scm.now_ms() - 1000);
            store_login(
                &self.world,
                user,
                &scm.host(),
                &pair.access_token,
                Some(&pair.refresh_token),
                pair.expires_at_ms,
            )
            .await;
        }
    }
}

async fn store_login(
    world: &World,
    user: &str,
    host: &str,
    access_token: &str,
    refresh_token: Option<&str>,
    expires_at_ms: i64,
) {
    let provider = world.store.provider(host).await.unwrap().expect("the provider was applied");
    let account = AccountNames { auth_id: user.to_owned(), auth_name: None };
    let pair = NewPair {
        access_token: access_token.to_owned().into(),
        refresh_token: refresh_token.map(|token| token.to_owned().into()),
        username: None,
        scopes: Vec::new(),
        expires_at: Some(Timestamp::from_millis(expires_at_ms)),
        refresh_token_expires_at: None,
        source: PairSource::Login,
    };
    world
        .store
        .put_login(user, provider.id, &account, &pair, false, Timestamp::from_millis(0))
        .await
        .unwrap();
}

async fn start(world: &World, repositories: &[String]) -> Value {
    start_with(world, json!({"workspace_id": "ws-1", "user_id": "jdoe", "repositories": repositories})).await
}

async fn start_with(world: &World, body: Value) -> Value {
    let reply = world.broker.request(WORKSPACE_START, body).await.body;
    assert_eq!((&reply["workspace_id"], &reply["user_id"]), (&json!("ws-1"), &json!("jdoe")), "{reply}");
    reply
}

fn elements(reply: &Value) -> &Vec<Value> {
    reply["tokens"].as_array().expect("a list of tokens")
}

fn hosts(reply: &Value) -> Vec<&str> {
    elements(reply).iter().map(|element| element["host"].as_str().expect("a host")).collect()
}

on_every_database! {
    async fn over_three_hosts_of_which_one_fails_the_other_two_have_their_tokens(kind: Kind) {
        let three = ThreeHosts::new(kind).await;
        let world = &three.world;
        let worker = world.start_worker().await;
        three.user_with_expired_tokens("jdoe").await;
        let [first, failing, last] = three.scms();
        failing.fail_always(Fault::InvalidClient);

        let repositories = [last, failing, first].map(|scm| scm.clone_url("proj", "repo"));
        let reply = start(world, &repositories).await;

        assert_eq!(reply["status"], "error", "not every element is ok");
        assert!(reply.get("error").is_none(), "nothing is wrong with the message as a whole");
        assert_eq!(hosts(&reply), [last, failing, first].map(SimulatedScm::host));
        let [of_last, of_failing, of_first] = elements(&reply).as_slice() else { panic!("{reply}") };
        for (element, scm) in [(of_last, last), (of_first, first)] {
            let latest = scm.latest_pair("jdoe").unwrap();
            assert_eq!(token(element)["value"], json!(latest.access_token));
            assert!(scm.is_alive(&latest.access_token));
            assert_eq!(
                (&element["user_id"], &element["refresh"], &element["warnings"]),
                (&json!("jdoe"), &json!("required"), &json!([]))
            );
        }
        error_message(of_failing, "provider_misconfigured");
        assert_eq!(of_failing["user_id"], "jdoe");
        worker.stop().await;
    }

    async fn the_status_is_ok_where_every_element_is(kind: Kind) {
        let three = ThreeHosts::new(kind).await;
        let worker = three.world.start_worker().await;
        three.user_with_expired_tokens("jdoe").await;
        let repositories = three.scms().map(|scm| scm.clone_url("proj", "repo"));
        let reply = start(&three.world, &repositories).await;
        assert_eq!(reply["status"], "ok", "{reply}");
        assert_eq!(elements(&reply).len(), 3);
        worker.stop().await;
    }
}

#[tokio::test]
async fn a_host_without_provider_and_one_without_the_user_are_told_apart_each_in_its_place() {
    let three = ThreeHosts::new(Kind::Sqlite).await;
    let world = &three.world;
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    let repositories = [
        "https://nowhere.example.org/p/r.git".to_owned(),
        world.scm.clone_url("proj", "repo"),
        three.others[0].clone_url("proj", "repo"),
    ];

    let reply = start(world, &repositories).await;

    assert_eq!(reply["status"], "error");
    error_message(&elements(&reply)[0], "unknown_host");
    token(&elements(&reply)[1]);
    error_message(&elements(&reply)[2], "identity_not_found");
    worker.stop().await;
}

#[tokio::test]
async fn hosts_are_served_at_the_same_time() {
    let three = ThreeHosts::new(Kind::Sqlite).await;
    let worker = three.world.start_worker().await;
    three.user_with_expired_tokens("jdoe").await;
    let gates = three.scms().map(SimulatedScm::hold_refreshes);
    let repositories = three.scms().map(|scm| scm.clone_url("proj", "repo"));

    let (reply, ()) = tokio::join!(start(&three.world, &repositories), async {
        // None goes on before all three are under way.
        for gate in &gates {
            gate.wait_for_parked(1).await;
        }
        for gate in &gates {
            gate.release();
        }
    });

    assert_eq!(reply["status"], "ok", "{reply}");
    worker.stop().await;
}

#[tokio::test]
async fn a_provider_that_hangs_holds_nobody_up_longer_than_the_time_of_the_start() {
    let mut three = ThreeHosts::new(Kind::Sqlite).await;
    three.world.set("worker.workspace_start_budget_secs", 2);
    let worker = three.world.start_worker().await;
    three.user_with_expired_tokens("jdoe").await;
    let gate = three.others[0].hold_refreshes();
    let repositories = three.scms().map(|scm| scm.clone_url("proj", "repo"));

    let reply = start(&three.world, &repositories).await;

    let [of_first, of_hanging, of_last] = elements(&reply).as_slice() else { panic!("{reply}") };
    token(of_first);
    error_message(of_hanging, "deadline_exceeded");
    token(of_last);
    gate.release();
    worker.stop().await;
}

#[tokio::test]
async fn a_host_is_served_once_however_many_repositories_it_has() {
    let world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    let other = SimulatedScm::start_as(Dialect::GitHub).await;
    world.apply(&other, |_| {}).await;
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    let repositories = [
        world.scm.clone_url("proj", "one"),
        other.clone_url("proj", "one"),
        world.scm.clone_url("proj", "two"),
        world.scm.clone_url("other", "one"),
        other.clone_url("proj", "two"),
    ];

    let reply = start(&world, &repositories).await;

    assert_eq!(hosts(&reply), [world.scm.host(), other.host()], "in the order of first appearance");
    assert_eq!(elements(&reply)[0]["refresh"], "opportunistic");
    assert_eq!(world.scm.refreshes("jdoe"), 1);
    worker.stop().await;
}

#[tokio::test]
async fn a_repository_without_a_clone_url_costs_its_own_token_alone() {
    const SECRET: &str = "s3cret";
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    let odd = [
        format!("https://jdoe:{SECRET}@{}", world.scm.host()),
        format!("file:///{SECRET}"),
        format!("https://{}:70000/p/r.git", world.scm.host()),
        format!("git@[{SECRET}"),
        String::new(),
    ];
    let good = world.scm.clone_url("proj", "repo");
    let repositories: Vec<String> =
        [odd[0].clone(), good.clone()].into_iter().chain(odd[1..].iter().cloned()).chain([good]).collect();

    let reply = start(&world, &repositories).await;

    assert_eq!(reply["status"], "error");
    let elements = elements(&reply);
    assert_eq!(elements.len(), 6, "{reply}");
    token(&elements[1]);
    for (element, place) in [(0, 0), (2, 2), (3, 3), (4, 4), (5, 5)] {
        let error = &elements[element]["error"];
        assert_eq!((&error["code"], &error["retryable"]), (&json!("invalid_request"), &json!(false)));
        let message = error["message"].as_str().unwrap();
        assert!(message.starts_with(&format!("repositories[{place}]: must be a clone URL")), "{message}");
        assert_eq!(
            (&elements[element]["user_id"], &elements[element]["host"]),
            (&json!("jdoe"), &Value::Null)
        );
    }
    assert!(!reply.to_string().contains(SECRET), "{reply}");
    assert_eq!(world.broker.queue_depth("dead-letters").await, 0);
    worker.stop().await;
}

#[tokio::test]
async fn every_host_of_a_provider_leads_to_its_token_and_is_named_as_it_was_asked_for() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world
        .apply_provider(|provider| {
            provider.overrides.other_hosts = vec!["ssh.example.org".into(), "GIT.Example.org.".into()];
        })
        .await;
    let worker = world.start_worker().await;
    let pair = world.user_with_token("jdoe").await;
    for host in ["ssh.example.org", "GIT.Example.org."] {
        let reply = world.broker.request(TOKEN_REQUEST, json!({"user_id": "jdoe", "host": host})).await.body;
        assert_eq!((&reply["status"], &reply["host"]), (&json!("ok"), &json!(host)), "{reply}");
        assert_eq!(reply["token"]["value"], json!(pair.access_token));
    }
    let reply = start(&world, &["git@ssh.example.org:p/r.git".to_owned()]).await;
    assert_eq!(hosts(&reply), ["ssh.example.org"]);
    token(&elements(&reply)[0]);
    let body = json!({"user_id": "jdoe", "host": "git.example.org"});
    let unknown = world.broker.request(TOKEN_REQUEST, body).await.body;
    assert_eq!(unknown["error"]["code"], "unknown_host");
    worker.stop().await;
}

#[tokio::test]
async fn every_form_of_a_clone_url_leads_to_its_host() {
    const PASSWORD: &str = "s3cret-in-a-clone-url";
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    for host in ["git.example.org", "git.example.org:8443"] {
        world.apply(&world.scm, |provider| provider.host = host.to_owned()).await;
        let never = 4_102_444_800_000;
        store_login(&world, "jdoe", host, &format!("token-for-{host}"), None, never).await;
    }
    let worker = world.start_worker().await;
    for (repository, host) in [
        ("https://git.example.org/scm/p/r.git".to_owned(), "git.example.org"),
        ("https://GIT.example.org/scm/p/r.git".to_owned(), "git.example.org"),
        (format!("https://jdoe:{PASSWORD}@git.example.org/scm/p/r.git"), "git.example.org"),
        ("git@git.example.org:p/r.git".to_owned(), "git.example.org"),
        ("git.example.org:p/r.git".to_owned(), "git.example.org"),
        ("ssh://git@git.example.org/p/r.git".to_owned(), "git.example.org"),
        ("ssh://git@git.example.org:7999/p/r.git".to_owned(), "git.example.org"),
        ("https://git.example.org:8443/scm/p/r.git".to_owned(), "git.example.org:8443"),
        (format!("https://jdoe:{PASSWORD}@git.example.org:8443/scm/p/r.git"), "git.example.org:8443"),
    ] {
        let reply = start(&world, std::slice::from_ref(&repository)).await;
        assert_eq!(hosts(&reply), [host], "{repository}");
        assert_eq!(token(&elements(&reply)[0])["value"], format!("token-for-{host}"), "{repository}");
        assert!(!reply.to_string().contains(PASSWORD));
    }
    assert!(!captured().contains(PASSWORD), "the password of a clone URL is in the log");
    worker.stop().await;
}

// --- The lifetime ---

/// The reservation that a workspace start at minute 0 leaves behind, in minutes: what the reply says is what is stored.
async fn reserved_minutes(world: &World, clock: &ManualClock, lifetime: Value) -> f64 {
    let repositories = [world.scm.clone_url("proj", "repo")];
    let body = json!({
        "workspace_id": "ws-1", "user_id": "jdoe", "repositories": repositories,
        "requested_lifetime_secs": lifetime,
    });
    let reply = start_with(world, body).await;
    let told = &token(&elements(&reply)[0])["reserved_until"];
    let stored = world.entry("jdoe").await.state.reserved_until.expect("it was handed out");
    assert_eq!(*told, json!(stored));
    stored.since(clock.now()).as_secs_f64() / 60.0
}

async fn world_at_minute_0(flags: Option<&Value>) -> (World, Arc<ManualClock>, Option<tempfile::TempDir>) {
    let clock = Arc::new(ManualClock::at(minutes(0)));
    let mut world = World::at(Kind::Sqlite, Dialect::GitHub, &clock).await;
    let folder = flags.map(|flags| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("flags.json");
        std::fs::write(&file, flags.to_string()).unwrap();
        world.set("flags.file", file.display());
        folder
    });
    let pair = world.scm.authorize("jdoe");
    store_login(&world, "jdoe", &world.scm.host(), &pair.access_token, None, pair.expires_at_ms).await;
    (world, clock, folder)
}

fn close_to(minutes: f64, expected: f64) -> bool {
    (minutes - expected).abs() < 0.001
}

#[tokio::test]
async fn without_a_lifetime_and_without_a_flag_the_lifetime_is_ten_minutes() {
    let (world, clock, _) = world_at_minute_0(None).await;
    let worker = world.start_worker_at(clock.clone()).await;
    assert!(close_to(reserved_minutes(&world, &clock, Value::Null).await, 10.0));
    worker.stop().await;
}

#[tokio::test]
async fn the_lifetime_of_the_message_wins_over_that_of_the_flag() {
    let flag = json!({
        "state": "ENABLED",
        "variants": {"short": 5, "long": 25},
        "defaultVariant": "short",
        "targeting": {"if": [{"==": [{"var": "targetingKey"}, "jdoe"]}, "long", null]},
    });
    let flags = json!({"flags": {"workspace_start_scm_access_token_lifetime": flag}});
    let (world, clock, _folder) = world_at_minute_0(Some(&flags)).await;
    let worker = world.start_worker_at(clock.clone()).await;
    // A reservation only grows: the shorter one first.
    assert!(close_to(reserved_minutes(&world, &clock, json!(900)).await, 15.0), "the message's own");
    assert!(close_to(reserved_minutes(&world, &clock, Value::Null).await, 25.0), "the user's flag");
    worker.stop().await;
}

#[tokio::test]
async fn a_token_that_expires_within_the_requested_lifetime_is_refreshed() {
    let clock = Arc::new(ManualClock::at(minutes(0)));
    let options = {
        let clock = Arc::clone(&clock);
        ScmOptions { clock: Arc::new(move || clock.now().as_millis()), ..ScmOptions::new(Dialect::GitHub) }
    };
    let world = World::with_scm(Kind::Sqlite, options).await;
    let worker = world.start_worker_at(clock.clone()).await;
    world.user_with_token("jdoe").await;
    // Good for a token request's five minutes, too short for a start's ten.
    clock.set(minutes(113));
    assert_eq!(world.request("jdoe").await["refresh"], "none");
    assert!(close_to(reserved_minutes(&world, &clock, Value::Null).await, 10.0));
    assert_eq!(world.scm.refreshes("jdoe"), 1);
    let entry = world.entry("jdoe").await;
    let stored = world.store.open_access_token(&entry).unwrap();
    assert!(world.scm.is_alive(stored.expose_secret()));
    worker.stop().await;
}
