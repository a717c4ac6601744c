//! Messages that no queue wants, and the policy that keeps them.

use serde_json::json;

use super::*;
use crate::harness::accounts::Policy;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_policy_a_message_for_nobody_lies_in_the_dead_letters_as_unroutable_and_is_sealed() {
    let world = world().await;
    let unroutable = json!({"alternate-exchange": world.broker.name("dead-letters")});
    let _policy = Policy::for_exchange(&world, world.broker.prefix(), &unroutable).await;
    let login = json!({"user_id": "u-1", "host": "h", "token": {"value": "s3cret-0123456789"}}).to_string();
    let channel = confirming(&world).await;
    eventually("the policy to be in force", PATIENCE, async || {
        let with = BasicProperties::default().with_message_id("m-1".into());
        let (exchange, key) = (world.broker.prefix().into(), "token.stroe".into());
        let options = BasicPublishOptions::default();
        let confirm = channel.basic_publish(exchange, key, options, login.as_bytes(), with).await;
        assert!(confirm.unwrap().await.unwrap().is_ack());
        (world.broker.queue_depth("dead-letters").await > 0).then_some(())
    })
    .await;
    let cli = Cli::of(&world);
    assert_eq!(listed(&cli).await[0]["reason"], "unroutable", "as the broker laid it there");

    let worker = world.spawn_worker().await;

    worker.wait_for_log("sealed messages that the broker had moved", 1).await;
    let letters = listed(&cli).await;
    assert!(
        letters.iter().all(|letter| letter["reason"] == "unroutable" && letter["id"] == "m-1"),
        "{letters:?}"
    );
    cli.run(&["dead", "drop", "--reason", "unroutable"]).await.good();
    worker.stop(&world).await;
}
