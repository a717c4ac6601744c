//! The journal of pairs: a database that goes back logs nobody out, and no dead token is handed out.

mod by_hand;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeleteOptions};
use sea_orm::{ConnectionTrait, DatabaseConnection, TransactionTrait};
use secrecy::ExposeSecret;
use serde_json::Value;
use tokenkeeper::broker::{JournalReader, ReadFrom};
use tokenkeeper::domain::clock::Timestamp;
use tokenkeeper::domain::secret::KeyRing;
use tokenkeeper::store::{AccountNames, JournalRecord, JournalledPair, NewPair, PairSource, Store};
use tokenkeeper_testkit::queues::BasicProperties;
use uuid::Uuid;

use crate::harness::reply::{error_message, token};
use crate::harness::{Dialect, Kind, PATIENCE, World, eventually, on_every_database};

/// What a backup holds, and what a restore puts back.
const TABLES: [&str; 3] = ["identity", "token_entry", "journal_mark"];

async fn world(kind: Kind) -> World {
    let mut world = World::new(kind, Dialect::BitbucketServer).await;
    world.set("broker.journal_max_age_secs", 3_600);
    world
}

/// A copy of the tables, as a nightly backup is.
async fn back_up(db: &DatabaseConnection) {
    for table in TABLES {
        let copy = format!("CREATE TABLE backup_{table} AS SELECT * FROM {table}");
        db.execute_unprepared(&copy).await.expect("back a table up");
    }
}

/// Puts the copy in the place of the tables, all at once.
async fn restore(db: &DatabaseConnection) {
    let all = db.begin().await.expect("begin");
    for table in TABLES.iter().rev() {
        all.execute_unprepared(&format!("DELETE FROM {table}")).await.expect("empty a table");
    }
    for table in TABLES {
        let back = format!("INSERT INTO {table} SELECT * FROM backup_{table}");
        all.execute_unprepared(&back).await.expect("restore a table");
    }
    all.commit().await.expect("commit");
}

/// The access token of a reply that handed one out.
fn handed_out(reply: &Value) -> String {
    token(reply)["value"].as_str().expect("a token in clear").to_owned()
}

/// The mark is written again: a restore is noticed.
async fn mark_is_written(world: &World) {
    let store = world.another_store().await;
    let before = store.journal_mark().await.expect("the mark").map_or(0, |mark| mark.moves);
    eventually("the mark of the journal", PATIENCE, async || {
        let mark = store.journal_mark().await.expect("the mark");
        mark.filter(|mark| mark.moves > before + 1)
    })
    .await;
}

on_every_database! {
async fn after_a_restored_backup_a_worker_that_starts_hands_out_living_tokens(kind: Kind) {
    let world = world(kind).await;
    let db = world.connection().await;
    let worker = world.spawn_worker().await;
    world.user_with_expired_token("refreshed").await;
    world.user_with_token("as-before").await;
    back_up(&db).await;
    let newest = handed_out(&world.request("refreshed").await);
    let login = world.scm.authorize("new");
    let stored = world.broker.request("token.store", world.scm.token_store_body(&login)).await;
    assert_eq!(stored.body["status"], "ok");
    worker.stop(&world).await;

    restore(&db).await;
    let worker = world.spawn_worker().await;
    let again = handed_out(&world.request("refreshed").await);
    assert_eq!(again, newest, "the pair of the journal");
    assert!(world.scm.is_alive(&again));
    assert_eq!(world.scm.refresh_requests("refreshed"), 1, "no spent refresh token was sent");
    assert!(world.scm.is_alive(&handed_out(&world.request("new").await)), "nobody must log in again");
    assert!(world.scm.is_alive(&handed_out(&world.request("as-before").await)), "bystanders are served");
    worker.stop(&world).await;
}

async fn a_worker_that_runs_while_its_database_is_restored_hands_out_no_dead_token(kind: Kind) {
    let world = world(kind).await;
    let db = world.connection().await;
    let worker = world.spawn_worker().await;
    world.user_with_expired_token("jdoe").await;
    back_up(&db).await;
    let newest = handed_out(&world.request("jdoe").await);
    mark_is_written(&world).await;

    restore(&db).await;
    assert_eq!(handed_out(&world.request("jdoe").await), newest, "at once");
    worker.wait_for_log("the database went back", 1).await;
    worker.wait_until_ready().await;
    assert_eq!(handed_out(&world.request("jdoe").await), newest, "and later");
    assert_eq!(world.scm.refresh_requests("jdoe"), 1);
    worker.stop(&world).await;
}

}

#[tokio::test]
async fn an_old_row_that_somebody_puts_back_is_brought_up_to_the_journal() {
    let world = world(Kind::Postgres).await;
    let db = world.connection().await;
    let worker = world.spawn_worker().await;
    world.user_with_expired_token("jdoe").await;
    world.user_with_token("bystander").await;
    db.execute_unprepared("CREATE TABLE backup_token_entry AS SELECT * FROM token_entry").await.unwrap();
    let newest = handed_out(&world.request("jdoe").await);
    let back = "DELETE FROM token_entry; INSERT INTO token_entry SELECT * FROM backup_token_entry";
    db.execute_unprepared(back).await.unwrap();
    let (jdoe, bystander) = tokio::join!(world.request("jdoe"), world.request("bystander"));
    assert_eq!(handed_out(&jdoe), newest);
    assert!(world.scm.is_alive(&handed_out(&bystander)));
    assert_eq!(world.scm.refresh_requests("jdoe"), 1);
    worker.stop(&world).await;
}

