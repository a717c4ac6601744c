//! `tokenkeeper keys status` where not all can be read.

use super::rotating::parked;
use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_not_here_is_named_with_what_it_encrypts_and_the_next_step() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    worker.stop().await;

    for output in [&["keys", "status"][..], &["keys", "status", "--json"]] {
        let strange = Cli::of(&world).set("TOKENKEEPER_KEYS", &new_key("other"));
        let ended = strange.run(output).await.with_code(1).keeps_secrets_of(&world);
        assert!(ended.stdout.contains("test"), "{ended:?}");
        ended
            .says("lack `test` (1 token, 1 provider)")
            .says("; next: add them, as the other workers have them");
    }
    let ended = Cli::of(&world).set("TOKENKEEPER_KEYS", &new_key("test")).run(&["keys", "status"]).await;
    ended.with_code(1).says("another key has the same id; next: put the right key back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_broker_the_rest_is_shown_and_what_was_not_looked_at_is_said() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let spool = tempfile::tempdir().unwrap();
    world.set("worker.spool_dir", spool.path().display());
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    worker.stop().await;
    std::fs::write(spool.path().join("1-1-x.parked"), parked(&world, "jdoe").await).unwrap();
    let cli = Cli::of(&world).set("AMQP_URL", "amqp://me:s3cret@127.0.0.1:1/%2f");

    let status = cli.run(&["keys", "status"]).await.good().keeps_secrets_of(&world);
    assert_eq!(status.table()[1][6..8], ["1", "-"], "{status:?}");
    assert!(!status.stderr.contains("s3cret"), "{status:?}");
    let status = status
        .says("The broker was not asked for parked pairs and dead letters: nothing listens at 127.0.0.1:1");
    drop(status.says("PARKED shows the pairs of the spool folder alone."));
    let json = cli.run(&["keys", "status", "--json"]).await.good().json();
    let key = &json["keys"][0];
    assert_eq!(
        (&key["spooled_pairs"], &key["parked_pairs"]),
        (&1.into(), &serde_json::Value::Null),
        "{json}"
    );

    // A pair that waits counts, wherever the broker is.
    let strange =
        Cli::of(&world).set("AMQP_URL", "amqp://127.0.0.1:1/%2f").set("TOKENKEEPER_KEYS", &new_key("other"));
    strange.run(&["keys", "status"]).await.with_code(1).says("1 token, 1 provider, 1 parked pair");
}
