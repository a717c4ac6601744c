//! `tokenkeeper keys rotate` and `tokenkeeper keys status`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokenkeeper::domain::clock::{Clock, SystemClock};
use tokenkeeper::store::{AccountNames, KeyRows, NewPair, Origin, PairSource, Resealed};
use tokenkeeper_testkit::queues::{BasicProperties, TOKEN_REQUEST, TOKEN_STORE};

use super::*;
use crate::harness::WorkerProcess;

fn login(token: &str) -> NewPair {
    NewPair {
        access_token: token.to_owned().into(),
        refresh_token: Some(format!("refresh of {token}").into()),
        username: None,
        scopes: vec![],
        expires_at: None,
        refresh_token_expires_at: None,
        source: PairSource::Login,
    }
}

async fn put(store: &Store, world: &World, user: &str, token: &str) {
    let provider = store.provider(&world.scm.host()).await.unwrap().unwrap();
    let account = AccountNames { auth_id: user.to_owned(), auth_name: None };
    store.put_login(user, provider.id, &account, &login(token), false, SystemClock.now()).await.unwrap();
}

/// One pass over all entries.
async fn reseal_entries(store: &Store) -> Resealed {
    let (mut after, mut all) = (0, Resealed::default());
    while let Some((last, page)) = store.reseal_entries(after).await.unwrap() {
        all.add(page);
        after = last;
    }
    all
}

