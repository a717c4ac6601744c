//! Many tokens found and reserved by one statement: what a claim reserves, and that nobody suffers for the company.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use sea_orm::ActiveValue::Set;
use sea_orm::{ActiveModelTrait, ConnectionTrait, EntityTrait, IntoActiveModel, TransactionTrait};
use secrecy::ExposeSecret;
use tokenkeeper::domain::clock::Timestamp;
use tokenkeeper::domain::decide::{Decision, Demand, Policy, decide};
use tokenkeeper::domain::provider::{Lifespan, RequiredWhileReserved};
use tokenkeeper::store::{AccountNames, Claim, Entry, Found, Guarded, NewPair, PairSource, StoreError};
use tokenkeeper_entity::token_entry;
use tokio::time::timeout;

use crate::harness::world::minutes;
use crate::harness::{Dialect, Kind, PATIENCE, World, on_every_database};

pub(crate) const USERS: usize = 60;

/// So many minutes after noon.
pub(crate) fn at(minute: i64) -> Timestamp {
    let noon = 720_u64;
    minutes(noon.checked_add_signed(minute).unwrap())
}

pub(crate) async fn put_token(world: &World, user: &str, expires_at: Timestamp) {
    let provider = world.store.provider(&world.scm.host()).await.unwrap().unwrap();
    let account = AccountNames { auth_id: user.to_owned(), auth_name: None };
    let pair = NewPair {
        access_token: format!("access of {user}").into(),
        refresh_token: Some(format!("refresh for {user}").into()),
        username: None,
        scopes: vec!["repo".to_owned()],
        expires_at: Some(expires_at),
        refresh_token_expires_at: None,
        source: PairSource::Login,
    };
    world.store.put_login(user, provider.id, &account, &pair, true, minutes(0)).await.unwrap();
}

/// Users with a pair each, which expires an hour after noon.
pub(crate) async fn world_with_users(kind: Kind) -> (World, Vec<String>) {
    let world = World::new(kind, Dialect::BitbucketServer).await;
    let users: Vec<String> = (0..USERS).map(|number| format!("user {number}")).collect();
    for user in &users {
        put_token(&world, user, at(60)).await;
    }
    (world, users)
}

async fn claim(world: &World, user: &str, until: i64) -> Claim {
    let provider = world.store.provider(&world.scm.host()).await.unwrap().unwrap();
    Claim {
        user_id: user.to_owned(),
        provider_id: provider.id,
        until: Some(at(until)),
        only_if_held_beyond: None,
        now: at(0),
    }
}

fn found(found: Result<Found, Arc<StoreError>>) -> Arc<Entry> {
    match found.unwrap() {
        Found::Entry(entry) => entry,
        other => panic!("no entry: {other:?}"),
    }
}

/// Every state that a claim could judge: expiry, reservation, lease, attempt, failure and report around noon.
pub(crate) fn states(entry: &token_entry::Model) -> Vec<token_entry::Model> {
    let ms = |minute| Some(at(minute).as_millis());
    let mut states = Vec::new();
    for expires_at in [None, ms(-1), ms(0), ms(5), ms(6), ms(60)] {
        for reserved_until in [None, ms(-1), ms(0), ms(1), ms(5), ms(30)] {
            for lease_until in [None, ms(-1), ms(0), ms(1)] {
                for attempt in [None, Some("sent".to_owned())] {
                    for failed_at in [None, ms(-2)] {
                        states.push(token_entry::Model {
                            expires_at,
                            reserved_until,
                            lease_until,
                            lease_holder: lease_until.map(|_| "somebody".to_owned()),
                            attempt_fingerprint: attempt.clone(),
                            failed_at,
                            failure_code: failed_at.map(|_| "provider_unavailable".to_owned()),
                            ..entry.clone()
                        });
                    }
                }
            }
            states.push(token_entry::Model {
                expires_at,
                reserved_until,
                reported_at: ms(-3),
                ..entry.clone()
            });
        }
    }
    states
}

