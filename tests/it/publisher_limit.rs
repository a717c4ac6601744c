//! A publisher who asks too often is stopped, alone, before anything is done for him.

use futures_util::future::join_all;
use serde_json::Value;
use tokenkeeper_testkit::queues::{BasicProperties, TOKEN_STORE};
use tokio::time::Instant;

use crate::harness::reply::{error_message, token};
use crate::harness::{Dialect, Kind, PATIENCE, World, eventually};

const REFUSALS: &str = r#"tokenkeeper_publisher_limit_refusals_total{type="token.request"}"#;

async fn world_with_users() -> World {
    let world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    let worker = world.start_worker().await;
    world.user_with_expired_token("jdoe").await;
    world.user_with_token("bystander").await;
    worker.stop().await;
    world
}

/// Properties that say who publishes; the broker checks that it is true.
fn named(world: &World) -> BasicProperties {
    BasicProperties::default().with_user_id(world.publisher().as_str().into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_too_often_is_told_for_how_long_and_others_are_served_meanwhile() {
    let mut world = world_with_users().await;
    world.set("limits.publisher_requests_per_second", 1).set("limits.publisher_burst", 5);
    let worker = world.spawn_worker().await;
    let started = Instant::now();

    let asked = join_all((0..100).map(|_| world.send_with("jdoe", named(&world)))).await;
    for _ in 0..4 {
        token(&world.request("bystander").await);
    }
    let replies: Vec<Value> = join_all(asked.into_iter().map(async |asked| asked.reply().await.body)).await;

    let (served, refused): (Vec<_>, Vec<_>) = replies.iter().partition(|reply| reply["status"] == "ok");
    // What the limit lets through, and not one more.
    let let_through = 5 + usize::try_from(started.elapsed().as_secs()).unwrap();
    assert!((5..=let_through).contains(&served.len()), "{} of {let_through}", served.len());
    for reply in &refused {
        assert!(error_message(reply, "provider_unavailable").contains("asks too often"), "{reply}");
        assert_eq!((&reply["error"]["retry_after_secs"], &reply["user_id"]), (&1.into(), &"jdoe".into()));
    }
    assert_eq!(worker.count(REFUSALS).await, refused.len());
    assert_eq!(world.scm.refresh_requests("jdoe"), 1, "one refresh for those who were served");
    let told = worker.log().matches("asks too often").count();
    assert!((1..=1 + started.elapsed().as_secs() / 10).contains(&(told as u64)), "told {told} times");

    eventually("the publisher to be served again", PATIENCE, async || {
        let reply = world.send_with("jdoe", named(&world)).await.reply().await.body;
        (reply["status"] == "ok").then_some(())
    })
    .await;
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_is_not_lost_where_nobody_would_hear_that_it_was_refused() {
    let mut world = world_with_users().await;
    world.set("limits.publisher_requests_per_second", 1);
    let worker = world.start_worker().await;
    let logins: Vec<_> = (0..20).map(|number| world.scm.authorize(&format!("user-{number}"))).collect();

    for login in &logins {
        world.broker.publish(TOKEN_STORE, world.scm.token_store_body(login).to_string(), named(&world)).await;
    }
    let heard = join_all(logins.iter().map(async |login| {
        world.broker.send(TOKEN_STORE, world.scm.token_store_body(login).to_string(), named(&world)).await
    }));
    let heard = join_all(heard.await.into_iter().map(async |sent| sent.reply().await.body)).await;

    let (stored, refused): (Vec<_>, Vec<_>) = heard.iter().partition(|reply| reply["status"] == "ok");
    for reply in &refused {
        error_message(reply, "provider_unavailable");
    }
    assert!(refused.len() > stored.len(), "where it is heard, it is refused: {stored:?}");
    let provider = world.store.provider(&world.scm.host()).await.unwrap().unwrap();
    for login in &logins {
        eventually("the login to be stored", PATIENCE, async || {
            let found = world.store.find(&login.user, provider.id).await.unwrap();
            matches!(found, tokenkeeper::store::Found::Entry(_)).then_some(())
        })
        .await;
    }
    worker.stop().await;
}
