//! A pair that the database does not take is never lost: stored later, parked with the broker, or kept in a file.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueuePurgeOptions};
use lapin::types::AMQPValue;
use sea_orm::{ConnectionTrait, TransactionTrait};
use secrecy::ExposeSecret;
use tempfile::TempDir;
use tokenkeeper::domain::secret::KeyRing;
use tokenkeeper_testkit::proxy::FaultProxy;
use tokenkeeper_testkit::queues::BasicProperties;

use crate::cli::Cli;
use crate::harness::logs::assert_holds_none_of;
use crate::harness::reply::{error_message, token};
use crate::harness::{Dialect, Kind, PATIENCE, WorkerProcess, World, eventually, on_every_database};

/// A world, and the proxies through which a worker reaches its database and its broker.
struct Night {
    world: World,
    database: FaultProxy,
    broker: FaultProxy,
    spool: TempDir,
    urls: [(&'static str, String); 2],
}

impl Night {
    async fn falls() -> Self {
        let mut world = World::new(Kind::Postgres, Dialect::GitHub).await;
        let spool = tempfile::tempdir().unwrap();
        world
            .set("worker.spool_dir", spool.path().join("spool").display())
            .set("database.acquire_timeout_secs", 1)
            // Longer than a test waits for a worker to end: these have nothing to wait for.
            .set("worker.grace_period_secs", 120);
        let settings = world.settings();
        let (database_url, broker_url) =
            (settings.database.url.expose_secret(), world.broker.url().to_owned());
        let database = FaultProxy::start_for_url(database_url, 5432).await;
        let broker = FaultProxy::start_for_url(&broker_url, 5672).await;
        let urls = [("database.url", database_url.to_owned()), ("broker.url", broker_url.clone())];
        world.set("database.url", database.url(database_url)).set("broker.url", broker.url(&broker_url));
        Self { world, database, broker, spool, urls }
    }

    /// Workers that are started from here on do not go through the proxies.
    fn passes(&mut self) {
        for (key, url) in &self.urls {
            self.world.set(key, url);
        }
    }

    /// A worker that has a new pair for jdoe in its hands, and no database to put it in.
    async fn worker_with_a_pair_in_its_hands(&self) -> WorkerProcess {
        let worker = self.world.spawn_worker().await;
        self.world.user_with_expired_token("jdoe").await;
        let gate = self.world.scm.hold_refreshes();
        let _request = self.world.send("jdoe").await;
        gate.wait_for_parked(1).await;
        self.database.refuse();
        self.database.cut_all();
        gate.release();
        worker.wait_for_log("cannot store a refreshed pair; it will be retried", 1).await;
        worker
    }

    async fn parked_pairs(&self, count: u32) {
        eventually(&format!("{count} parked pairs"), PATIENCE, async || {
            (self.world.broker.queue_depth("parked-pairs").await == count).then_some(())
        })
        .await;
    }

    /// Takes what is parked out of the queue: the bodies.
    async fn parked_pairs_taken_out(&self) -> Vec<String> {
        let channel = self.world.broker.channel().await;
        let queue = self.world.broker.name("parked-pairs");
        let mut bodies = Vec::new();
        eventually("a parked pair", PATIENCE, async || {
            let taken =
                channel.basic_get(queue.as_str().into(), BasicGetOptions { no_ack: true }).await.unwrap();
            bodies.extend(taken.map(|message| String::from_utf8(message.delivery.data).unwrap()));
            (!bodies.is_empty()).then_some(())
        })
        .await;
        bodies
    }

    /// Empties the queue of requests: the next worker has none of the earlier one's in its hands.
    async fn forget_requests(&self) {
        let (channel, queue) = (self.world.broker.channel().await, self.world.broker.name("token-requests"));
        channel.queue_purge(queue.into(), QueuePurgeOptions::default()).await.unwrap();
    }

    /// Publishes to the queue of parked pairs, as whoever has access to the broker may.
    async fn park(&self, body: &str) {
        let (channel, queue) = (self.world.broker.channel().await, self.world.broker.name("parked-pairs"));
        // Confirmed: from here on it is in the queue, or in somebody's hands.
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let options = BasicPublishOptions::default();
        let published = channel.basic_publish(
            "".into(),
            queue.as_str().into(),
            options,
            body.as_bytes(),
            BasicProperties::default(),
        );
        published.await.unwrap().await.unwrap();
    }

    fn spool_files(&self) -> Vec<PathBuf> {
        let folder = self.spool.path().join("spool").read_dir();
        folder.into_iter().flatten().map(|file| file.unwrap().path()).collect()
    }

    /// jdoe has the pair that the SCM issued last, and nobody asked it for another one.
    async fn assert_nothing_is_lost(&self) {
        let latest = self.world.scm.latest_pair("jdoe").unwrap().access_token;
        assert_eq!(token(&self.world.request("jdoe").await)["value"], latest.as_str());
        assert!(self.world.scm.is_alive(&latest));
        assert_eq!(self.world.scm.refresh_requests("jdoe"), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pair_is_stored_when_the_database_is_back() {
    let night = Night::falls().await;
    let worker = night.worker_with_a_pair_in_its_hands().await;
    night.database.accept();
    night.assert_nothing_is_lost().await;
    worker.stop(&night.world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_must_stop_parks_its_pair_for_any_other_one_to_store() {
    let mut night = Night::falls().await;
    let worker = night.worker_with_a_pair_in_its_hands().await;
    worker.stop(&night.world).await;
    night.parked_pairs(1).await;
    assert!(night.spool_files().is_empty());

    night.passes();
    let other = night.world.spawn_worker().await;
    other.wait_for_log("parked pair stored", 1).await;

    night.assert_nothing_is_lost().await;
    night.parked_pairs(0).await;
    assert_eq!(other.count(r#"tokenkeeper_parked_pairs_total{step="stored"}"#).await, 1);
    other.stop(&night.world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_broker_the_pair_goes_to_a_file_that_the_next_worker_picks_up() {
    let mut night = Night::falls().await;
    let worker = night.worker_with_a_pair_in_its_hands().await;
    night.broker.refuse();
    night.broker.cut_all();
    worker.stop(&night.world).await;

    let files = night.spool_files();
    let [file] = files.as_slice() else { panic!("one file, not {files:?}") };
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "its owner's alone");
    let text = std::fs::read_to_string(file).unwrap();
    assert_holds_none_of(&text, &night.world.secrets(), "the spool file");

    night.passes();
    let next = night.world.spawn_worker().await;
    next.wait_for_log("parked pair stored", 1).await;

    night.assert_nothing_is_lost().await;
    eventually("the file to be gone", PATIENCE, async || night.spool_files().is_empty().then_some(())).await;
    next.stop(&night.world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_stops_gives_a_parked_pair_back_instead_of_waiting_for_the_database() {
    let mut night = Night::falls().await;
    let worker = night.worker_with_a_pair_in_its_hands().await;
    worker.stop(&night.world).await;
    let parked = night.parked_pairs_taken_out().await;
    night.forget_requests().await;
    night.passes();
    let other = night.world.spawn_worker().await;
    // The database is there, so that queues are consumed, and takes nothing.
    let db = night.world.connection().await;
    db.execute_unprepared("alter table token_entry rename to elsewhere").await.unwrap();
    night.park(&parked[0]).await;
    other.wait_for_log("cannot store a parked pair; it will be retried", 1).await;

    other.stop(&night.world).await;
    night.parked_pairs(1).await;

    db.execute_unprepared("alter table elsewhere rename to token_entry").await.unwrap();
    let third = night.world.spawn_worker().await;
    third.wait_for_log("parked pair stored", 1).await;
    night.assert_nothing_is_lost().await;
    third.stop(&night.world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_stops_does_not_wait_for_a_database_that_says_nothing_of_a_parked_pair() {
    let mut night = Night::falls().await;
    let worker = night.worker_with_a_pair_in_its_hands().await;
    worker.stop(&night.world).await;
    let parked = night.parked_pairs_taken_out().await;
    night.forget_requests().await;
    night.passes();
    let other = night.world.spawn_worker().await;
    let holding = night.world.connection().await.begin().await.unwrap();
    holding.execute_unprepared("lock table token_entry in access exclusive mode").await.unwrap();
    night.park(&parked[0]).await;
    // In its hands.
    night.parked_pairs(0).await;

    other.stop(&night.world).await;
    night.parked_pairs(1).await;
    holding.rollback().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_pair_gives_way_to_a_login_that_came_meanwhile() {
    let mut night = Night::falls().await;
    let worker = night.worker_with_a_pair_in_its_hands().await;
    worker.stop(&night.world).await;
    night.parked_pairs(1).await;
    let parked = night.parked_pairs_taken_out().await;
    night.passes();
    let other = night.world.spawn_worker().await;
    let login = night.world.user_with_token("jdoe").await;

    night.park(&parked[0]).await;
    other.wait_for_log("parked pair dropped: a newer one is stored", 1).await;

    assert_eq!(token(&night.world.request("jdoe").await)["value"], login.access_token.as_str());
    assert_eq!(other.count(r#"tokenkeeper_parked_pairs_total{step="superseded"}"#).await, 1);
    other.stop(&night.world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_no_parked_pair_goes_to_the_dead_letters() {
    let mut night = Night::falls().await;
    let worker = night.worker_with_a_pair_in_its_hands().await;
    worker.stop(&night.world).await;
    let parked = night.parked_pairs_taken_out().await;
    night.passes();
    let other = night.world.spawn_worker().await;
    // Bound to the generation that it follows: an old one cannot be passed off as a newer one.
    let moved = parked[0].replace(r#""generation":1"#, r#""generation":2"#);
    assert_ne!(moved, parked[0]);

    for body in [moved.as_str(), "no JSON", r#"{"host":"h"}"#] {
        night.park(body).await;
    }

    let letters = night.world.broker.wait_for_dead_letters(3).await;
    for letter in &letters {
        let reason = letter.headers.inner().get("x-tokenkeeper-reason");
        assert_eq!(reason, Some(&AMQPValue::LongString("unreadable_parked_pair".into())));
    }
    other.stop(&night.world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_pair_whose_key_was_missing_is_stored_once_it_is_back_and_the_pair_is_replayed() {
    let mut night = Night::falls().await;
    let worker = night.worker_with_a_pair_in_its_hands().await;
    worker.stop(&night.world).await;
    night.passes();
    let keys = night.world.keys.clone();
    night.world.set("encryption.keys", KeyRing::generate("another").expose_secret());
    night.world.forget_keys_in_use().await;
    let keyless = night.world.spawn_worker().await;
    keyless.wait_for_log("cannot read a parked pair; it is kept for an operator", 1).await;
    keyless.stop(&night.world).await;
    night.world.set("encryption.keys", keys);
    night.world.forget_keys_in_use().await;

    let replayed = Cli::of(&night.world).run(&["dead", "replay", "--reason", "unreadable_parked_pair"]).await;
    assert_eq!(replayed.stdout, "replayed 1, failed 0\n", "{}", replayed.stderr);
    let other = night.world.spawn_worker().await;
    other.wait_for_log("parked pair stored", 1).await;

    night.assert_nothing_is_lost().await;
    other.stop(&night.world).await;
}

/// Has the database refuse every pair of an identity, as a column that is too short would.
async fn refuse_pairs_of(world: &World, kind: Kind, identity_id: i64) -> &'static str {
    let condition = format!("identity_id = {identity_id} AND generation > 1");
    let (refuse, allow) = match kind {
        Kind::Sqlite => (
            format!(
                "CREATE TRIGGER refused BEFORE UPDATE ON token_entry WHEN NEW.identity_id = {identity_id} \
                 AND NEW.generation > 1 BEGIN SELECT RAISE(ABORT, 'refused'); END"
            ),
            "DROP TRIGGER refused",
        ),
        Kind::Postgres | Kind::MariaDb => (
            format!("ALTER TABLE token_entry ADD CONSTRAINT refused CHECK (NOT ({condition}))"),
            "ALTER TABLE token_entry DROP CONSTRAINT refused",
        ),
    };
    world.connection().await.execute_unprepared(&refuse).await.unwrap();
    allow
}

on_every_database! {
    async fn a_pair_that_the_database_refuses_is_parked_at_once_and_lies_in_the_dead_letters(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let worker = world.start_worker().await;
        world.user_with_expired_token("jdoe").await;
        world.user_with_expired_token("bystander").await;
        let allow = refuse_pairs_of(&world, kind, world.entry("jdoe").await.identity_id).await;

        let (refused, served) = tokio::join!(world.request("jdoe"), world.request("bystander"));

        error_message(&refused, "internal");
        token(&served);
        eventually("the dead letter", PATIENCE, async || {
            (world.broker.queue_depth("dead-letters").await == 1).then_some(())
        })
        .await;
        assert_eq!(world.broker.queue_depth("parked-pairs").await, 0, "nobody tries it again and again");
        world.connection().await.execute_unprepared(allow).await.unwrap();
        let replay = Cli::of(&world).run(&["dead", "replay", "--reason", "refused_parked_pair"]).await;
        assert_eq!(replay.stdout, "replayed 1, failed 0\n", "{}", replay.stderr);
        eventually("the pair to be stored", PATIENCE, async || {
            let stored = world.store.open_access_token(&world.entry("jdoe").await).unwrap();
            let newest = world.scm.latest_pair("jdoe").unwrap().access_token;
            (stored.expose_secret() == newest).then_some(())
        })
        .await;
        worker.stop().await;
    }
}
