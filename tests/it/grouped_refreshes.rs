//! Leases and refreshed pairs of many flights at once: one statement for all of them on PostgreSQL, one for each elsewhere, and
//! nobody sees the difference.

use std::convert::Infallible;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{join_all, select_all};
use sea_orm::ActiveValue::Set;
use sea_orm::{ActiveModelTrait, ConnectionTrait, EntityTrait, IntoActiveModel, TransactionTrait};
use secrecy::ExposeSecret;
use tokenkeeper::store::database;
use tokenkeeper::store::{Claim, Entry, Guarded, NewPair, Origin, PairSource, Store};
use tokenkeeper_entity::token_entry;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::claims::{at, put_token, refuse_changes_of, world_with_users};
use crate::harness::world::store_of;
use crate::harness::{Kind, PATIENCE, World, on_every_database};

const TTL: Duration = Duration::from_secs(60);

async fn entries(world: &World, users: &[String]) -> Vec<Entry> {
    join_all(users.iter().map(|user| world.entry(user))).await
}

fn holder(entry: &Entry) -> String {
    format!("flight of {}", entry.id)
}

/// What a refresh at minute 1 issued, reserved until minute 20.
fn issued(entry: &Entry) -> NewPair {
    NewPair {
        access_token: format!("new access of {}", entry.id).into(),
        refresh_token: Some(format!("new refresh of {}", entry.id).into()),
        username: (entry.id % 2 == 0).then(|| format!("git-{}", entry.id)),
        scopes: vec!["repo".to_owned(), "with \"quotes\"".to_owned()],
        expires_at: (entry.id % 3 != 0).then(|| at(120)),
        refresh_token_expires_at: (entry.id % 5 == 0).then(|| at(500)),
        source: PairSource::Refresh {
            granted_lifetime: (entry.id % 3 != 0).then(|| Duration::from_secs(7200)),
            reserved_until: at(20),
            origin: Origin { login: None, asked_at: at(1) },
        },
    }
}

/// Reserves a token for longer and longer, with a pause in between, and counts how often.
async fn hold_on(store: &Store, user: &str, provider_id: i64, reserved: &Notify) -> Infallible {
    const PAUSE: Duration = Duration::from_millis(5);
    let mut until = at(5);
    loop {
        until = until.plus(Duration::from_millis(1));
        let (user_id, until) = (user.to_owned(), Some(until));
        store
            .claim(Claim { user_id, provider_id, until, only_if_held_beyond: None, now: at(0) })
            .await
            .unwrap();
        reserved.notify_one();
        sleep(PAUSE).await;
    }
}

/// Each row that is reserved takes longer than the pause of those who reserve it.
async fn make_reservations_slow(world: &World) {
    let db = world.connection().await;
    for statement in [
        "CREATE FUNCTION take_long() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN PERFORM pg_sleep(0.02); RETURN NEW; END $$",
        "CREATE TRIGGER take_long BEFORE UPDATE ON token_entry FOR EACH ROW \
         WHEN (NEW.lease_holder IS NULL AND NEW.generation = OLD.generation) EXECUTE FUNCTION take_long()",
    ] {
        db.execute_unprepared(statement).await.unwrap();
    }
}

async fn take_leases(world: &World, entries: &[Entry]) -> Vec<Guarded> {
    let taken =
        join_all(entries.iter().map(async |entry| {
            world.store.take_lease(entry, None, &holder(entry), "sent", at(0), TTL).await
        }));
    taken.await.into_iter().map(Result::unwrap).collect()
}