#[tokio::test]
async fn after_the_database_went_back_no_token_is_refreshed_that_somebody_may_hold() {
    let world = world(Kind::Postgres).await;
    let db = world.connection().await;
    let worker = world.spawn_worker().await;
    world.user_with_token("holder").await;
    back_up(&db).await;
    mark_is_written(&world).await;
    let held = world.request_for("holder", 3_600).await;
    restore(&db).await;
    worker.wait_for_log("the database went back", 1).await;
    worker.wait_until_ready().await;
    let again = world.request("holder").await;
    assert_eq!(again["refresh"], "reserved", "the reservation went back, too");
    assert!(world.scm.is_alive(&handed_out(&held)), "it works for as long as was promised");
    worker.stop(&world).await;
}

#[tokio::test]
async fn a_spent_refresh_token_that_is_stored_again_is_not_sent() {
    let world = world(Kind::Postgres).await;
    let worker = world.spawn_worker().await;
    let spent = world.user_with_expired_token("jdoe").await;
    world.user_with_token("bystander").await;
    handed_out(&world.request("jdoe").await);
    // As `token import --replace` does with a file of yesterday.
    let provider = world.store.provider(&world.scm.host()).await.unwrap().expect("the provider");
    let account = AccountNames { auth_id: "jdoe".to_owned(), auth_name: None };
    let pair = NewPair {
        access_token: spent.access_token.clone().into(),
        refresh_token: Some(spent.refresh_token.clone().into()),
        username: None,
        scopes: Vec::new(),
        expires_at: Some(Timestamp::from_millis(spent.expires_at_ms)),
        refresh_token_expires_at: None,
        source: PairSource::Login,
    };
    let now = world.store.now().await.unwrap();
    world.store.put_login("jdoe", provider.id, &account, &pair, true, now).await.unwrap();
    let (jdoe, bystander) = tokio::join!(world.request("jdoe"), world.request("bystander"));
    error_message(&jdoe, "reauthorization_required");
    assert!(world.scm.is_alive(&handed_out(&bystander)));
    assert_eq!(world.scm.refresh_requests("jdoe"), 1);
    worker.stop(&world).await;
}

#[tokio::test]
async fn records_that_no_worker_wrote_change_nothing() {
    let world = world(Kind::Postgres).await;
    let worker = world.spawn_worker().await;
    world.user_with_expired_token("jdoe").await;
    let newest = handed_out(&world.request("jdoe").await);
    let mut old = records(&world).await;
    let stranger = KeyRing::parse(KeyRing::generate("test").expose_secret()).expect("keys");
    let stranger = Store::new(world.connection().await, stranger);
    let pair = JournalledPair::refreshed(&world.entry("jdoe").await, &forged(), "0");
    old.push(stranger.seal_journal(&world.scm.host(), &pair).encode());
    old.extend(["", "null", "{}", "[[[[", r#"{"host":"h","key_id":"test","sealed":"AAAA"}"#].map(Vec::from));
    old.push(vec![b'x'; 1_000_000]);
    for record in &old {
        append(&world, record).await;
    }
    // Read by the worker that runs, and by one that starts.
    worker.wait_for_log("a record of the journal cannot be used", 1).await;
    mark_is_written(&world).await;
    assert_eq!(handed_out(&world.request("jdoe").await), newest);
    worker.stop(&world).await;
    let worker = world.spawn_worker().await;
    assert_eq!(handed_out(&world.request("jdoe").await), newest);
    assert_eq!(world.scm.refresh_requests("jdoe"), 1);
    worker.stop(&world).await;
}

#[tokio::test]
async fn a_stream_that_is_deleted_costs_nobody_a_token_and_is_made_again() {
    let world = world(Kind::Postgres).await;
    let worker = world.spawn_worker().await;
    world.user_with_expired_token("first").await;
    world.user_with_expired_token("second").await;
    handed_out(&world.request("first").await);
    let channel = world.broker.channel().await;
    channel.queue_delete(world.broker.name("pairs").into(), QueueDeleteOptions::default()).await.unwrap();
    handed_out(&world.request("second").await);
    worker.wait_for_log("the mark in the database belongs to another journal", 1).await;
    eventually("the record of the second user", PATIENCE, async || {
        records(&world).await.iter().find_map(|record| JournalRecord::decode(record))
    })
    .await;
    worker.stop(&world).await;
}

/// A pair that nobody issued.
fn forged() -> NewPair {
    NewPair {
        access_token: "forged".into(),
        refresh_token: Some("forged".into()),
        username: None,
        scopes: Vec::new(),
        expires_at: None,
        refresh_token_expires_at: None,
        source: PairSource::Login,
    }
}

/// Appends to the stream, as whoever may write there can.
async fn append(world: &World, record: &[u8]) {
    let channel = world.broker.channel().await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
    let publish =
        channel.basic_publish("".into(), world.broker.name("pairs").into(), options, record, properties);
    publish.await.unwrap().await.unwrap();
}

/// What stands in the stream.
async fn records(world: &World) -> Vec<Vec<u8>> {
    let end = Uuid::new_v4().to_string().into_bytes();
    append(world, &end).await;
    let mut reader = JournalReader::open(&world.settings().broker, "test", ReadFrom::First).await.unwrap();
    let mut records = Vec::new();
    loop {
        let record = reader.next().await.unwrap();
        if record.body == end {
            reader.close().await;
            return records;
        }
        records.push(record.body);
    }
}
