//! The guarded UPDATEs of section 5, one by one: what each lets through, and what it stops.

use std::time::Duration;

use futures_util::future::join_all;
use sea_orm::ActiveValue::Set;
use sea_orm::{ActiveModelTrait, EntityTrait, IntoActiveModel};
use secrecy::ExposeSecret;
use tokenkeeper::domain::clock::Timestamp;
use tokenkeeper::store::{
    AccountNames, Entry, Failure, FailureKind, Found, Guarded, NewPair, Origin, PairSource, Store, StoreError,
};
use tokenkeeper_entity::token_entry;

use crate::harness::world::minutes;
use crate::harness::{Dialect, Kind, World, on_every_database};

const TTL: Duration = Duration::from_secs(60);

fn login(access_token: &str) -> NewPair {
    NewPair {
        access_token: access_token.to_owned().into(),
        refresh_token: Some(format!("refresh for {access_token}").into()),
        username: None,
        scopes: vec!["repo".to_owned()],
        expires_at: Some(minutes(120)),
        refresh_token_expires_at: None,
        source: PairSource::Login,
    }
}

fn refreshed(access_token: &str, reserved_until: Timestamp) -> NewPair {
    let origin = Origin { login: Some("another".to_owned()), asked_at: minutes(0) };
    let source =
        PairSource::Refresh { granted_lifetime: Some(Duration::from_secs(7200)), reserved_until, origin };
    NewPair { source, ..login(access_token) }
}

fn failure(fingerprint: &str) -> Failure {
    let message = "503".to_owned();
    Failure { kind: FailureKind::Unavailable, message, fingerprint: fingerprint.to_owned(), at: minutes(1) }
}

/// A world without workers, in which jdoe has a pair since minute 0.
async fn world_with_entry(kind: Kind) -> (World, Entry) {
    let world = World::new(kind, Dialect::BitbucketServer).await;
    put_login(&world, "jdoe", &login("access 1")).await;
    let entry = world.entry("jdoe").await;
    (world, entry)
}

async fn put_login(world: &World, user: &str, pair: &NewPair) {
    let provider = world.store.provider(&world.scm.host()).await.unwrap().unwrap();
    let account = AccountNames { auth_id: user.to_owned(), auth_name: None };
    world.store.put_login(user, provider.id, &account, pair, false, minutes(0)).await.unwrap();
}

async fn access_token(world: &World) -> String {
    let entry = world.entry("jdoe").await;
    world.store.open_access_token(&entry).unwrap().expose_secret().to_owned()
}