/// Whatever the policy is, where the flag is on or not.
pub(crate) fn policies(opportunistic: bool) -> Vec<Policy> {
    let mut policies = Vec::new();
    for opportunistic_window in [None, Some(Duration::from_secs(60)), Some(Duration::from_secs(7200))] {
        for old_token_grace in [Lifespan::NONE, Lifespan::secs(600), Lifespan::Unlimited] {
            for required_while_reserved in [
                RequiredWhileReserved::Refresh,
                RequiredWhileReserved::Wait,
                RequiredWhileReserved::GrantRemaining,
            ] {
                policies.push(Policy {
                    opportunistic,
                    opportunistic_window,
                    old_token_grace,
                    required_while_reserved,
                });
            }
        }
    }
    policies
}

on_every_database! {
    async fn every_state_that_a_claim_reserves_is_served_under_every_policy(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        put_token(&world, "jdoe", at(60)).await;
        let db = world.connection().await;
        let row = token_entry::Entity::find_by_id(world.entry("jdoe").await.id).one(&db).await.unwrap().unwrap();
        let until = at(5);
        // What the next tokens are like is guessed from the last ones, so one that can be reserved goes before each.
        put_token(&world, "plain", at(60)).await;
        let mut until_of_plain = until;
        let (mut reserved, mut left) = (0, 0);
        for only_if_held_beyond in [None, Some(at(0)), Some(at(10))] {
            for state in states(&row) {
                state.clone().into_active_model().reset_all().update(&db).await.unwrap();
                let before = world.entry("jdoe").await;
                until_of_plain = until_of_plain.plus(Duration::from_millis(1));
                let of_plain = Claim { until: Some(until_of_plain), ..claim(&world, "plain", 5).await };
                found(world.store.claim(of_plain).await);
                let claim = Claim { only_if_held_beyond, ..claim(&world, "jdoe", 5).await };
                let plain = kind == Kind::Postgres && claim.is_plain(&before);
                let after = found(world.store.claim(claim).await);
                let grows = before.state.reserved_until < Some(until);
                assert_eq!(after.state != before.state, plain && grows, "{before:?}");
                if !plain {
                    left += 1;
                    continue;
                }
                reserved += 1;
                assert_eq!(after.state.reserved_until, Some(until));
                assert!(before.state.reserved_until.is_none_or(|before| before <= until), "it only grows");
                assert!(!before.has_live_lease(at(0)) && !before.is_in_doubt(), "{before:?}");
                assert_eq!(before.failure, None);
                let lifetime = Duration::from_secs(300);
                let demand = Demand { received_at: at(0), lifetime, deadline: at(1) };
                let policies = policies(only_if_held_beyond.is_some()).into_iter().filter(|policy| {
                    only_if_held_beyond.is_none_or(|beyond| policy.reservations_stand_from(at(0)) == beyond)
                });
                for policy in policies {
                    let decided = decide(Some(&before.state), at(0), &demand, &policy);
                    assert!(matches!(decided, Decision::Serve { .. }), "{before:?} {policy:?}: {decided:?}");
                    assert_eq!(decide(Some(&after.state), at(0), &demand, &policy), decided);
                }
            }
        }
        match kind {
            // Of each kind some, or nothing was shown.
            Kind::Postgres => assert!(reserved > 20 && left > reserved, "{reserved} reserved, {left} left"),
            Kind::Sqlite | Kind::MariaDb => assert_eq!(reserved, 0, "an UPDATE gives no rows back there"),
        }
    }

    async fn concurrent_claims_share_statements_and_each_finds_its_own_entry(kind: Kind) {
        let (world, users) = world_with_users(kind).await;
        let mut claims = Vec::new();
        for user in users.iter().chain(&users) {
            claims.push(claim(&world, user, 5).await);
        }
        claims.push(claim(&world, "nobody", 5).await);
        let mut answers = join_all(claims.into_iter().map(|claim| world.store.claim(claim))).await;
        assert!(matches!(answers.pop(), Some(Ok(Found::NoUser))));
        for (user, answer) in users.iter().chain(&users).zip(answers) {
            let token = world.store.open_access_token(&found(answer)).unwrap();
            assert!(token.expose_secret().ends_with(user.as_str()), "{user} got another user's token");
        }
    }

    async fn a_token_claimed_by_two_workers_at_once_is_reserved_for_as_long_as_each_was_told(kind: Kind) {
        let (world, users) = world_with_users(kind).await;
        let other = world.another_store().await;
        for round in 1..=20 {
            let mut asked = Vec::new();
            for (place, user) in users.iter().enumerate() {
                // Each of them is the longer one for half of the users.
                let [here, there] = if place % 2 == 0 { [round, round + 20] } else { [round + 20, round] };
                asked.push((&world.store, user, claim(&world, user, here).await));
                asked.push((&other, user, claim(&world, user, there).await));
            }
            let claims = asked.into_iter().map(async |(store, user, claim)| (user, found(store.claim(claim).await)));
            let mut told = Vec::new();
            for (user, entry) in join_all(claims).await {
                told.push((user, entry.state.reserved_until));
            }
            for (user, told) in told {
                let stands = world.entry(user).await.state.reserved_until;
                assert!(told <= stands, "{user} in round {round}: told {told:?}, reserved {stands:?}");
            }
        }
    }

    async fn concurrent_reservations_all_succeed(kind: Kind) {
        let (world, users) = world_with_users(kind).await;
        let entries = join_all(users.iter().map(|user| world.entry(user))).await;
        let reserve = |entry| world.store.reserve(entry, at(5), at(0));
        let reserved = join_all(entries.iter().map(reserve)).await;
        assert!(reserved.iter().all(|reserved| matches!(reserved, Ok(Guarded::Done))), "{reserved:?}");
        for user in &users {
            assert_eq!(world.entry(user).await.state.reserved_until, Some(at(5)), "{user}");
        }
    }

    async fn a_changed_entry_fails_alone_in_a_group_of_reservations(kind: Kind) {
        let (world, users) = world_with_users(kind).await;
        let entries = join_all(users.iter().map(|user| world.entry(user))).await;
        put_token(&world, &users[7], at(90)).await;
        let reserve = |entry| world.store.reserve(entry, at(5), at(0));
        let reserved = join_all(entries.iter().map(reserve)).await;
        assert!(matches!(reserved[7], Ok(Guarded::Moved)), "another pair was stored");
        assert_eq!(world.entry(&users[7]).await.state.reserved_until, None);
        for (place, user) in users.iter().enumerate().filter(|(place, _)| *place != 7) {
            // Where the database told only how many it reserved, the row is found reserved far enough.
            let until = world.entry(user).await.state.reserved_until;
            assert_eq!(until, Some(at(5)), "{user}: {:?}", reserved[place]);
        }
    }

    async fn a_row_that_cannot_be_read_fails_alone(kind: Kind) {
        let (world, users) = world_with_users(kind).await;
        let db = world.connection().await;
        let row = token_entry::Entity::find_by_id(world.entry(&users[7]).await.id).one(&db).await.unwrap().unwrap();
        token_entry::ActiveModel { scopes: Set("no list".to_owned()), ..row.into_active_model() }
            .update(&db)
            .await
            .unwrap();
        let mut claims = Vec::new();
        for user in &users {
            claims.push(claim(&world, user, 5).await);
        }
        let answers = join_all(claims.into_iter().map(|claim| world.store.claim(claim))).await;
        for (place, answer) in answers.into_iter().enumerate() {
            match answer {
                Ok(Found::Entry(_)) => assert_ne!(place, 7),
                Err(error) => assert!(place == 7 && matches!(*error, StoreError::Corrupt { .. }), "{error}"),
                other => panic!("{other:?}"),
            }
        }
    }

    async fn a_row_that_the_database_refuses_to_change_fails_alone(kind: Kind) {
        let (world, users) = world_with_users(kind).await;
        let entries = join_all(users.iter().map(|user| world.entry(user))).await;
        refuse_changes_of(&world, kind, entries[7].id).await;
        let reserve = |entry| world.store.reserve(entry, at(5), at(0));
        let reserved = join_all(entries.iter().map(reserve)).await;
        for (place, reserved) in reserved.into_iter().enumerate() {
            match reserved {
                Ok(Guarded::Done) => assert_ne!(place, 7),
                Err(error) => assert_eq!(place, 7, "{error}"),
                Ok(Guarded::Moved) => panic!("{place}"),
            }
        }
    }

    async fn a_row_that_somebody_holds_locked_keeps_nobody_else_waiting(kind: Kind) {
        let (world, users) = world_with_users(kind).await;
        let (first, rest) = users.split_first().unwrap();
        let entries = join_all(rest.iter().map(|user| world.entry(user))).await;
        let locked = world.entry(first).await;
        let db = world.connection().await;
        let transaction = db.begin().await.unwrap();
        let row = token_entry::Entity::find_by_id(locked.id).one(&transaction).await.unwrap().unwrap();
        let changed = token_entry::ActiveModel { username: Set(Some("changed".to_owned())), ..row.into_active_model() };
        match kind {
            // There a writer locks all rows.
            Kind::Sqlite => {}
            Kind::Postgres | Kind::MariaDb => drop(changed.update(&transaction).await.unwrap()),
        }
        let reserve = |entry| world.store.reserve(entry, at(5), at(0));
        // As a request does it: again, while the database says that it waits in vain.
        let held_up = async {
            loop {
                match reserve(&locked).await {
                    Err(error) if error.is_transient() => {}
                    reserved => break reserved,
                }
            }
        };
        let others = join_all(entries.iter().map(reserve));
        let (held_up, others) = tokio::join!(
            async {
                let held_up = timeout(PATIENCE, held_up).await;
                held_up.expect("it comes to its turn")
            },
            async {
                let others = timeout(PATIENCE, others).await.expect("the others do not wait for the lock");
                transaction.commit().await.unwrap();
                others
            }
        );
        assert!(others.iter().all(|reserved| matches!(reserved, Ok(Guarded::Done))), "{others:?}");
        assert!(matches!(held_up, Ok(Guarded::Done)), "{held_up:?}");
    }

    async fn a_request_that_stops_waiting_does_not_cancel_others_of_its_group(kind: Kind) {
        let (world, users) = world_with_users(kind).await;
        let mut claims = Vec::new();
        for user in &users {
            claims.push(claim(&world, user, 5).await);
        }
        let world = Arc::new(world);
        let asking: Vec<_> = claims
            .into_iter()
            .map(|claim| {
                let world = Arc::clone(&world);
                tokio::spawn(async move { world.store.claim(claim).await })
            })
            .collect();
        for gone in asking.iter().step_by(2) {
            gone.abort();
        }
        for (place, asking) in asking.into_iter().enumerate() {
            match timeout(PATIENCE, asking).await.expect("everybody hears something") {
                Ok(answer) => drop(found(answer)),
                Err(error) => assert!(error.is_cancelled() && place % 2 == 0, "{place}: {error}"),
            }
        }
    }
}

