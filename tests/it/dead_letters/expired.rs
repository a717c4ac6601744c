//! What nobody took in its time: counted apart, and dropped without looking at the rest.

use serde_json::json;
use tokenkeeper_testkit::queues::{TOKEN_REQUEST, WORKSPACE_START};

use super::*;
use crate::database_loss::{go_away, world_behind_a_proxy};
use crate::harness::reply::token;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_expires_while_the_database_is_away_is_counted_apart_and_dropped_by_its_reason() {
    let (world, proxy) = world_behind_a_proxy().await;
    let cli = Cli::of(&world);
    let worker = world.spawn_worker().await;
    world.user_with_token("jdoe").await;
    world.broker.send(TOKEN_REQUEST, "{}", BasicProperties::default()).await.reply().await;
    go_away(&proxy);
    eventually("the worker to stop taking messages", PATIENCE, async || {
        worker.get("readyz").await.1.contains("does not consume").then_some(())
    })
    .await;
    let mut forged = FieldTable::default();
    forged.insert("x-tokenkeeper-reason".into(), AMQPValue::LongString("invalid_request".into()));
    let start =
        json!({"workspace_id": "ws-1", "user_id": "jdoe", "repositories": ["https://h/r"]}).to_string();
    for (key, body) in [(TOKEN_REQUEST, world.token_request("jdoe").to_string()), (WORKSPACE_START, start)] {
        for headers in [FieldTable::default(), forged.clone()] {
            let with = BasicProperties::default().with_expiration("200".into()).with_headers(headers);
            world.broker.send(key, &body, with).await;
        }
    }
    eventually("all of it to expire", PATIENCE, async || {
        (world.broker.queue_depth("dead-letters").await == 5).then_some(())
    })
    .await;
    proxy.accept();
    worker.wait_until_ready().await;

    token(&world.request("jdoe").await);
    assert_eq!(
        worker
            .count(r#"tokenkeeper_dead_letters_total{type="token.request",reason="invalid_request"}"#)
            .await,
        1
    );
    let summary = cli.run(&["dead", "summary", "--json"]).await.good().json();
    let counts: Vec<_> = summary
        .as_array()
        .unwrap()
        .iter()
        .map(|group| (group["reason"].as_str(), group["type"].as_str(), group["letters"].as_u64()))
        .collect();
    assert_eq!(
        counts,
        [
            (Some("expired"), Some("token.request"), Some(2)),
            (Some("expired"), Some("workspace.start"), Some(2)),
            (Some("invalid_request"), Some("token.request"), Some(1)),
        ]
    );
    let table = cli.run(&["dead", "summary"]).await.good();
    assert_eq!(table.table()[0], ["REASON", "TYPE", "LETTERS", "OLDEST", "NEWEST"]);
    let expired = cli.run(&["dead", "list", "--reason", "expired", "--json"]).await.good().json();
    assert_eq!(expired.as_array().unwrap().len(), 4);
    cli.run(&["dead", "list", "--reason", "odd"]).await.good().says("`tokenkeeper dead summary`");
    let dropped = cli.run(&["dead", "drop", "--reason", "expired"]).await.good();
    assert_eq!(dropped.stdout, "dropped 4, failed 0\n");
    let left = listed(&cli).await;
    assert_eq!((left.len(), &left[0]["reason"]), (1, &json!("invalid_request")));
    worker.stop(&world).await;
}
