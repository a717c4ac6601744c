//! Migrations: down and up again, with data in the tables, on every database.

use tokenkeeper::domain::clock::{Clock, SystemClock};
use tokenkeeper::store::database;
use tokenkeeper::store::{AccountNames, Found, NewPair, PairSource};
use tokenkeeper_migration::{Migrator, MigratorTrait};

use crate::harness::{Dialect, Kind, World, on_every_database};

/// Stores a pair for jdoe and finds it again.
async fn assert_works(world: &World) {
    let provider = world.store.provider(&world.scm.host()).await.unwrap().expect("the provider is there");
    let pair = NewPair {
        access_token: "access".to_owned().into(),
        refresh_token: None,
        username: None,
        scopes: vec![],
        expires_at: None,
        refresh_token_expires_at: None,
        source: PairSource::Login,
    };
    let account = AccountNames { auth_id: "jdoe".to_owned(), auth_name: None };
    let now = SystemClock.now();
    world.store.put_login("jdoe", provider.id, &account, &pair, false, now).await.unwrap();
    assert!(matches!(world.store.find("jdoe", provider.id).await, Ok(Found::Entry(_))));
}

/// How many migrations to take back until the table of tokens is gone, and no other one.
pub(crate) fn since_the_tokens() -> u32 {
    let migrations = Migrator::migrations();
    let newest_first = migrations.iter().rev();
    let after =
        newest_first.take_while(|migration| !migration.name().ends_with("create_token_entry")).count();
    u32::try_from(after + 1).unwrap()
}

on_every_database! {
    async fn each_number_of_steps_down_and_up_again_leaves_tables_that_work(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let db = database::open(&world.settings().database).await.unwrap();
        let all = u32::try_from(Migrator::migrations().len()).unwrap();
        assert_works(&world).await;
        for steps in 1..=all {
            Migrator::down(&db, Some(steps)).await.unwrap();
            let pending = database::pending_migrations(&db).await.unwrap();
            assert_eq!(pending.len(), usize::try_from(steps).unwrap(), "after {steps} down");

            database::migrate(&db).await.unwrap();

            assert_eq!(database::pending_migrations(&db).await.unwrap(), Vec::<String>::new());
            world.apply_provider(|_| {}).await;
            assert_works(&world).await;
        }
    }

    async fn going_down_takes_no_other_tables_data(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let db = database::open(&world.settings().database).await.unwrap();
        assert_works(&world).await;

        Migrator::down(&db, Some(since_the_tokens())).await.unwrap();
        database::migrate(&db).await.unwrap();

        let provider = world.store.provider(&world.scm.host()).await.unwrap().expect("it was not dropped");
        let found = world.store.find("jdoe", provider.id).await;
        assert!(matches!(found, Ok(Found::NoToken)), "the identity is there, its token was dropped: {found:?}");
        assert_works(&world).await;
    }

    async fn migrating_twice_is_migrating_once(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        assert_works(&world).await;
        let db = database::open(&world.settings().database).await.unwrap();
        database::migrate(&db).await.unwrap();
        assert_works(&world).await;
    }
}