on_every_database! {
    async fn a_reservation_only_grows(kind: Kind) {
        let (world, entry) = world_with_entry(kind).await;
        let reserve = async |until| world.store.reserve(&entry, minutes(until), minutes(0)).await.unwrap();
        assert_eq!(reserve(30).await, Guarded::Done);
        assert_eq!(reserve(10).await, Guarded::Moved, "it does not shrink");
        assert_eq!(reserve(30).await, Guarded::Done, "it is that long already");
        assert_eq!(reserve(40).await, Guarded::Done);
        assert_eq!(world.entry("jdoe").await.state.reserved_until, Some(minutes(40)));
    }

    async fn the_longest_of_many_reservations_at_once_stays(kind: Kind) {
        let (world, entry) = world_with_entry(kind).await;
        let reserve = async |until| world.store.reserve(&entry, minutes(until), minutes(0)).await.unwrap();
        let at_once = join_all((1..=32).map(reserve)).await;
        // Which of the others came too late is chance; the longest one never does.
        assert_eq!(at_once.last(), Some(&Guarded::Done));
        for until in 1..32 {
            assert_eq!(reserve(until).await, Guarded::Moved, "{until}: a longer one is there");
        }
        assert_eq!(reserve(32).await, Guarded::Done);
        assert_eq!(world.entry("jdoe").await.state.reserved_until, Some(minutes(32)));
    }

    async fn nothing_is_reserved_under_a_live_lease(kind: Kind) {
        let (world, entry) = world_with_entry(kind).await;
        let taken = world.store.take_lease(&entry, None, "one", "sent", minutes(0), TTL).await.unwrap();
        assert_eq!(taken, Guarded::Done);
        let during = world.store.reserve(&entry, minutes(30), minutes(0)).await.unwrap();
        assert_eq!(during, Guarded::Moved);
        let entry = world.entry("jdoe").await;
        let during = world.store.reserve(&entry, minutes(30), minutes(0)).await.unwrap();
        assert_eq!(during, Guarded::Moved);
        let after = world.store.reserve(&entry, minutes(30), minutes(1)).await.unwrap();
        assert_eq!(after, Guarded::Done, "a lease that is over stops nobody");
    }

    async fn one_of_many_gets_the_lease(kind: Kind) {
        let (world, entry) = world_with_entry(kind).await;
        let holders: Vec<String> = (0..16).map(|number| format!("holder {number}")).collect();
        let taken = join_all(holders.iter().map(|holder| {
            world.store.take_lease(&entry, None, holder, "sent", minutes(0), TTL)
        }))
        .await;
        let done = taken.into_iter().filter(|taken| matches!(taken, Ok(Guarded::Done))).count();
        assert_eq!(done, 1);
    }

    async fn a_live_reservation_stops_an_opportunistic_lease_and_no_other(kind: Kind) {
        let (world, entry) = world_with_entry(kind).await;
        assert_eq!(world.store.reserve(&entry, minutes(30), minutes(0)).await.unwrap(), Guarded::Done);
        let take = async |unless_reserved_beyond, now| {
            let entry = world.entry("jdoe").await;
            let taken = world.store.take_lease(&entry, unless_reserved_beyond, "one", "sent", minutes(now), TTL);
            taken.await.unwrap()
        };
        assert_eq!(take(Some(minutes(29)), 29).await, Guarded::Moved);
        assert_eq!(take(Some(minutes(30)), 20).await, Guarded::Done, "the old token works until then");
        assert_eq!(take(Some(minutes(30)), 30).await, Guarded::Done, "it is over");
        assert_eq!(take(None, 35).await, Guarded::Done);
    }

    async fn an_attempt_is_dated_by_the_first_time_its_refresh_token_was_sent(kind: Kind) {
        let (world, entry) = world_with_entry(kind).await;
        let take = async |holder, attempt, now| {
            let entry = world.entry("jdoe").await;
            let taken = world.store.take_lease(&entry, None, holder, attempt, minutes(now), TTL).await;
            assert_eq!(taken.unwrap(), Guarded::Done);
            world.entry("jdoe").await
        };
        assert_eq!(entry.attempted_at, None);
        assert_eq!(take("one", "sent", 10).await.attempted_at, Some(minutes(10)));
        assert_eq!(take("two", "sent", 20).await.attempted_at, Some(minutes(10)));
        assert_eq!(take("three", "another", 30).await.attempted_at, Some(minutes(30)));
        let entry = world.entry("jdoe").await;
        assert_eq!(world.store.give_up(&entry, "three", &failure("another")).await.unwrap(), Guarded::Done);
        assert_eq!(world.entry("jdoe").await.attempted_at, None, "nothing is in doubt");
        assert_eq!(take("four", "another", 40).await.attempted_at, Some(minutes(40)));
    }

    async fn a_report_changes_only_the_generation_that_was_loaded(kind: Kind) {
        let (world, entry) = world_with_entry(kind).await;
        assert!(!entry.state.reported);
        assert_eq!(world.store.report(&entry, minutes(1)).await.unwrap(), Guarded::Done);
        assert_eq!(world.store.report(&entry, minutes(2)).await.unwrap(), Guarded::Done, "once more");
        assert!(world.entry("jdoe").await.state.reported);
        assert_eq!(world.store.reserve(&entry, minutes(30), minutes(0)).await.unwrap(), Guarded::Moved);
        let reported = world.entry("jdoe").await;
        assert_eq!(world.store.reserve(&reported, minutes(30), minutes(0)).await.unwrap(), Guarded::Done);
        assert_eq!(world.store.take_lease(&reported, None, "one", "sent", minutes(0), TTL).await.unwrap(), Guarded::Done);
        let pair = refreshed("access-2", minutes(40));
        let stored = world.store.store_refreshed(&reported, &pair, "one", minutes(3)).await.unwrap();
        assert!(!stored.unwrap().state.reported);
        assert!(!world.entry("jdoe").await.state.reported, "the new pair is not reported");
        assert_eq!(world.store.report(&reported, minutes(4)).await.unwrap(), Guarded::Moved);
    }

    async fn no_lease_is_given_over_a_failure_that_was_not_loaded(kind: Kind) {
        let (world, entry) = world_with_entry(kind).await;
        let take = async |entry: &Entry, holder| {
            world.store.take_lease(entry, None, holder, "sent", minutes(0), TTL).await.unwrap()
        };
        assert_eq!(take(&entry, "one").await, Guarded::Done);
        assert_eq!(world.store.give_up(&entry, "one", &failure("sent")).await.unwrap(), Guarded::Done);
        assert_eq!(take(&entry, "two").await, Guarded::Moved);
        let entry = world.entry("jdoe").await;
        assert_eq!(take(&entry, "two").await, Guarded::Done, "it knows now");
        let later = Failure { at: minutes(2), ..failure("sent") };
        assert_eq!(world.store.give_up(&entry, "two", &later).await.unwrap(), Guarded::Done);
        assert_eq!(take(&entry, "three").await, Guarded::Moved, "of another failure than the last one");
    }

    async fn a_lease_is_renewed_and_given_back_by_its_holder_alone(kind: Kind) {
        let (world, entry) = world_with_entry(kind).await;
        let store = &world.store;
        assert_eq!(store.take_lease(&entry, None, "one", "sent", minutes(0), TTL).await.unwrap(), Guarded::Done);
        assert_eq!(store.renew_lease(&entry, "two", minutes(0), TTL).await.unwrap(), Guarded::Moved);
        assert_eq!(store.give_up(&entry, "two", &failure("f")).await.unwrap(), Guarded::Moved);
        let half = minutes(0).plus(TTL / 2);
        assert_eq!(store.renew_lease(&entry, "one", half, TTL).await.unwrap(), Guarded::Done);
        assert!(world.entry("jdoe").await.has_live_lease(minutes(1)));
        assert_eq!(store.give_up(&entry, "one", &failure("f")).await.unwrap(), Guarded::Done);
        let after = world.entry("jdoe").await;
        assert_eq!((after.lease, after.failure), (None, Some(failure("f"))));
    }

    async fn a_lease_that_is_left_in_doubt_stops_nobody_and_stays_on_record_until_the_doubt_is_settled(kind: Kind) {
        let (world, entry) = world_with_entry(kind).await;
        let store = &world.store;
        assert_eq!(store.take_lease(&entry, None, "one", "sent", minutes(0), TTL).await.unwrap(), Guarded::Done);
        assert_eq!(store.give_up_in_doubt(&entry, "two", &failure("f")).await.unwrap(), Guarded::Moved);
        assert_eq!(store.give_up_in_doubt(&entry, "one", &failure("f")).await.unwrap(), Guarded::Done);
        let left = world.entry("jdoe").await;
        assert!(left.is_in_doubt() && !left.has_live_lease(failure("f").at), "{:?}", left.lease);
        assert_eq!(store.take_lease(&left, None, "two", "sent", minutes(1), TTL).await.unwrap(), Guarded::Done);
        assert_eq!(store.give_up(&left, "two", &failure("f")).await.unwrap(), Guarded::Done);
        assert!(!world.entry("jdoe").await.is_in_doubt());
    }

    async fn a_newer_pair_is_never_overwritten_by_an_older_one(kind: Kind) {
        let (world, seen_before) = world_with_entry(kind).await;
        let stored = world.store.store_refreshed(&seen_before, &refreshed("access 2", minutes(5)), "one", minutes(1)).await;
        let stored = stored.unwrap().expect("the generation had not moved");
        assert_eq!(stored.generation, seen_before.generation + 1);

        let stale = world.store.store_refreshed(&seen_before, &refreshed("stale", minutes(5)), "one", minutes(2)).await;

        assert!(stale.unwrap().is_none());
        assert_eq!(access_token(&world).await, "access 2");
        let reserve = world.store.reserve(&seen_before, minutes(90), minutes(2)).await.unwrap();
        assert_eq!(reserve, Guarded::Moved, "nor is the new pair reserved for who saw the old one");
        let lease = world.store.take_lease(&seen_before, None, "one", "sent", minutes(9), TTL).await.unwrap();
        assert_eq!(lease, Guarded::Moved);
    }

    async fn of_two_pairs_for_one_refresh_token_the_one_that_was_asked_for_later_stays(kind: Kind) {
        let (world, seen_before) = world_with_entry(kind).await;
        let asked = |name: &str, at: u64, obtained_from: &Entry, until: u64| {
            let origin = obtained_from.origin_of_successor(minutes(at));
            let source = PairSource::Refresh { granted_lifetime: None, reserved_until: minutes(until), origin };
            NewPair { source, ..login(name) }
        };
        let store = async |pair: NewPair| {
            let stored = world.store.store_refreshed(&seen_before, &pair, "one", minutes(9)).await.unwrap();
            stored.map(|entry| entry.generation)
        };
        assert_eq!(store(asked("second", 2, &seen_before, 30)).await, Some(2));
        assert_eq!(store(asked("first", 1, &seen_before, 60)).await, None, "it is older");
        assert_eq!(access_token(&world).await, "second");
        assert_eq!(store(asked("second", 2, &seen_before, 30)).await, Some(2), "stored already: an answer was lost");

        assert_eq!(store(asked("third", 3, &seen_before, 20)).await, Some(3));
        assert_eq!(access_token(&world).await, "third");
        assert_eq!(world.entry("jdoe").await.state.reserved_until, Some(minutes(30)), "a reservation only ever grows");

        put_login(&world, "jdoe", &login("login")).await;
        assert_eq!(store(asked("fourth", 4, &seen_before, 60)).await, None, "a login wins");
        let after_login = world.entry("jdoe").await;
        let of_login = asked("fifth", 5, &after_login, 60);
        assert!(world.store.store_refreshed(&after_login, &of_login, "one", minutes(9)).await.unwrap().is_some());
        assert_eq!(store(asked("sixth", 6, &seen_before, 60)).await, None, "and so does what comes of it");
        assert_eq!(access_token(&world).await, "fifth");
    }

    async fn a_pair_leaves_the_lease_of_a_flight_that_took_over_alone(kind: Kind) {
        let (world, entry) = world_with_entry(kind).await;
        let store = &world.store;
        let take = async |entry: &Entry, holder, now| {
            store.take_lease(entry, None, holder, "sent", minutes(now), TTL).await.unwrap()
        };
        assert_eq!(take(&entry, "frozen", 0).await, Guarded::Done);
        let seen_after = world.entry("jdoe").await;
        assert_eq!(take(&seen_after, "one", 9).await, Guarded::Done);

        let thawed = store.store_refreshed(&entry, &refreshed("first", minutes(9)), "frozen", minutes(9)).await;

        assert!(thawed.unwrap().is_some());
        let current = world.entry("jdoe").await;
        assert!(current.has_live_lease(minutes(9)) && current.is_in_doubt(), "{:?}", current.lease);
        assert_eq!(store.release(entry.id, "frozen").await.unwrap(), Guarded::Moved, "it is not its own");
        assert_eq!(store.release(entry.id, "one").await.unwrap(), Guarded::Done);
        let released = world.entry("jdoe").await;
        assert!(released.lease.is_none() && !released.is_in_doubt());
    }

    async fn nothing_is_reserved_over_an_attempt_or_a_failure_that_was_not_loaded(kind: Kind) {
        let (world, entry) = world_with_entry(kind).await;
        let store = &world.store;
        let reserve = async |entry: &Entry| store.reserve(entry, minutes(60), minutes(9)).await.unwrap();
        let take = async |entry: &Entry, holder, now| {
            store.take_lease(entry, None, holder, "sent", minutes(now), TTL).await.unwrap()
        };
        assert_eq!(take(&entry, "one", 0).await, Guarded::Done);
        assert_eq!(reserve(&entry).await, Guarded::Moved, "the lease is over, and nobody knows what came of it");
        assert_eq!(take(&entry, "two", 9).await, Guarded::Moved);
        let attempted = world.entry("jdoe").await;
        assert_eq!(store.give_up_in_doubt(&attempted, "one", &failure("sent")).await.unwrap(), Guarded::Done);
        assert_eq!(reserve(&attempted).await, Guarded::Moved, "it has failed since");
        assert_eq!(reserve(&world.entry("jdoe").await).await, Guarded::Done);
    }

    async fn a_lease_that_ran_out_is_not_renewed_also_where_nobody_took_it(kind: Kind) {
        let (world, entry) = world_with_entry(kind).await;
        let store = &world.store;
        let taken = store.take_lease(&entry, None, "one", "sent", minutes(0), TTL).await;
        assert_eq!(taken.unwrap(), Guarded::Done);
        assert_eq!(store.renew_lease(&entry, "one", minutes(1), TTL).await.unwrap(), Guarded::Moved);
    }

    async fn storing_a_pair_clears_lease_failure_and_reservation(kind: Kind) {
        let (world, entry) = world_with_entry(kind).await;
        let store = &world.store;
        assert_eq!(store.take_lease(&entry, None, "one", "sent", minutes(0), TTL).await.unwrap(), Guarded::Done);
        assert_eq!(store.give_up(&entry, "one", &failure("f")).await.unwrap(), Guarded::Done);
        let entry = world.entry("jdoe").await;
        assert_eq!(store.reserve(&entry, minutes(90), minutes(0)).await.unwrap(), Guarded::Done);
        assert_eq!(store.take_lease(&entry, None, "one", "sent", minutes(0), TTL).await.unwrap(), Guarded::Done);

        let in_memory = store.store_refreshed(&entry, &refreshed("access 2", minutes(5)), "one", minutes(1)).await.unwrap();

        let stored = world.entry("jdoe").await;
        assert_eq!((&stored.lease, &stored.failure), (&None, &None));
        assert_eq!(stored.state.reserved_until, Some(minutes(5)), "of the request that refreshed, not longer");
        assert_eq!(stored.state.granted_lifetime, Some(Duration::from_secs(7200)));
        let in_memory = in_memory.expect("it was stored");
        assert_eq!((in_memory.state, in_memory.generation), (stored.state, stored.generation));
    }

    async fn logins_at_once_make_one_identity_with_one_pair(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        let pairs: Vec<NewPair> = (0..12).map(|number| login(&format!("access {number}"))).collect();
        join_all(pairs.iter().map(|pair| put_login(&world, "jdoe", pair))).await;
        let entry = world.entry("jdoe").await;
        assert_eq!(entry.generation, 12, "each of them was stored, one after the other");
        assert!(access_token(&world).await.starts_with("access "));
    }

    async fn users_are_told_apart_byte_by_byte(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        let users = ["a", "A", "a ", "á", "a\u{301}"];
        for user in users {
            put_login(&world, user, &login(&format!("access of {user}"))).await;
        }
        for user in users {
            let entry = world.entry(user).await;
            let token = world.store.open_access_token(&entry).unwrap();
            assert_eq!(token.expose_secret(), format!("access of {user}"));
        }
        let provider = world.store.provider(&world.scm.host()).await.unwrap().unwrap();
        assert!(matches!(world.store.find("B", provider.id).await, Ok(Found::NoUser)));
    }

    async fn the_longest_tokens_that_are_taken_come_back_whole(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        let long = "t".repeat(16 * 1024);
        let pair = NewPair { refresh_token: Some(long.clone().into()), ..login(&long) };
        put_login(&world, "jdoe", &pair).await;
        let entry = world.entry("jdoe").await;
        assert_eq!(access_token(&world).await, long);
        assert_eq!(world.store.open_refresh_token(&entry).unwrap().unwrap().expose_secret(), long);
    }

    async fn without_its_key_a_pair_is_not_decrypted_and_the_error_names_the_key(kind: Kind) {
        let (world, entry) = world_with_entry(kind).await;
        let other_keys = tokenkeeper::domain::secret::KeyRing::generate("other").expose_secret().to_owned();
        let db = tokenkeeper::store::database::open(&world.settings().database).await.unwrap();
        let store = Store::new(db, tokenkeeper::domain::secret::KeyRing::parse(&other_keys).unwrap());
        let error = store.open_access_token(&entry).unwrap_err();
        assert!(matches!(error, StoreError::Sealed { .. }));
        assert!(error.to_string().contains("token_entry"), "{error}");
        assert!(format!("{:#}", anyhow::Error::from(error)).contains("`test`"));
    }

    async fn a_ciphertext_that_is_moved_to_another_row_or_column_does_not_open(kind: Kind) {
        let (world, theirs) = world_with_entry(kind).await;
        put_login(&world, "mallory", &login("access of mallory")).await;
        let mine = world.entry("mallory").await;
        let db = tokenkeeper::store::database::open(&world.settings().database).await.unwrap();
        let row = |id| token_entry::Entity::find_by_id(id).one(&db);
        let stolen = row(theirs.id).await.unwrap().unwrap();
        for sealed in [stolen.access_token_sealed, stolen.refresh_token_sealed.unwrap()] {
            let mut changed = row(mine.id).await.unwrap().unwrap().into_active_model();
            changed.access_token_sealed = Set(sealed);
            changed.update(&db).await.unwrap();
            let moved = world.entry("mallory").await;
            assert!(matches!(world.store.open_access_token(&moved), Err(StoreError::Sealed { .. })));
        }
        let mut swapped = row(theirs.id).await.unwrap().unwrap().into_active_model();
        swapped.access_token_sealed = Set(swapped.refresh_token_sealed.clone().unwrap().unwrap());
        swapped.update(&db).await.unwrap();
        let swapped = world.entry("jdoe").await;
        assert!(matches!(world.store.open_access_token(&swapped), Err(StoreError::Sealed { .. })));
    }
}
