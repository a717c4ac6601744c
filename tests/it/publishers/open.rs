//! Workers without publishers in their settings, and those whose list is empty.

use serde_json::json;

use crate::cli::Cli;
use crate::harness::reply::{error_message, token};
use crate::harness::{Dialect, Kind, World};
use tokenkeeper_testkit::queues::{BasicProperties, TOKEN_REQUEST};

const WARNING: &str = "every user of the broker may ask for every token (publishers)";

async fn world() -> World {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    worker.stop().await;
    world
}

fn named(world: &World) -> BasicProperties {
    BasicProperties::default().with_user_id(world.publisher().as_str().into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_list_denies_everybody() {
    for key in ["publishers", "access.rules"] {
        let mut world = world().await;
        let worker = world.set(key, "[]").start_worker().await;
        error_message(&world.request("jdoe").await, "forbidden");
        error_message(&world.send_with("jdoe", named(&world)).await.reply().await.body, "forbidden");
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_list_whoever_names_itself_is_served_where_that_is_required() {
    let mut world = world().await;
    let worker = world.set("access.require_user_id", true).start_worker().await;
    error_message(&world.request("jdoe").await, "forbidden");
    token(&world.send_with("jdoe", named(&world)).await.reply().await.body);
    let invalid = world.broker.request(TOKEN_REQUEST, json!({"user_id": ""})).await.body;
    error_message(&invalid, "invalid_request");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_and_doctor_warn_where_every_user_of_a_shared_broker_may_ask() {
    let mut world = world().await;
    // Nobody has such a name (RFC 2606). The warning comes before the worker looks for its broker.
    world.set_broker_url("amqps://worker:s3cret@mq.invalid:5671/%2f".to_owned());
    let looked = Cli::of(&world).run(&["doctor"]).await;
    assert!(looked.stdout.contains("! publishers"), "{}", looked.stdout);
    assert!(looked.stdout.contains(WARNING) && !looked.stdout.contains("s3cret"), "{}", looked.stdout);
    let worker = world.launch_worker_process().await;
    worker.wait_for_log(WARNING, 1).await;
    worker.stop(&world).await;

    world.set("publishers", "[]");
    let looked = Cli::of(&world).run(&["doctor"]).await;
    assert!(
        looked.stdout.contains("nobody may ask") && !looked.stdout.contains(WARNING),
        "{}",
        looked.stdout
    );
    let worker = world.launch_worker_process().await;
    worker.wait_for_log("worker starting", 1).await;
    worker.stop(&world).await;
}
