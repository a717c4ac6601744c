//! Invariant 6: no token, secret or key in logs, metrics, replies to others, dead letters, events, files or, in clear, in the
//! database. Every test's world is searched when it ends (`harness/evidence.rs`). Here is what proves that search: a worker that has
//! all of them to tell, and secrets that are planted.

mod marked;
mod types;

use std::path::Path;

use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable};
use sea_orm::{ConnectionTrait, EntityTrait};
use secrecy::ExposeSecret;
use serde_json::json;
use tokenkeeper::contract::{MessageKind, decode};
use tokenkeeper::domain::secret::KeyRing;
use tokenkeeper_entity::{auth_provider, identity, token_entry};
use tokenkeeper_testkit::proxy::FaultProxy;
use tokenkeeper_testkit::queues::{BasicProperties, TOKEN_REQUEST, TOKEN_STORE};

use self::marked::Marked;
use crate::harness::events::Listener;
use crate::harness::evidence::Place;
use crate::harness::logs::assert_holds_none_of;
use crate::harness::{Dialect, Fault, Kind, PATIENCE, World, eventually, on_every_database};

/// Not issued by the SCM: it comes in a message that breaks the contract.
const MISPLACED_TOKEN: &str = "misplaced-token-9f8e7d6c5b4a";

/// Everything that happens to tokens happens once: what goes well, what fails in each of its ways, what nobody
/// receives, what breaks the contract, what is cut off.
async fn an_eventful_life(world: &World, proxy: &FaultProxy) {
    world.user_with_token("alice").await;
    assert_eq!(world.request("alice").await["refresh"], "opportunistic");
    assert_eq!(world.request("alice").await["refresh"], "reserved");
    for (user, fault, status) in [
        ("bob", Fault::Status(500), "ok"),
        ("carol", Fault::InvalidGrant, "error"),
        ("dave", Fault::InvalidClient, "error"),
        ("erin", Fault::Html, "error"),
        ("frank", Fault::CloseAfter, "error"),
        ("grace", Fault::Truncated, "error"),
        ("heidi", Fault::Oversized, "error"),
        ("ivan", Fault::Redirect, "error"),
    ] {
        world.user_with_expired_token(user).await;
        world.scm.fail_next(1, fault.clone());
        let reply = world.request(user).await;
        assert_eq!(reply["status"], status, "{fault:?}: {}", reply["error"]);
        let secrets = world.secrets();
        if status == "error" {
            assert_holds_none_of(reply.to_string(), &secrets, "a reply without a token");
        }
    }
    let body = world.token_request("alice").to_string();
    let gone = BasicProperties::default().with_reply_to("nobody.listens.here".into());
    world.broker.publish(TOKEN_REQUEST, body, gone).await;
    let malformed = json!({"user_id": "mallory", "host": world.scm.host(), "token": MISPLACED_TOKEN});
    let refused = world.broker.request(TOKEN_STORE, malformed).await;
    assert_eq!(refused.body["error"]["code"], "invalid_request");
    assert_holds_none_of(refused.body.to_string(), &[MISPLACED_TOKEN.to_owned()], "a refusal");
    let letters = world.broker.wait_for_dead_letters(1).await;
    assert_holds_none_of(format!("{:?}", letters[0].headers), &[MISPLACED_TOKEN.to_owned()], "a dead letter");
    assert_holds_none_of(&letters[0].body, &[MISPLACED_TOKEN.to_owned()], "the body of a dead letter");
    proxy.cut_all();
    assert_eq!(world.request("alice").await["status"], "ok");
}

