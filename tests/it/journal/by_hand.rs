//! What an operator does where workers could not, and what a refused refresh token says of the access token beside it.

use serde_json::json;
use tokenkeeper_testkit::scm::Fault;

use super::{back_up, handed_out, restore, world};
use crate::cli::Cli;
use crate::harness::events::Listener;
use crate::harness::reply::error_message;
use crate::harness::{Dialect, Kind, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_replays_the_journal_without_a_worker() {
    let world = world(Kind::Postgres).await;
    let db = world.connection().await;
    let worker = world.spawn_worker().await;
    world.user_with_expired_token("jdoe").await;
    back_up(&db).await;
    let newest = handed_out(&world.request("jdoe").await);
    worker.stop(&world).await;
    restore(&db).await;

    let cli = Cli::of(&world);
    cli.run(&["restore"]).await.with_code(2).says("--from-journal");
    let dry = cli.run(&["restore", "--from-journal", "--dry-run"]).await.good().keeps_secrets_of(&world);
    assert!(dry.stdout.starts_with("1 pairs would be stored, 1 there already, 0 left"), "{dry:?}");
    let done = cli.run(&["restore", "--from-journal"]).await.good().keeps_secrets_of(&world);
    assert!(done.stdout.starts_with("1 pairs stored"), "{done:?}");
    let again = cli.run(&["restore", "--from-journal"]).await.good();
    assert!(again.stdout.starts_with("0 pairs stored, 2 there already"), "{again:?}");
    cli.set("TOKENKEEPER__BROKER__JOURNAL_MAX_AGE_SECS", "0")
        .run(&["restore", "--from-journal"])
        .await
        .with_code(2)
        .says("there is no journal");

    let worker = world.spawn_worker().await;
    assert_eq!(handed_out(&world.request("jdoe").await), newest);
    assert_eq!(world.scm.refresh_requests("jdoe"), 1);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_whose_pairs_an_operator_condemns_are_asked_to_log_in_and_the_host_is_not_asked() {
    let world = World::new(Kind::Postgres, Dialect::BitbucketServer).await;
    let worker = world.spawn_worker().await;
    let events = Listener::start(&world, "token.reauthorization_required").await;
    for user in ["one", "two"] {
        world.user_with_token(user).await;
    }
    let before = world.store.now().await.unwrap().to_string();
    world.user_with_token("later").await;
    let (cli, host) = (Cli::of(&world), world.scm.host());
    let condemn = ["token", "condemn", "--host", &host, "--updated-before", &before];

    cli.run(&["token", "condemn", "--host", "other.example.org", "--updated-before", &before])
        .await
        .with_code(2)
        .says("no provider has the host");
    let dry = cli.run(&[&condemn[..], &["--dry-run"]].concat()).await.good();
    assert!(dry.stdout.starts_with("2 users"), "{dry:?}");
    cli.run(&condemn).await.with_code(2).says("pass --yes to confirm");
    let done = cli.run(&[&condemn[..], &["--yes"]].concat()).await.good().keeps_secrets_of(&world);
    assert!(done.stdout.starts_with("2 users"), "{done:?}");
    let again = cli.run(&[&condemn[..], &["--yes"]].concat()).await.good();
    assert!(again.stdout.starts_with("0 users"), "{again:?}");

    for user in ["one", "two"] {
        error_message(&world.request(user).await, "reauthorization_required");
        assert_eq!(world.scm.refresh_requests(user), 0);
    }
    handed_out(&world.request("later").await);
    events.wait_for("token.reauthorization_required", 2).await;
    world.user_with_token("one").await;
    handed_out(&world.request("one").await);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_refresh_token_condemns_its_access_token_once_somebody_was_refreshed() {
    let world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    let worker = world.spawn_worker().await;
    world.user_with_token("stale").await;
    world.scm.fail_next_for("stale", 1, Fault::InvalidGrant);
    let unproven = world.request("stale").await;
    assert_eq!(unproven["warnings"], json!(["refresh_failed"]), "the refusal may speak of the settings");

    world.user_with_expired_token("proof").await;
    handed_out(&world.request("proof").await);
    error_message(&world.request("stale").await, "reauthorization_required");
    assert_eq!(world.scm.refresh_requests("stale"), 1, "it is not sent again");
    worker.stop(&world).await;
}
