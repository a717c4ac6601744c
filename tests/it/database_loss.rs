//! The database goes away, or says nothing: what is in hand waits for it, and nothing more is taken.

use sea_orm::{ConnectionTrait, DatabaseTransaction, TransactionTrait};
use secrecy::ExposeSecret;
use serde_json::Value;
use tokenkeeper_testkit::proxy::FaultProxy;
use tokenkeeper_testkit::queues::{BasicProperties, PendingReply, TOKEN_STORE};

use crate::harness::reply::{error_message, token};
use crate::harness::{Dialect, Kind, PATIENCE, WorkerProcess, World, eventually};

/// A world whose workers reach their database through a proxy alone; what the test asks of it goes straight there.
pub(crate) async fn world_behind_a_proxy() -> (World, FaultProxy) {
    let mut world = World::new(Kind::Postgres, Dialect::BitbucketServer).await;
    let direct = world.settings().database.url.expose_secret().to_owned();
    let proxy = FaultProxy::start_for_url(&direct, 5432).await;
    world.set("database.url", proxy.url(&direct)).set("database.acquire_timeout_secs", 1);
    world.set("refresh.opportunistic_budget_secs", 1);
    (world, proxy)
}

pub(crate) fn go_away(proxy: &FaultProxy) {
    proxy.refuse();
    proxy.cut_all();
}

/// A request for a token that is being refreshed, in the hands of a worker, when its database goes away.
async fn in_hand_when_it_goes(world: &World, proxy: &FaultProxy) -> PendingReply {
    world.user_with_expired_token("in-hand").await;
    let gate = world.scm.hold_refreshes();
    let request = world.send("in-hand").await;
    gate.wait_for_parked(1).await;
    go_away(proxy);
    gate.release();
    request
}

async fn wait_until_paused(worker: &WorkerProcess) {
    // The broker goes on counting a consumer that is cancelled while it has something in hand.
    eventually("the worker to stop taking messages", PATIENCE, async || {
        let (status, problems) = worker.get("readyz").await;
        let paused = problems.contains("database:") && problems.contains("does not consume");
        (status == 503 && paused).then_some(())
    })
    .await;
}