on_every_database! {
    /// Every kind of secret is marked: tokens, client secret, keys, admin token, and the passwords of broker and database.
    async fn a_worker_at_its_most_talkative_leaves_no_secret_anywhere(kind: Kind) {
        let mut world = World::new(kind, Dialect::BitbucketServer).await;
        let marked = Marked::passwords(&world, kind).await;
        let proxy = FaultProxy::start_for_url(&marked.broker_url, 5672).await;
        let folder = tempfile::tempdir().unwrap();
        let audit = folder.path().join("audit.jsonl");
        world
            .set("broker.url", proxy.url(&marked.broker_url))
            .set("database.url", &marked.database_url)
            .set("admin.token", "an-admin-token-that-nobody-tells")
            .set("refresh.retry_initial_ms", 20)
            .set("audit.to", "file")
            .set("audit.file", audit.display());
        let worker = world.spawn_worker().await;
        let events = Listener::start(&world, "#").await;

        an_eventful_life(&world, &proxy).await;

        eventually("the lost reply to be counted", PATIENCE, async || {
            (worker.count("tokenkeeper_unroutable_replies_total").await > 0).then_some(())
        })
        .await;
        events.wait_for("token.reauthorization_required", 1).await;
        let secrets: Vec<String> = world.secrets().into_iter().chain([MISPLACED_TOKEN.to_owned()]).collect();
        assert!(secrets.len() > 20, "there were secrets to be told");
        for kind_of_secret in [marked::PASSWORD, "an-admin-token-that-nobody-tells", world.scm.client_secret()] {
            assert!(secrets.iter().any(|secret| secret == kind_of_secret), "{kind_of_secret} is looked for");
        }
        let log = worker.log();
        for told in ["alice", "carol", "opportunistic", "reauthorization_required", "DEBUG"] {
            assert!(log.contains(told), "the log does not tell of {told}: it was not captured");
        }
        assert_holds_none_of(&log, &secrets, "a worker process");
        worker.stop(&world).await;
        assert_holds_none_of(std::fs::read(&audit).unwrap(), &secrets, "the audit log");
        assert_eq!(world.searched(), Place::ALL, "there is something of every place to be searched");
        let found = world.search();
        assert!(found.is_empty(), "{found:#?}");
        drop(world);
        marked.drop_them().await;
    }

    /// A search that finds nothing proves nothing, unless it would have found something.
    async fn a_secret_is_found_in_every_place_where_one_is_left(kind: Kind) {
        let mut world = World::new(kind, Dialect::BitbucketServer).await;
        let folder = tempfile::tempdir().unwrap();
        world.set("audit.to", "file").set("audit.file", folder.path().join("audit.jsonl").display());
        let spool = folder.path().join("spool");
        world.set("worker.spool_dir", spool.display());
        let worker = world.start_worker().await;
        let token = world.user_with_token("alice").await.access_token;
        let found = world.search();
        assert!(found.is_empty(), "{found:#?}");

        world.expect_leaks();
        tracing::warn!("planted: {:?}", token.as_bytes());
        // A worker has no metric whose labels anybody chooses: taken for what a scrape said.
        world.plant(Place::Metrics, format!("tokenkeeper_requests_total{{host=\"{token}\"}} 1\n"));
        plant_a_reply(&world, &token).await;
        plant_a_dead_letter(&world, &token).await;
        plant_an_event(&world, &token).await;
        plant_a_row(&world, kind, &token).await;
        plant_a_file(&spool.join("core.4711"), &token);
        worker.stop().await;

        let found = world.search();
        for place in Place::ALL {
            assert!(found.iter().any(|(found, _)| *found == place), "nothing is found in {place:?}: {found:#?}");
        }
    }

    async fn nothing_secret_is_in_the_database_in_clear(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        let worker = world.start_worker().await;
        world.user_with_token("alice").await;
        world.request("alice").await;
        world.user_with_expired_token("carol").await;
        world.scm.fail_next(1, Fault::InvalidGrant);
        world.request("carol").await;
        worker.stop().await;
        let db = tokenkeeper::store::database::open(&world.settings().database).await.unwrap();

        let entries = token_entry::Entity::find().all(&db).await.unwrap();
        let providers = auth_provider::Entity::find().all(&db).await.unwrap();
        let identities = identity::Entity::find().all(&db).await.unwrap();

        let texts = format!("{entries:?} {providers:?} {identities:?}");
        assert!(texts.contains("alice") && texts.contains(world.scm.client_id()), "what is not secret is there");
        assert_holds_none_of(&texts, &world.secrets(), "the database");
        let sealed = entries
            .into_iter()
            .flat_map(|entry| [Some(entry.access_token_sealed), entry.refresh_token_sealed])
            .flatten()
            .chain(providers.into_iter().map(|provider| provider.client_secret_sealed));
        for bytes in sealed {
            assert!(bytes.len() > 40, "nonce, tag and something between");
            assert_holds_none_of(&bytes, &world.secrets(), "a sealed column");
        }
    }
}