on_every_database! {
    async fn what_is_stored_while_everything_is_re_encrypted_stays(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let users: Vec<String> = (0..300).map(|number| format!("u-{number}")).collect();
        for user in &users {
            put(&world.store, &world, user, "first").await;
        }
        let both = format!("{},{}", new_key("new"), world.keys);
        let rotating = store_with(&world, &both).await;

        let logins = async {
            for some in users.chunks(4) {
                join_all(some.iter().map(|user| put(&world.store, &world, user, "second"))).await;
            }
        };
        let (first, ()) = tokio::join!(reseal_entries(&rotating), logins);
        let second = reseal_entries(&rotating).await;

        assert!(first.unopened.is_empty() && second.unopened.is_empty());
        assert_eq!(reseal_entries(&rotating).await, Resealed::default());
        for user in &users {
            let entry = world.entry(user).await;
            assert_eq!(rotating.open_access_token(&entry).unwrap().expose_secret(), "second");
            let refresh_token = rotating.open_refresh_token(&entry).unwrap().unwrap();
            assert_eq!(refresh_token.expose_secret(), "refresh of second");
        }
        let rows = rotating.rows_by_key().await.unwrap();
        assert_eq!(rows["new"], KeyRows { tokens: 300, ..KeyRows::default() });
        assert_eq!(rows["test"], KeyRows { providers: 1, ..KeyRows::default() });
        assert_eq!(rotating.rows_to_reseal().await.unwrap(), 1);
        let before = world.store.provider(&world.scm.host()).await.unwrap().unwrap();
        assert_eq!(rotating.reseal_providers().await.unwrap().done, 1);
        let after = rotating.provider(&world.scm.host()).await.unwrap().unwrap();
        assert_eq!(after.updated_at, before.updated_at, "nobody's tokens are tried anew");
        assert_eq!(after.client_secret.expose_secret(), before.client_secret.expose_secret());
    }

    async fn parked_pairs_are_stored_and_an_unreadable_row_keeps_its_key(kind: Kind) {
        let mut world = World::new(kind, Dialect::GitHub).await;
        let spool = tempfile::tempdir().unwrap();
        world.set("worker.spool_dir", spool.path().display());
        // Declares the queues.
        world.start_worker().await.stop().await;
        for user in ["queued", "spooled", "damaged"] {
            put(&world.store, &world, user, "old pair").await;
        }
        let queued = parked(&world, "queued").await;
        world.broker.send_to_queue("parked-pairs", &queued, BasicProperties::default()).await;
        std::fs::write(spool.path().join("1-1-x.parked"), parked(&world, "spooled").await).unwrap();
        damage(&world, "damaged").await;
        let both = format!("{},{}", new_key("new"), world.keys);
        let cli = Cli::of(&world).set("TOKENKEEPER_KEYS", &both);

        let status = cli.run(&["keys", "status", "--json"]).await.good().keeps_secrets_of(&world).json();
        let key = |id: &str| status["keys"].as_array().unwrap().iter().find(|key| key["id"] == id).unwrap().clone();
        assert_eq!((&key("new")["ring"], &key("test")["ring"]), (&"first".into(), &"behind".into()));
        assert_eq!((&key("test")["tokens"], &key("test")["parked_pairs"]), (&3.into(), &2.into()));

        let rotated = cli.run(&["keys", "rotate"]).await.with_code(1).keeps_secrets_of(&world);
        assert!(rotated.stdout.contains("rows re-encrypted with key `new`") && rotated.stdout.contains("parked pairs stored: 2"), "{rotated:?}");
        assert!(rotated.stdout.contains("key `test` is still needed"), "{rotated:?}");
        let rotated = rotated.says("not re-encrypted: token_entry");
        drop(rotated);
        refused(&world, both.split(',').next().unwrap()).await.says("lack `test`");

        put(&store_with(&world, &both).await, &world, "damaged", "new pair").await;
        let rotated = cli.run(&["keys", "rotate"]).await.good();
        assert!(rotated.stdout.contains("key `test` is not needed any more"), "{rotated:?}");
        let alone = store_with(&world, both.split(',').next().unwrap()).await;
        for user in ["queued", "spooled", "damaged"] {
            let entry = entry(&alone, &world, user).await;
            assert_eq!(alone.open_access_token(&entry).unwrap().expose_secret(), "new pair");
        }
    }

    async fn nothing_is_re_encrypted_while_a_worker_lacks_the_new_key(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let worker = world.start_worker().await;
        world.user_with_token("jdoe").await;
        let both = format!("{},{}", new_key("new"), world.keys);
        let cli = Cli::of(&world).set("TOKENKEEPER_KEYS", &both);

        let refused = cli.run(&["keys", "rotate"]).await.with_code(1);
        refused.says("key `new` cannot be used yet").says("next: put it in front of the keys of every worker");

        let rows = world.store.rows_by_key().await.unwrap();
        assert_eq!(rows.into_iter().collect::<Vec<_>>(), [("test".to_owned(), KeyRows { tokens: 1, providers: 1, in_format_1: 0 })]);
        assert!(only_the_worlds_key_is_in_use(&world).await);
        // What a command stores meanwhile is sealed with the key that the worker has.
        let line = world.scm.token_store_body(&world.scm.authorize("imported")).to_string();
        cli.run_with_input(&["token", "import", "-"], &line).await.good();
        crate::harness::reply::token(&world.request("imported").await);
        let status = cli.run(&["keys", "status"]).await.good();
        assert_eq!(status.table()[1], ["new", "first", "-", "0", "0", "0", "0", "0", "0 of 1"], "{status:?}");
        assert!(status.stdout.lines().any(|line| line.starts_with("test") && line.trim_end().ends_with("1 of 1")));
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_that_never_stops_keeps_no_rotation_from_its_end() {
    let world = World::new(Kind::Postgres, Dialect::GitHub).await;
    for number in 0..300 {
        put(&world.store, &world, &format!("u-{number}"), "old pair").await;
    }
    let both = format!("{},{}", new_key("new"), world.keys);
    let worker = WorkerProcess::spawn_with_keys(&world, &both).await;
    // Logins of the same users, and messages that become dead letters, for as long as it takes.
    let ended = AtomicBool::new(false);
    let flood = async {
        let mut number = 0;
        while !ended.load(Ordering::SeqCst) {
            let pair = world.scm.authorize(&format!("u-{}", number % 300));
            let login = world.scm.token_store_body(&pair).to_string();
            let publish = |key, body: String| world.broker.publish(key, body, BasicProperties::default());
            tokio::join!(publish(TOKEN_STORE, login), publish(TOKEN_REQUEST, format!("no JSON {number}")));
            number += 1;
        }
    };
    let rotate = async {
        let rotated = Cli::of(&world).set("TOKENKEEPER_KEYS", &both).run(&["keys", "rotate"]).await;
        ended.store(true, Ordering::SeqCst);
        rotated.good()
    };

    let (rotated, ()) = tokio::join!(rotate, flood);

    assert!(rotated.stdout.contains("rows re-encrypted with key `new`"), "{rotated:?}");
    let rows = world.store.rows_by_key().await.unwrap();
    assert!(!rows.contains_key("test"), "{rows:?}");
    worker.stop(&world).await;
}

/// A pair that followed the user's present one, as a worker parks it.
pub(crate) async fn parked(world: &World, user: &str) -> Vec<u8> {
    let (entry, now) = (world.entry(user).await, SystemClock.now());
    let source = PairSource::Refresh {
        granted_lifetime: Some(Duration::from_secs(3600)),
        reserved_until: now,
        origin: Origin { login: None, asked_at: now },
    };
    world
        .store
        .seal_parked(&world.scm.host(), &entry, &NewPair { source, ..login("new pair") }, "flight")
        .encode()
}

/// Nobody can open the user's tokens any more.
async fn damage(world: &World, user: &str) {
    let id = world.entry(user).await.id;
    let other = world.entry("queued").await.id;
    let db = world.connection().await;
    let stolen = match db.get_database_backend() {
        // MariaDB does not read the table that it updates, unless by a table of its own.
        sea_orm::DbBackend::MySql => {
            format!("(SELECT * FROM (SELECT access_token_sealed FROM token_entry WHERE id = {other}) AS it)")
        }
        _ => format!("(SELECT access_token_sealed FROM token_entry WHERE id = {other})"),
    };
    let damage = format!("UPDATE token_entry SET access_token_sealed = {stolen} WHERE id = {id}");
    db.execute_unprepared(&damage).await.unwrap();
}
