//! Claims of tokens of every kind at once: what can be is reserved, and the rest is looked at.

use std::sync::Arc;

use futures_util::future::join_all;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};
use secrecy::ExposeSecret;
use tokenkeeper::domain::clock::Timestamp;
use tokenkeeper::store::{Claim, Entry, Found, StoreError, database};

use crate::claims::{at, put_token};
use crate::harness::{Dialect, Kind, World, on_every_database};

/// The most that share a statement (`store/group_commit.rs`).
const LARGEST_GROUP: usize = 128;

/// Until when tokens are claimed here.
const UNTIL: i64 = 5;

/// So many users, whose tokens expire then.
async fn put_users(world: &World, name: &str, count: usize, expires_at: Timestamp) -> Vec<String> {
    let users: Vec<String> = (0..count).map(|number| format!("{name} {number}")).collect();
    join_all(users.iter().map(|user| put_token(world, user, expires_at))).await;
    users
}

async fn claim_all(world: &World, users: &[String]) -> Vec<Result<Found, Arc<StoreError>>> {
    let provider = world.store.provider(&world.scm.host()).await.unwrap().unwrap();
    let claim = |user: &String| Claim {
        user_id: user.clone(),
        provider_id: provider.id,
        until: Some(at(UNTIL)),
        only_if_held_beyond: None,
        now: at(0),
    };
    join_all(users.iter().map(|user| world.store.claim(claim(user)))).await
}

async fn entries_of(world: &World, users: &[String]) -> Vec<Arc<Entry>> {
    let entry = |found: Result<Found, Arc<StoreError>>| match found.unwrap() {
        Found::Entry(entry) => entry,
        other => panic!("no entry: {other:?}"),
    };
    claim_all(world, users).await.into_iter().map(entry).collect()
}

fn are_reserved(entries: &[Arc<Entry>]) -> bool {
    entries.iter().all(|entry| entry.state.reserved_until == Some(at(UNTIL)))
}

fn are_as_they_were(entries: &[Arc<Entry>]) -> bool {
    entries.iter().all(|entry| entry.state.reserved_until.is_none())
}

on_every_database! {
    async fn concurrent_claims_with_different_outcomes_each_get_their_own(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        let valid = put_users(&world, "valid", 20, at(60)).await;
        let expired = put_users(&world, "expired", 20, at(-1)).await;
        let nobody: Vec<String> = (0..20).map(|number| format!("nobody {number}")).collect();
        let mixed: Vec<String> =
            (0..20).flat_map(|number| [&valid, &expired, &nobody].map(|users| users[number].clone())).collect();

        for (user, answer) in mixed.iter().zip(claim_all(&world, &mixed).await) {
            match answer.unwrap() {
                Found::Entry(entry) => {
                    let token = world.store.open_access_token(&entry).unwrap();
                    assert_eq!(token.expose_secret(), format!("access of {user}"), "somebody else's token");
                    let expires_at = if user.starts_with("valid") { at(60) } else { at(-1) };
                    assert_eq!(entry.state.expires_at, Some(expires_at), "{user}");
                }
                Found::NoUser => assert!(user.starts_with("nobody"), "{user}"),
                other => panic!("{user}: {other:?}"),
            }
        }
        for user in &expired {
            assert_eq!(world.entry(user).await.state.reserved_until, None, "{user}'s token cannot be served");
        }
    }
}

/// On one thread, so that who is asked for first is in the first statement.
#[tokio::test]
async fn while_tokens_cannot_be_reserved_claims_only_read() {
    let world = World::new(Kind::Postgres, Dialect::BitbucketServer).await;
    let expired = put_users(&world, "expired", LARGEST_GROUP, at(-1)).await;
    let valid = put_users(&world, "valid", LARGEST_GROUP, at(60)).await;
    let next = put_users(&world, "next", LARGEST_GROUP, at(60)).await;

    let entries = entries_of(&world, &[expired, valid, next].concat()).await;

    let groups: Vec<_> = entries.chunks(LARGEST_GROUP).collect();
    assert!(are_as_they_were(groups[0]), "an expired token is not reserved");
    assert!(are_as_they_were(groups[1]), "after a group that could not be reserved, one is looked at");
    assert!(are_reserved(groups[2]), "and after one that could have been, one is reserved again");
}

/// What is in force on a connection of this pool.
async fn in_force(pool: &DatabaseConnection, setting: &str) -> String {
    let show = Statement::from_string(DbBackend::Postgres, format!("SHOW {setting}"));
    pool.query_one_raw(show).await.unwrap().unwrap().try_get("", setting).unwrap()
}

#[tokio::test]
async fn only_statements_that_many_share_are_planned_once_and_by_key() {
    let world = World::new(Kind::Postgres, Dialect::BitbucketServer).await;
    let db = world.connection().await;
    let grouped = database::open_grouped(&world.settings().database, &db.clone().into()).await.unwrap();
    for (setting, for_groups, elsewhere) in
        [("plan_cache_mode", "force_generic_plan", "auto"), ("enable_seqscan", "off", "on")]
    {
        assert_eq!(in_force(&grouped, setting).await, for_groups);
        assert_eq!(in_force(&db, setting).await, elsewhere);
    }
}