/// As a worker would publish it.
async fn publish(world: &World, exchange: &str, key: &str, body: &str, headers: FieldTable) {
    let channel = world.broker.channel().await;
    channel.confirm_select(lapin::options::ConfirmSelectOptions::default()).await.unwrap();
    let properties = BasicProperties::default().with_headers(headers);
    let options = BasicPublishOptions::default();
    let published = channel.basic_publish(exchange.into(), key.into(), options, body.as_bytes(), properties);
    published.await.unwrap().await.unwrap();
}

/// An error that repeats a token, percent-encoded.
async fn plant_a_reply(world: &World, token: &str) {
    let encoded = token.bytes().map(|byte| format!("%{byte:02X}")).collect::<Vec<_>>().concat();
    let body = json!({"status": "error", "error": {"message": encoded}}).to_string();
    publish(world, "", world.broker.reply_queue(), &body, FieldTable::default()).await;
    eventually("the reply to come", PATIENCE, async || {
        world
            .broker
            .replies_seen()
            .iter()
            .any(|reply| reply.body.to_string().contains(&encoded))
            .then_some(())
    })
    .await;
}

/// A dead letter of a worker with a token in a header, in base64.
async fn plant_a_dead_letter(world: &World, token: &str) {
    let mut headers = FieldTable::default();
    for (name, value) in [("x-tokenkeeper-reason", "planted".to_owned()), ("authorization", basic(token))] {
        headers.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    publish(world, "", &world.broker.name("dead-letters"), "{}", headers).await;
}

fn basic(token: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(format!("alice:{token}"))
}

async fn plant_an_event(world: &World, token: &str) {
    let events = Listener::start(world, "planted").await;
    let body = json!({"detail": token}).to_string();
    publish(world, &world.broker.name("events"), "planted", &body, FieldTable::default()).await;
    events.wait_for("planted", 1).await;
}

/// In a column for ciphertexts: PostgreSQL shows its bytes as hexadecimal digits.
async fn plant_a_row(world: &World, kind: Kind, token: &str) {
    let digits = token.bytes().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
    let bytes = match kind {
        Kind::Postgres => format!("'\\x{digits}'"),
        Kind::Sqlite | Kind::MariaDb => format!("X'{digits}'"),
    };
    let update = format!("UPDATE token_entry SET access_token_sealed = {bytes}");
    world.connection().await.execute_unprepared(&update).await.unwrap();
}

/// A core file, say.
fn plant_a_file(path: &Path, token: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, [b"\x7fELF\0\xff", token.as_bytes(), b"\0"].concat()).unwrap();
}

#[test]
fn debug_of_what_holds_a_secret_does_not_show_it() {
    let body =
        br#"{"user_id":"u","host":"h","token":{"value":"value-secret","refresh_token":"refresh-secret"}}"#;
    let request = decode(MessageKind::TokenStore, body).unwrap();
    let keys = KeyRing::generate("k1");
    let ring = KeyRing::parse(keys.expose_secret()).unwrap();
    let shown = format!("{request:?} {keys:?} {ring:?}");
    let material = keys.expose_secret().split_once(':').unwrap().1.to_owned();
    assert_holds_none_of(&shown, &["value-secret".into(), "refresh-secret".into(), material], "Debug");
}
