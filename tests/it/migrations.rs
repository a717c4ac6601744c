//! Migrations: down and up again, with data in the tables, on every database.

use std::collections::BTreeSet;

use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, Statement};
use secrecy::ExposeSecret;
use tokenkeeper::domain::clock::{Clock, SystemClock};
use tokenkeeper::store::database;
use tokenkeeper::store::{AccountNames, Found, NewPair, PairSource};
use tokenkeeper_migration::{Dropped, Migrator, MigratorTrait, dropped_by};

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
    since("create_token_entry")
}

/// How many migrations to take back until this one is not applied.
pub(crate) fn since(name: &str) -> u32 {
    let migrations = Migrator::migrations();
    let after = migrations.iter().rev().take_while(|migration| !migration.name().ends_with(name)).count();
    u32::try_from(after + 1).unwrap()
}

/// Every column of every table.
async fn columns(db: &DatabaseConnection) -> BTreeSet<(String, String)> {
    let query = match db.get_database_backend() {
        DbBackend::Postgres => {
            "SELECT table_name AS t, column_name AS c FROM information_schema.columns WHERE table_schema = current_schema()"
        }
        DbBackend::MySql => {
            "SELECT table_name AS t, column_name AS c FROM information_schema.columns WHERE table_schema = DATABASE()"
        }
        _ => {
            "SELECT m.name AS t, p.name AS c FROM sqlite_master m JOIN pragma_table_info(m.name) p WHERE m.type = 'table'"
        }
    };
    let rows = db.query_all_raw(Statement::from_string(db.get_database_backend(), query)).await.unwrap();
    rows.iter().map(|row| (row.try_get("", "t").unwrap(), row.try_get("", "c").unwrap())).collect()
}

/// A first login as workers stored it that know nothing of `token_entry.user_id`. The pair is a copy of the first one there is.
async fn log_in_as_before(db: &DatabaseConnection, user: &str) -> Result<(), DbErr> {
    let identity = format!(
        "INSERT INTO identity (user_id, provider_id, auth_id, created_at, updated_at) \
         SELECT '{user}', provider_id, '{user}', 1, 1 FROM identity WHERE user_id = 'jdoe'"
    );
    let entry = format!(
        "INSERT INTO token_entry (identity_id, generation, access_token_sealed, key_id, scopes, created_at, updated_at) \
         SELECT (SELECT id FROM identity WHERE user_id = '{user}'), generation, access_token_sealed, key_id, scopes, 1, 1 \
         FROM token_entry WHERE identity_id = (SELECT id FROM identity WHERE user_id = 'jdoe')"
    );
    db.execute_unprepared(&identity).await?;
    db.execute_unprepared(&entry).await.map(drop)
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

    async fn what_a_step_down_drops_is_what_is_told_before(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let db = database::open(&world.settings().database).await.unwrap();
        for migration in Migrator::migrations().iter().rev() {
            let before = columns(&db).await;
            Migrator::down(&db, Some(1)).await.unwrap();
            let after = columns(&db).await;
            let is_told = |(table, column): &(String, String)| {
                // They are copies of what `identity` has.
                (table == "token_entry" && ["user_id", "provider_id"].contains(&column.as_str()))
                    || dropped_by(migration.name()).iter().any(|dropped| match dropped {
                        Dropped::Table(told) => told == table,
                        Dropped::Column { table: of, column: told } => (of, told) == (table, column),
                    })
            };
            let untold: Vec<_> = before.difference(&after).filter(|column| !is_told(column)).collect();
            assert!(untold.is_empty(), "{} drops {untold:?}", migration.name());
        }
    }

    async fn an_entry_from_before_it_had_its_user_is_found_by_that_user(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let db = database::open(&world.settings().database).await.unwrap();
        assert_works(&world).await;
        Migrator::down(&db, Some(since("give_entries_their_user"))).await.unwrap();
        for number in 0..20 {
            log_in_as_before(&db, &format!("user {number}")).await.unwrap();
        }

        database::migrate(&db).await.unwrap();

        let provider = world.store.provider(&world.scm.host()).await.unwrap().unwrap();
        // What the steps down have dropped, the row was bound to: a login mends it.
        assert_works(&world).await;
        let jdoe = world.entry("jdoe").await;
        assert_eq!(world.store.open_access_token(&jdoe).unwrap().expose_secret(), "access");
        for number in 0..20 {
            let user = format!("user {number}");
            let entry = world.entry(&user).await;
            assert_eq!((entry.user_id, entry.provider_id), (user, provider.id));
            assert_ne!(entry.identity_id, jdoe.identity_id);
        }
    }

    async fn a_worker_that_does_not_know_the_user_of_an_entry_is_refused_a_first_login(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        assert_works(&world).await;
        let stored = log_in_as_before(&world.connection().await, "new").await;
        match kind {
            // There the columns are nullable: docs/operating.md says to stop the old worker.
            Kind::Sqlite => stored.unwrap(),
            Kind::Postgres | Kind::MariaDb => drop(stored.unwrap_err()),
        }
    }

    async fn migrating_twice_is_migrating_once(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        assert_works(&world).await;
        let db = database::open(&world.settings().database).await.unwrap();
        database::migrate(&db).await.unwrap();
        assert_works(&world).await;
    }
}
