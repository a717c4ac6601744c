//! The way from format 1, which does not tell of a changed row, to format 2: while workers of both versions run.

use sea_orm::ConnectionTrait;
use tokenkeeper::domain::key_use::Fit;
use tokenkeeper::domain::secret::Format;

use super::*;
use crate::cli::Cli;
use crate::harness::{PATIENCE, eventually};

/// A store of the version before.
async fn old_store(world: &World) -> Store {
    let keys = KeyRing::parse(&world.keys).unwrap().of_deployment("tokenkeeper", true);
    keys.seal_in(Format::One);
    Store::new(world.connection().await, keys)
}

/// A world as the version before left it: one provider, and a user with a valid token.
async fn old_world(kind: Kind) -> World {
    let mut world = World::new(kind, Dialect::GitHub).await;
    let db = world.connection().await;
    db.execute_unprepared("DELETE FROM auth_provider").await.unwrap();
    world.store = old_store(&world).await;
    world.apply_provider(|_| {}).await;
    put(&world, &world.store, "jdoe", world.scm.now_ms() + 7_200_000).await;
    let _ = world.store.announce_key(&world.store.keys().keys()[0]).await.unwrap();
    let _ = world.store.put_key_into_use("test").await.unwrap();
    // The test itself reads both formats.
    world.store.keys().seal_in(Format::Two);
    world
}

/// A worker of the version before says that it lives: it does not know the columns of formats.
async fn old_worker_lives(world: &World) {
    let now = world.store.now().await.unwrap().as_millis();
    let checks = tokenkeeper::domain::key_use::key_checks(world.store.keys());
    let checks = serde_json::json!(checks).to_string();
    let row = format!(
        "INSERT INTO worker (id, command, version, key_checks, seals_with, started_at, last_seen_at) \
         VALUES ('old', 'worker', '0.0.9', '{checks}', 'test', {now}, {now})"
    );
    world.connection().await.execute_unprepared(&row).await.unwrap();
}

async fn format_of(world: &World, user: &str) -> Option<Format> {
    Format::of(&Attacker::on(world).await.row(user).await.access_token_sealed)
}

async fn format_of_canary(world: &World) -> Option<Format> {
    world.store.canaries().await.unwrap()[0].format()
}

on_every_database! {
    async fn format_2_waits_for_workers_of_the_version_before_and_keeps_them_out_from_then_on(kind: Kind) {
        let mut world = old_world(kind).await;
        world.set("encryption.accept_format_1", true);
        old_worker_lives(&world).await;
        let worker = world.spawn_worker().await;
        worker.wait_for_log("the newer format of encrypted rows waits", 1).await;
        world.user_with_token("bystander").await;
        assert_eq!((format_of(&world, "bystander").await, format_of_canary(&world).await), (Some(Format::One), Some(Format::One)));
        Cli::of(&world).run(&["keys", "rotate"]).await.with_code(1).says("format 2 of encrypted rows cannot be used yet");

        world.store.remove_worker("old").await.unwrap();

        eventually("the worker to write format 2", PATIENCE, async || {
            let workers = world.store.workers().await.unwrap();
            (workers[0].seals_in_format == Some(2)).then_some(())
        })
        .await;
        assert_eq!(format_of_canary(&world).await, Some(Format::Two));
        token(&world.request("jdoe").await);
        token(&world.request("bystander").await);
        world.user_with_token("bystander").await;
        assert_eq!(format_of(&world, "bystander").await, Some(Format::Two));
        worker.stop(&world).await;
    }

    async fn rows_of_format_1_are_refused_until_they_are_rewritten(kind: Kind) {
        let mut world = old_world(kind).await;
        let refused = Cli::of(&world).run(&["worker"]).await.with_code(1);
        refused.says("format 1, which is refused here").says("next: set it to true for all workers, run `tokenkeeper keys rotate`");

        world.set("encryption.accept_format_1", true);
        let cli = Cli::of(&world);
        let status = cli.run(&["keys", "status", "--json"]).await.good().json();
        assert_eq!(status["keys"][0]["in_format_1"], 2, "{status}");
        let rotated = cli.run(&["keys", "rotate"]).await.good();
        assert!(rotated.stdout.contains("rows re-encrypted with key `test`: 2"), "{rotated:?}");
        assert!(rotated.stdout.contains("take encryption.accept_format_1 away"), "{rotated:?}");
        assert_eq!(format_of(&world, "jdoe").await, Some(Format::Two));

        world.set("encryption.accept_format_1", false);
        let worker = world.spawn_worker().await;
        token(&world.request("jdoe").await);
        // A row of the old format that comes back is refused, and the log says which setting does that.
        put(&world, &old_store(&world).await, "bystander", world.scm.now_ms() + 7_200_000).await;
        error_message(&world.request("bystander").await, "internal");
        assert!(worker.log().contains("encryption.accept_format_1"));
        token(&world.request("jdoe").await);
        worker.stop(&world).await;
    }

    async fn a_refresh_and_a_login_rewrite_their_row(kind: Kind) {
        let mut world = old_world(kind).await;
        world.set("encryption.accept_format_1", true);
        let worker = world.start_worker().await;
        put(&world, &old_store(&world).await, "expired", world.scm.now_ms() - 1000).await;
        assert_eq!(format_of(&world, "expired").await, Some(Format::One));
        token(&world.request("expired").await);
        assert_eq!(format_of(&world, "expired").await, Some(Format::Two));
        world.user_with_token("jdoe").await;
        assert_eq!(format_of(&world, "jdoe").await, Some(Format::Two));
        worker.stop().await;
    }

    async fn another_deployment_is_told_apart_at_start(kind: Kind) {
        let mut world = World::new(kind, Dialect::GitHub).await;
        world.start_worker().await.stop().await;
        world.set("encryption.deployment", "staging");

        let refused = Cli::of(&world).run(&["worker"]).await.with_code(1).keeps_secrets_of(&world);

        refused.says("the deployment is `staging`").says("encrypted for `tokenkeeper`").says("next: put the deployment's name back");
        let staging = KeyRing::parse(&world.keys).unwrap().of_deployment("staging", false);
        assert_eq!(world.store.canaries().await.unwrap()[0].fit(&staging), Fit::OtherDeployment);
    }
}
