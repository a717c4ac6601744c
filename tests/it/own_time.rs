//! A request is answered when its own time is over, whatever it waits for.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use sea_orm::{ConnectionTrait, TransactionTrait};
use serde_json::json;
use tokenkeeper::domain::clock::Timestamp;
use tokenkeeper::store::Guarded;
use tokenkeeper_testkit::queues::{
    BasicProperties, TOKEN_REPORT, TOKEN_REQUEST, TOKEN_STORE, WORKSPACE_START,
};

use crate::database_loss::{go_away, world_behind_a_proxy};
use crate::harness::reply::{error_message, token};
use crate::harness::{Dialect, Kind, PATIENCE, WorkerProcess, World, eventually};

/// A quarter of a second is the contract's. The rest is for the test itself, on a machine that has much else to do.
const A_MOMENT: Duration = Duration::from_millis(250 + 750);

/// A message of each kind about jdoe.
fn messages(world: &World) -> [(&'static str, String); 4] {
    let (user_id, host) = ("jdoe", world.scm.host());
    let repositories = [world.scm.clone_url("proj", "repo")];
    let pair = world.scm.authorize("jdoe");
    [
        (TOKEN_REQUEST, world.token_request("jdoe").to_string()),
        (
            WORKSPACE_START,
            json!({"workspace_id": "ws-1", "user_id": user_id, "repositories": repositories}).to_string(),
        ),
        (TOKEN_STORE, world.scm.token_store_body(&pair).to_string()),
        (TOKEN_REPORT, json!({"user_id": user_id, "host": host, "token_sha256": "0".repeat(64)}).to_string()),
    ]
}

/// Sends a message, and sees that its time is over when it is answered, and not long over.
async fn runs_out(world: &World, routing_key: &str, body: String, expiration_ms: u64) {
    let with = BasicProperties::default().with_expiration(expiration_ms.to_string().into());
    let sent = Instant::now();
    let reply = world.broker.send(routing_key, body, with).await.reply().await.body;
    let (took, end) = (sent.elapsed(), Duration::from_millis(expiration_ms));
    let element = if routing_key == WORKSPACE_START { &reply["tokens"][0] } else { &reply };
    error_message(element, "deadline_exceeded");
    assert!((end..end + A_MOMENT).contains(&took), "{routing_key} within {end:?}: {took:?}");
}

/// Each kind of message, with a short and with a long time.
async fn all_run_out(world: &World) {
    let of_kind = |(routing_key, body): (&'static str, String)| {
        [2_000, 6_000].map(|expiration_ms| runs_out(world, routing_key, body.clone(), expiration_ms))
    };
    join_all(messages(world).into_iter().flat_map(of_kind)).await;
}

async fn in_hand(worker: &WorkerProcess) -> usize {
    let series = [TOKEN_REQUEST, WORKSPACE_START, TOKEN_STORE, TOKEN_REPORT]
        .map(|kind| format!(r#"tokenkeeper_messages_in_flight{{type="{kind}"}}"#));
    join_all(series.iter().map(|series| worker.count(series))).await.iter().sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_database_says_nothing() {
    let (mut world, proxy) = world_behind_a_proxy().await;
    // Longer than the time of a request.
    world.set("database.acquire_timeout_secs", 30);
    let worker = world.spawn_worker().await;
    world.user_with_token("jdoe").await;
    proxy.freeze();

    all_run_out(&world).await;

    proxy.thaw();
    proxy.cut_all();
    token(&world.request("jdoe").await);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_database_is_gone() {
    let (world, proxy) = world_behind_a_proxy().await;
    let worker = world.spawn_worker().await;
    world.user_with_token("jdoe").await;
    // Everything waits for it, so that all of it is in hand when the database goes.
    let holding = world.connection().await.begin().await.unwrap();
    holding
        .execute_unprepared("lock table auth_provider, token_entry in access exclusive mode")
        .await
        .unwrap();
    let goes = async {
        eventually("all messages to be in hand", PATIENCE, async || {
            (in_hand(&worker).await == 8).then_some(())
        })
        .await;
        go_away(&proxy);
    };

    tokio::join!(all_run_out(&world), goes);

    proxy.accept();
    token(&world.request("jdoe").await);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_somebody_holds_its_row_and_others_are_served() {
    let world = World::new(Kind::Postgres, Dialect::GitHub).await;
    let worker = world.spawn_worker().await;
    world.user_with_token("jdoe").await;
    world.user_with_token("bystander").await;
    let holding = world.connection().await.begin().await.unwrap();
    let lock = "update token_entry set username = username where user_id = 'jdoe'";
    holding.execute_unprepared(lock).await.unwrap();

    let request = world.token_request("jdoe").to_string();
    let bystanders = async {
        for _ in 0..20 {
            token(&world.request("bystander").await);
        }
    };
    tokio::join!(runs_out(&world, TOKEN_REQUEST, request, 3_000), bystanders);

    holding.rollback().await.unwrap();
    token(&world.request("jdoe").await);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_provider_or_another_worker_refreshes_and_the_flight_goes_on() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("refresh.wait_secs", 30);
    let worker = world.spawn_worker().await;
    world.user_with_expired_token("jdoe").await;
    world.user_with_expired_token("leased").await;
    world.user_with_token("bystander").await;
    let leased = world.entry("leased").await;
    let (now, hour) = (Timestamp::from_millis(world.scm.now_ms()), Duration::from_hours(1));
    let taken = world.store.take_lease(&leased, None, "another worker", "sent", now, hour).await;
    assert_eq!(taken.unwrap(), Guarded::Done);
    let gate = world.scm.hold_refreshes();

    let request = |user| world.token_request(user).to_string();
    tokio::join!(
        runs_out(&world, TOKEN_REQUEST, request("jdoe"), 2_000),
        runs_out(&world, TOKEN_REQUEST, request("leased"), 2_000),
        async { token(&world.request("bystander").await).clone() },
    );

    gate.release();
    eventually("the new pair to be stored all the same", PATIENCE, async || {
        (world.entry("jdoe").await.generation == 2).then_some(())
    })
    .await;
    assert_eq!(world.scm.refresh_requests("jdoe"), 1);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_it_waits_for_a_place_in_hand() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("broker.partitions", 2).set("worker.prefetch_token_requests", 1).set("refresh.wait_secs", 30);
    let worker = world.spawn_worker().await;
    world.user_with_expired_token("first").await;
    world.user_with_token("jdoe").await;
    let gate = world.scm.hold_refreshes();
    let send = async |partition: &str, user: &str, with: BasicProperties| {
        world.broker.send_to_queue(partition, world.token_request(user).to_string(), with).await
    };
    // It has the only place of both partitions.
    let first = send("token-requests.0", "first", BasicProperties::default()).await;
    gate.wait_for_parked(1).await;

    for _ in 0..2 {
        let with = BasicProperties::default().with_expiration("1000".into());
        let began = Instant::now();
        let reply = send("token-requests.1", "jdoe", with).await.reply().await.body;
        let took = began.elapsed();
        error_message(&reply, "deadline_exceeded");
        let end = Duration::from_secs(1);
        assert!((end..end + A_MOMENT).contains(&took), "{took:?}");
    }

    gate.release();
    token(&first.reply().await.body);
    token(&send("token-requests.1", "jdoe", BasicProperties::default()).await.reply().await.body);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_nobody_can_be_told_of_is_kept_and_only_its_own_time_ends_it() {
    let (mut world, proxy) = world_behind_a_proxy().await;
    world.set("worker.request_budget_secs", 1).set("refresh.wait_secs", 1);
    world.set("refresh.opportunistic_budget_secs", 1);
    let worker = world.spawn_worker().await;
    let [patient, hasty] = ["patient", "hasty"].map(|user| world.scm.authorize(user));
    let publish = async |pair, properties| {
        world.broker.publish(TOKEN_STORE, world.scm.token_store_body(pair).to_string(), properties).await;
    };
    proxy.freeze();
    publish(&patient, BasicProperties::default()).await;
    publish(&hasty, BasicProperties::default().with_expiration("1500".into())).await;

    let letters = world.broker.wait_for_dead_letters(1).await;
    worker.wait_for_log("it will be retried later", 1).await;
    proxy.thaw();
    proxy.cut_all();

    let reason = letters[0].headers.inner().get("x-tokenkeeper-reason");
    assert_eq!(reason, Some(&lapin::types::AMQPValue::LongString("deadline_exceeded".into())));
    eventually("the patient login to be stored", PATIENCE, async || {
        (world.request("patient").await["status"] == "ok").then_some(())
    })
    .await;
    error_message(&world.request("hasty").await, "user_not_found");
    worker.stop(&world).await;
}