/// Another session that holds every token, as a long transaction of an operator may.
async fn hold_every_token(world: &World) -> DatabaseTransaction {
    let holding = world.connection().await.begin().await.unwrap();
    holding.execute_unprepared("update token_entry set username = username").await.unwrap();
    holding
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_hand_waits_what_is_not_stays_with_the_broker_and_all_goes_on_by_itself() {
    let (world, proxy) = world_behind_a_proxy().await;
    let worker = world.spawn_worker().await;
    world.user_with_token("jdoe").await;

    let in_hand = in_hand_when_it_goes(&world, &proxy).await;
    wait_until_paused(&worker).await;
    let queued = world.send("jdoe").await;
    eventually("the request to be in the queue", PATIENCE, async || {
        (world.broker.queue_depth("token-requests").await == 1).then_some(())
    })
    .await;
    proxy.accept();

    let latest = world.scm.latest_pair("in-hand").unwrap().access_token;
    assert_eq!(token(&in_hand.reply().await.body)["value"], latest.as_str());
    token(&queued.reply().await.body);
    worker.wait_until_ready().await;
    assert!(world.broker.dead_letters().await.is_empty(), "a database that is away is no fault of a message");
    assert_eq!(worker.count("tokenkeeper_database_away_total").await, 1);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_whose_time_runs_out_while_the_database_is_away_is_told_so() {
    let (mut world, proxy) = world_behind_a_proxy().await;
    world.set("worker.request_budget_secs", 2).set("refresh.wait_secs", 1);
    let worker = world.spawn_worker().await;

    let in_hand = in_hand_when_it_goes(&world, &proxy).await;

    assert!(error_message(&in_hand.reply().await.body, "deadline_exceeded").contains("database"));
    proxy.accept();
    eventually("the pair to be stored", PATIENCE, async || {
        (world.request("in-hand").await["status"] == "ok").then_some(())
    })
    .await;
    assert_eq!(world.scm.refresh_requests("in-hand"), 1, "the first pair is the one that is served");
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_it_is_away_the_log_repeats_no_line_with_every_try() {
    let (mut world, proxy) = world_behind_a_proxy().await;
    world.set("worker.request_budget_secs", 4).set("refresh.wait_secs", 1);
    let worker = world.spawn_worker().await;

    // Its pair is stored again and again meanwhile, and its row is looked up.
    let in_hand = in_hand_when_it_goes(&world, &proxy).await;
    error_message(&in_hand.reply().await.body, "deadline_exceeded");

    let log = worker.log();
    let alarming = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut told: Vec<_> = alarming
        .filter(|line| line["level"] == "ERROR" || line["level"] == "WARN")
        .map(|line| (line["message"].to_string(), line["error"].to_string()))
        .collect();
    assert!(told.iter().any(|(message, _)| message.contains("cannot store a refreshed pair")), "{told:#?}");
    let lines = told.len();
    told.sort();
    told.dedup();
    assert_eq!(told.len(), lines, "{log}");
    proxy.accept();
    worker.wait_until_ready().await;
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_does_not_answer_counts_as_away() {
    let (world, proxy) = world_behind_a_proxy().await;
    let worker = world.spawn_worker().await;
    world.user_with_token("jdoe").await;

    proxy.freeze();
    wait_until_paused(&worker).await;
    let queued = world.send("jdoe").await;
    proxy.thaw();

    token(&queued.reply().await.body);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_waits_for_its_database_stops_when_it_is_told_to() {
    let (world, proxy) = world_behind_a_proxy().await;
    let worker = world.spawn_worker().await;
    go_away(&proxy);
    wait_until_paused(&worker).await;
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_never_ends_is_not_waited_for_longer_than_a_request_has_time() {
    let (mut world, _proxy) = world_behind_a_proxy().await;
    world.set("worker.request_budget_secs", 2).set("refresh.wait_secs", 1);
    let worker = world.spawn_worker().await;
    world.user_with_token("jdoe").await;
    token(&world.request("jdoe").await);
    let held = hold_every_token(&world).await;

    error_message(&world.request_for("jdoe", 3600).await, "deadline_exceeded");

    held.rollback().await.unwrap();
    token(&world.request_for("jdoe", 3600).await);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exhausted_pool_delays_neither_a_lease_heartbeat_nor_the_storing_of_a_new_pair() {
    let (mut world, _proxy) = world_behind_a_proxy().await;
    world.set("database.max_connections", 1).set("refresh.lease_ttl_secs", 2);
    let worker = world.spawn_worker().await;
    world.user_with_token("busy").await;
    world.user_with_expired_token("jdoe").await;
    // The one connection of requests waits for a row that another session holds.
    let holding = world.connection().await.begin().await.unwrap();
    let hold =
        format!("update token_entry set username = username where id = {}", world.entry("busy").await.id);
    let gate = world.scm.hold_refreshes();
    let refreshed = world.send("jdoe").await;
    gate.wait_for_parked(1).await;
    let first_until = world.entry("jdoe").await.lease.expect("it is being refreshed").until;
    holding.execute_unprepared(&hold).await.unwrap();
    let _stuck = world.send_many("busy", 20).await;

    eventually("two beats of the heart", PATIENCE, async || {
        let until = world.entry("jdoe").await.lease.expect("it is being refreshed").until;
        (until.since(first_until).as_millis() > 1_000).then_some(())
    })
    .await;
    gate.release();

    assert_eq!(
        token(&refreshed.reply().await.body)["value"],
        world.scm.latest_pair("jdoe").unwrap().access_token
    );
    holding.rollback().await.unwrap();
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_without_reply_to_is_tried_again_until_the_database_takes_it() {
    let mut world = World::new(Kind::Postgres, Dialect::BitbucketServer).await;
    world.set("worker.request_budget_secs", 2).set("refresh.wait_secs", 1);
    world.set("refresh.opportunistic_budget_secs", 1);
    let worker = world.spawn_worker().await;
    world.user_with_token("jdoe").await;
    world.user_with_token("bystander").await;
    let holding = world.connection().await.begin().await.unwrap();
    let lock = "update token_entry set username = username where user_id = 'jdoe'";
    holding.execute_unprepared(lock).await.unwrap();
    let pair = world.scm.authorize("jdoe");
    let body = world.scm.token_store_body(&pair).to_string();

    world.broker.publish(TOKEN_STORE, body, BasicProperties::default()).await;

    worker.wait_for_log("it will be retried later", 1).await;
    token(&world.request("bystander").await);
    holding.rollback().await.unwrap();
    eventually("the login to be stored", PATIENCE, async || {
        let entry = world.entry("jdoe").await;
        let stored = world.store.open_access_token(&entry).expect("it opens");
        (stored.expose_secret() == pair.access_token).then_some(())
    })
    .await;
    assert!(world.broker.dead_letters().await.is_empty());
    worker.stop(&world).await;
}
