//! A new key comes, and the old one goes, while workers answer requests.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::join_all;
use sea_orm::ConnectionTrait;
use tokenkeeper_testkit::queues::TOKEN_STORE;

use super::*;
use crate::harness::WorkerProcess;
use crate::harness::reply::token;

/// Logins and requests, one after the other, until `enough`. Any worker stores a pair, and any other one has to read it.
async fn log_in_and_request(world: &World, user: &str, enough: &AtomicBool, answered: &AtomicUsize) {
    while !enough.load(Ordering::SeqCst) {
        let pair = world.scm.authorize(user);
        let stored = world.broker.request(TOKEN_STORE, world.scm.token_store_body(&pair)).await;
        assert_eq!(stored.body["status"], "ok", "{}", stored.body);
        for _ in 0..5 {
            let reply = world.request(user).await;
            assert_eq!(token(&reply)["value"], pair.access_token.as_str());
            answered.fetch_add(1, Ordering::SeqCst);
        }
    }
}

async fn until_all_seal_with(world: &World, key_id: &str) {
    eventually(&format!("all workers to encrypt with {key_id}"), PATIENCE, async || {
        let workers = world.store.workers().await.unwrap();
        workers.iter().all(|worker| worker.seals_with.as_deref() == Some(key_id)).then_some(())
    })
    .await;
}

const BEGINS: &str = "what is stored from here on is encrypted with this key";
const WAITS: &str = "a newer encryption key waits until these workers have it too";

/// The old key goes from two workers, one after the other, as an operator does it.
async fn change_keys(world: &World, old: Vec<WorkerProcess>, new: &str) -> Vec<WorkerProcess> {
    let both = format!("{new},{}", world.keys);
    let mut next = Vec::new();
    for worker in old {
        next.push(WorkerProcess::spawn_with_keys(world, &both).await);
        assert!(next[0].log().contains(WAITS), "an old worker is there");
        worker.stop(world).await;
    }
    until_all_seal_with(world, "new").await;
    for worker in &next {
        assert!(worker.log().matches(WAITS).count() <= 1, "it is told once");
        assert!(worker.log().matches(BEGINS).count() <= 2, "with the old key, and with the new one");
    }
    refused(world, &world.keys).await.says("lack `new`");

    let rotated = Cli::of(world).set("TOKENKEEPER_KEYS", &both).run(&["keys", "rotate"]).await.good();
    assert!(rotated.stdout.contains("key `test` is not needed any more"), "{rotated:?}");

    let mut last = Vec::new();
    for worker in next {
        last.push(WorkerProcess::spawn_with_keys(world, new).await);
        worker.stop(world).await;
    }
    last
}

on_every_database! {
    async fn a_change_of_keys_fails_no_request(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let new = new_key("new");
        let (enough, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
        let old = world.spawn_workers(2).await;
        let change = async {
            let last = change_keys(&world, old, &new).await;
            enough.store(true, Ordering::SeqCst);
            last
        };
        let users = ["u-1", "u-2", "u-3"].map(|user| log_in_and_request(&world, user, &enough, &answered));
        let (last, _) = tokio::join!(change, join_all(users));

        for worker in last {
            worker.stop(&world).await;
        }
        let answered = answered.into_inner();
        assert!(answered > 100, "only {answered} requests were answered meanwhile");
        let alone = store_with(&world, &new).await;
        for user in ["u-1", "u-2", "u-3"] {
            alone.open_access_token(&entry(&alone, &world, user).await).unwrap();
        }
    }

    async fn a_worker_that_was_silent_while_others_changed_to_a_key_that_it_lacks_stops(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let frozen = WorkerProcess::spawn(&world).await;
        frozen.signal("STOP").await;
        let both = format!("{},{}", new_key("new"), world.keys);
        // As after two minutes without a database.
        let silent = "UPDATE worker SET last_seen_at = last_seen_at - 120000";
        world.connection().await.execute_unprepared(silent).await.unwrap();
        let early = WorkerProcess::spawn_with_keys(&world, &both).await;
        early.wait_for_log(WAITS, 1).await;
        early.stop(&world).await;
        silence_all(&world).await;
        let other = WorkerProcess::spawn_with_keys(&world, &both).await;
        assert!(!other.log().contains(WAITS), "nobody waits for one that is gone");

        frozen.signal("CONT").await;
        frozen.wait_for_log("this worker cannot read what the others store; it stops", 1).await;

        assert_eq!(frozen.wait(&world).await.code(), Some(1));
        other.stop(&world).await;
    }
}
