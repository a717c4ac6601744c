//! Encryption keys: who may start with which ones, and how they are changed while workers run.

mod rolling;
pub(crate) mod rotating;
mod status;

use std::sync::Arc;

use sea_orm::ConnectionTrait;
use secrecy::ExposeSecret;
use tokenkeeper::domain::key_use::{Canary, Fit};
use tokenkeeper::domain::secret::KeyRing;
use tokenkeeper::store::{Entry, Found, Guarded, Store, database};
use tokenkeeper_migration::{Migrator, MigratorTrait};

use crate::cli::{Cli, Ended};
use crate::harness::{Dialect, Kind, PATIENCE, World, eventually, on_every_database};
use crate::migrations::since;

/// A new key, as the setting takes it.
fn new_key(id: &str) -> String {
    KeyRing::generate(id).expose_secret().to_owned()
}

/// A store with these keys on the world's database.
async fn store_with(world: &World, keys: &str) -> Store {
    Store::new(world.connection().await, KeyRing::parse(keys).unwrap())
}

/// The entry of a user, found by a store with other keys than the world's.
async fn entry(store: &Store, world: &World, user: &str) -> Entry {
    let provider = store.provider(&world.scm.host()).await.unwrap().expect("the provider is there");
    match store.find(user, provider.id).await.unwrap() {
        Found::Entry(entry) => Arc::unwrap_or_clone(entry),
        other => panic!("{user} has no token: {other:?}"),
    }
}

/// A worker with these keys, which must not start.
async fn refused(world: &World, keys: &str) -> Ended {
    let ended = Cli::of(world).set("TOKENKEEPER_KEYS", keys).run(&["worker"]).await;
    ended.with_code(1).keeps_secrets_of(world)
}

/// Whether the only canary is the one of the world's key.
async fn only_the_worlds_key_is_in_use(world: &World) -> bool {
    let ring = KeyRing::parse(&world.keys).unwrap();
    let canaries = world.store.canaries().await.unwrap();
    matches!(&canaries[..], [canary] if canary.is_in_use() && canary.fit(&ring) == Fit::Opens)
}

on_every_database! {
    async fn whoever_lacks_a_key_that_rows_use_or_has_another_one_of_its_id_is_refused(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        world.start_worker().await.stop().await;
        assert!(only_the_worlds_key_is_in_use(&world).await);

        refused(&world, &new_key("other")).await.says("lack `test`").says("next: add it, as the other workers have it");
        refused(&world, &new_key("test")).await.says("`test`").says("another key has the same id");
        let strange = Cli::of(&world).set("TOKENKEEPER_KEYS", &new_key("other"));
        strange.write("tokens.jsonl", "");
        strange.run(&["token", "import", "tokens.jsonl"]).await.with_code(1).says("lack `test`");
        strange.run(&["housekeeping"]).await.with_code(1).says("lack `test`");

        assert_eq!(world.store.workers().await.unwrap(), [], "whoever was refused leaves no row");
        assert!(only_the_worlds_key_is_in_use(&world).await);
        world.start_worker().await.stop().await;
    }

    async fn a_database_from_before_the_canaries_gets_those_of_the_keys_that_open_its_rows(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let db = world.connection().await;
        // As if the provider had been applied before.
        Migrator::down(&db, Some(since("create_key_canary"))).await.unwrap();
        database::migrate(&db).await.unwrap();
        let canaries = world.store.canaries().await.unwrap();
        assert!(matches!(&canaries[..], [Canary { sealed: None, in_use_since: Some(_), .. }]), "{canaries:?}");

        refused(&world, &new_key("other")).await.says("lack `test`");
        refused(&world, &new_key("test")).await.says("another key has the same id");
        world.start_worker().await.stop().await;

        assert!(only_the_worlds_key_is_in_use(&world).await);
    }

    async fn rows_that_were_left_of_a_key_before_there_were_canaries_stop_no_worker(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        world.start_worker().await.stop().await;
        let db = world.connection().await;
        db.execute_unprepared("INSERT INTO key_canary (key_id, in_use_since) VALUES ('dropped', 1)").await.unwrap();

        let worker = world.spawn_worker().await;

        worker.wait_for_log("rows are left of encryption keys that are not here", 1).await;
        world.user_with_token("jdoe").await;
        assert_eq!(world.request("jdoe").await["status"], "ok");
        worker.stop(&world).await;
    }

    async fn a_key_that_is_announced_is_asked_of_whoever_starts(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let running = world.start_worker().await;
        let both = format!("{},{}", new_key("new"), world.keys);
        let other = store_with(&world, &both).await;
        let announced = async || other.announce_key(&other.keys().keys()[0]).await.unwrap();
        assert_eq!((announced().await, announced().await), (Guarded::Done, Guarded::Moved));

        refused(&world, &world.keys).await.says("lack `new`");

        // Who runs already is waited for.
        world.user_with_token("jdoe").await;
        running.stop().await;
        assert_eq!(other.put_key_into_use("new").await.unwrap(), Guarded::Done);
        assert_eq!(other.put_key_into_use("new").await.unwrap(), Guarded::Moved);
    }

    async fn a_worker_is_known_by_its_version_its_keys_and_its_last_sign_of_life(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let worker = world.spawn_worker().await;
        let workers = world.store.workers().await.unwrap();
        let [known] = &workers[..] else { panic!("one worker, not {workers:?}") };
        assert_eq!((known.command.as_str(), known.version.as_str()), ("worker", env!("CARGO_PKG_VERSION")));
        assert!(known.is_living && known.holds(&world.store.keys().keys()[0]), "{known:?}");
        assert_eq!(known.seals_with.as_deref(), Some("test"));
        eventually("another sign of life", PATIENCE, async || {
            let seen = world.store.workers().await.unwrap();
            (seen[0].last_seen_at > known.last_seen_at && seen[0].started_at == known.started_at).then_some(())
        })
        .await;
        worker.stop(&world).await;
        assert_eq!(world.store.workers().await.unwrap(), []);

        let killed = world.spawn_worker().await;
        killed.signal("KILL").await;
        killed.wait(&world).await;
        assert!(world.store.workers().await.unwrap()[0].is_living, "nobody knows better yet");
        assert_eq!(world.store.remove_silent_workers().await.unwrap(), 0);
        silence_all(&world).await;
        assert!(!world.store.workers().await.unwrap()[0].is_living);
        assert_eq!(world.store.remove_silent_workers().await.unwrap(), 1);
        assert_eq!(world.store.workers().await.unwrap(), []);
    }
}

/// As if nobody had said for long that they live.
async fn silence_all(world: &World) {
    let db = world.connection().await;
    db.execute_unprepared("UPDATE worker SET last_seen_at = 1").await.unwrap();
}