on_every_database! {
    async fn what_many_flights_take_and_store_is_each_ones_own(kind: Kind) {
        let (world, users) = world_with_users(kind).await;
        let entries = entries(&world, &users).await;
        assert!(take_leases(&world, &entries).await.into_iter().all(|taken| taken == Guarded::Done));
        for (user, entry) in users.iter().zip(&entries) {
            let lease = world.entry(user).await.lease.expect("a lease");
            assert_eq!((lease.holder, lease.until), (holder(entry), at(1)), "{user}");
        }
        let pairs: Vec<NewPair> = entries.iter().map(issued).collect();
        let stored = join_all(entries.iter().zip(&pairs).map(async |(entry, pair)| {
            world.store.store_refreshed(entry, pair, &holder(entry), at(1)).await
        }));
        for ((stored, user), pair) in stored.await.into_iter().zip(&users).zip(&pairs) {
            let told = stored.unwrap().expect("nothing newer was there");
            let found = world.entry(user).await;
            let access_token = world.store.open_access_token(&found).unwrap();
            assert_eq!(access_token.expose_secret(), pair.access_token.expose_secret());
            let refresh_token = world.store.open_refresh_token(&found).unwrap().expect("a refresh token");
            assert_eq!(refresh_token.expose_secret(), pair.refresh_token.as_ref().unwrap().expose_secret());
            // All columns: what is told is what was written.
            assert_eq!(format!("{found:?}"), format!("{told:?}"));
            assert_eq!((found.generation, found.lease, found.attempt), (2, None, None), "{user}");
            assert_eq!((&found.username, &found.scopes), (&pair.username, &pair.scopes));
            assert_eq!((found.state.expires_at, found.state.reserved_until), (pair.expires_at, Some(at(20))));
        }
    }

    async fn who_may_not_have_the_lease_is_refused_alone(kind: Kind) {
        let (world, users) = world_with_users(kind).await;
        let entries = entries(&world, &users).await;
        put_token(&world, &users[3], at(90)).await;
        let other = world.store.take_lease(&entries[7], None, "another", "sent", at(0), TTL).await.unwrap();
        assert_eq!(other, Guarded::Done);
        assert_eq!(world.store.reserve(&entries[11], at(5), at(0)).await.unwrap(), Guarded::Done);
        let taken = join_all(entries.iter().map(async |entry| {
            // What is reserved stops an opportunistic refresh and no other.
            let unless_reserved_beyond = (entry.id % 2 == entries[11].id % 2).then_some(at(0));
            world.store.take_lease(entry, unless_reserved_beyond, &holder(entry), "sent", at(0), TTL).await
        }));
        for (place, taken) in taken.await.into_iter().enumerate() {
            let refused = [3, 7, 11].contains(&place);
            assert_eq!(taken.unwrap() == Guarded::Moved, refused, "{place}");
        }
        assert_eq!(world.entry(&users[7]).await.lease.unwrap().holder, "another");
    }

    async fn a_live_lease_without_an_attempt_on_record_is_a_lease(kind: Kind) {
        let (world, users) = world_with_users(kind).await;
        let entries = entries(&world, &users[..1]).await;
        let db = world.connection().await;
        let row = token_entry::Entity::find_by_id(entries[0].id).one(&db).await.unwrap().unwrap();
        let leased = token_entry::ActiveModel {
            lease_holder: Set(Some("another".to_owned())),
            lease_until: Set(Some(at(1).as_millis())),
            ..row.into_active_model()
        };
        leased.update(&db).await.unwrap();
        assert_eq!(take_leases(&world, &entries).await, [Guarded::Moved]);
    }

    async fn leases_and_pairs_do_not_wait_for_an_endless_run_of_reservations(kind: Kind) {
        let (mut world, users) = world_with_users(kind).await;
        let entries = entries(&world, &users).await;
        let settings = world.set("database.max_connections", 1).settings();
        let store = store_of(&settings, database::open(&settings.database).await.unwrap()).await;
        let provider = store.provider(&world.scm.host()).await.unwrap().unwrap();
        if kind == Kind::Postgres {
            make_reservations_slow(&world).await;
        }
        let (holding, refreshing) = entries.split_at(4);
        let reserved = Notify::new();
        let holding = select_all(users[..holding.len()].iter().enumerate().map(|(place, user)| {
            let (store, reserved) = (&store, &reserved);
            async move {
                // While the statement for some runs the others come: there is always a next group.
                sleep(Duration::from_millis(if place % 2 == 0 { 0 } else { 10 })).await;
                hold_on(store, user, provider.id, reserved).await
            }
            .boxed()
        }));
        let refreshing = refreshing.iter().map(async |entry| {
            let taken = store.take_lease(entry, None, &holder(entry), "sent", at(0), TTL).await;
            let stored = store.store_refreshed(entry, &issued(entry), &holder(entry), at(1)).await;
            assert_eq!(taken.unwrap(), Guarded::Done);
            assert!(stored.unwrap().is_some(), "nothing newer is there");
        });
        let refreshing = async {
            reserved.notified().await;
            join_all(refreshing).await
        };
        tokio::select! {
            refreshed = timeout(PATIENCE, refreshing) => drop(refreshed.expect("they come to their turn")),
            (never, ..) = holding => match never {},
        }
    }

    async fn a_flight_that_asks_for_its_lease_once_more_has_it_and_no_other_does(kind: Kind) {
        let (world, users) = world_with_users(kind).await;
        let entries = entries(&world, &users[..2]).await;
        for _ in 0..2 {
            assert_eq!(take_leases(&world, &entries).await, [Guarded::Done, Guarded::Done]);
        }
        let other = world.store.take_lease(&entries[0], None, "another", "sent", at(0), TTL).await.unwrap();
        assert_eq!(other, Guarded::Moved);
        let release = world.store.release(entries[0].id, &holder(&entries[0])).await.unwrap();
        assert_eq!(release, Guarded::Done);
        put_token(&world, &users[1], at(90)).await;
        assert_eq!(take_leases(&world, &entries).await, [Guarded::Done, Guarded::Moved], "of another pair");
    }

    async fn a_pair_that_comes_too_late_is_not_stored_and_the_others_are(kind: Kind) {
        let (world, users) = world_with_users(kind).await;
        let entries = entries(&world, &users).await;
        put_token(&world, &users[7], at(90)).await;
        let stored = join_all(entries.iter().map(async |entry| {
            world.store.store_refreshed(entry, &issued(entry), &holder(entry), at(1)).await
        }));
        for (place, stored) in stored.await.into_iter().enumerate() {
            assert_eq!(stored.unwrap().is_none(), place == 7, "{place}");
        }
        let login = world.store.open_access_token(&world.entry(&users[7]).await).unwrap();
        assert_eq!(login.expose_secret(), format!("access of {}", users[7]));
    }

    async fn a_row_that_the_database_refuses_to_change_costs_no_other_flight_its_pair(kind: Kind) {
        let (world, users) = world_with_users(kind).await;
        let entries = entries(&world, &users).await;
        refuse_changes_of(&world, kind, entries[7].id).await;
        let flights = join_all(entries.iter().map(async |entry| {
            let taken = world.store.take_lease(entry, None, &holder(entry), "sent", at(0), TTL).await;
            let stored = world.store.store_refreshed(entry, &issued(entry), &holder(entry), at(1)).await;
            (taken, stored)
        }));
        for (place, (taken, stored)) in flights.await.into_iter().enumerate() {
            assert_eq!((taken.is_err(), stored.is_err()), (place == 7, place == 7), "{place}: {taken:?}");
        }
    }

    async fn a_row_that_somebody_holds_locked_keeps_no_other_pair_waiting(kind: Kind) {
        let (world, users) = world_with_users(kind).await;
        let entries = entries(&world, &users).await;
        let db = world.connection().await;
        let transaction = db.begin().await.unwrap();
        let row = token_entry::Entity::find_by_id(entries[7].id).one(&transaction).await.unwrap().unwrap();
        let changed = token_entry::ActiveModel { username: Set(Some("changed".to_owned())), ..row.into_active_model() };
        match kind {
            // There a writer locks all rows.
            Kind::Sqlite => {}
            Kind::Postgres | Kind::MariaDb => drop(changed.update(&transaction).await.unwrap()),
        }
        // As a flight does it: again, while the database says that it waits in vain.
        let store = async |entry: &Entry| loop {
            match world.store.store_refreshed(entry, &issued(entry), &holder(entry), at(1)).await {
                Err(error) if error.is_transient() => {}
                stored => break stored.unwrap().is_some(),
            }
        };
        let others = entries.iter().enumerate().filter(|(place, _)| *place != 7).map(|(_, entry)| store(entry));
        let others = async {
            let others = timeout(PATIENCE, join_all(others)).await.expect("the others do not wait for the lock");
            transaction.commit().await.unwrap();
            others
        };
        let held_up = timeout(2 * PATIENCE, store(&entries[7]));
        let (held_up, others) = tokio::join!(held_up, others);
        assert!(others.into_iter().all(|stored| stored) && held_up.expect("it comes to its turn"));
    }
}