/// A trigger raises an error for whoever changes this row.
pub(crate) async fn refuse_changes_of(world: &World, kind: Kind, entry_id: i64) {
    let statements: &[String] = match kind {
        Kind::Sqlite => &[format!(
            "CREATE TRIGGER refuse BEFORE UPDATE ON token_entry WHEN OLD.id = {entry_id} \
             BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )],
        Kind::Postgres => &[
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$"
                .to_owned(),
            format!(
                "CREATE TRIGGER refuse BEFORE UPDATE ON token_entry FOR EACH ROW WHEN (OLD.id = {entry_id}) \
                 EXECUTE FUNCTION refuse()"
            ),
        ],
        Kind::MariaDb => &[format!(
            "CREATE TRIGGER refuse BEFORE UPDATE ON token_entry FOR EACH ROW \
             IF OLD.id = {entry_id} THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'refused'; END IF"
        )],
    };
    let db = world.connection().await;
    for statement in statements {
        db.execute_unprepared(statement).await.unwrap();
    }
}

/// What the reply says of a claimed token is what it would say without the claim.
#[test]
fn a_reply_tells_reserved_from_none_by_who_holds_the_token() {
    let state = |reserved_until: Option<Timestamp>| tokenkeeper::domain::decide::TokenState {
        expires_at: None,
        reserved_until,
        granted_lifetime: None,
        refreshable: true,
        in_doubt: false,
        reported: false,
    };
    let demand = Demand { received_at: at(0), lifetime: Duration::from_secs(300), deadline: at(1) };
    for opportunistic in [true, false] {
        for policy in
            policies(opportunistic).into_iter().filter(|policy| policy.opportunistic_window.is_none())
        {
            let decided = decide(Some(&state(Some(at(30)))), at(0), &demand, &policy);
            assert!(
                matches!(decided, Decision::Serve { reserved, .. } if reserved == opportunistic),
                "{decided:?}"
            );
        }
    }
}
