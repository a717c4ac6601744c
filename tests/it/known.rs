//! Entries that are served again without being loaded: what is believed of them, and what makes a worker look again.

use std::sync::Arc;
use std::time::Duration;

use sea_orm::{ActiveModelTrait, EntityTrait, IntoActiveModel, ModelTrait};
use tokenkeeper::domain::clock::Timestamp;
use tokenkeeper::domain::decide::{Decision, Demand, decide};
use tokenkeeper::store::{Claim, Found, Guarded, KnownEntry};
use tokenkeeper_entity::{identity, token_entry};

use crate::claims::{at, policies, put_token, states};
use crate::harness::{Dialect, Kind, World, on_every_database};

/// A world in which jdoe's pair expires an hour after noon and is held by somebody for five minutes.
async fn world_with_held_token(kind: Kind) -> (World, token_entry::Model) {
    let world = World::new(kind, Dialect::BitbucketServer).await;
    put_token(&world, "jdoe", at(60)).await;
    let row = row(&world).await;
    let held = token_entry::Model { reserved_until: Some(at(5).as_millis()), ..row };
    write(&world, &held).await;
    (world, held)
}

async fn row(world: &World) -> token_entry::Model {
    let (id, db) = (world.entry("jdoe").await.id, world.connection().await);
    token_entry::Entity::find_by_id(id).one(&db).await.unwrap().unwrap()
}

async fn write(world: &World, row: &token_entry::Model) {
    row.clone().into_active_model().reset_all().update(&world.connection().await).await.unwrap();
}

async fn provider_id(world: &World) -> i64 {
    world.store.provider(&world.scm.host()).await.unwrap().unwrap().id
}

/// Loads jdoe's token twice, without reserving it: who is asked for once is not kept in mind.
async fn load(world: &World, now: Timestamp) {
    load_once(world, now).await;
    load_once(world, now).await;
}

async fn load_once(world: &World, now: Timestamp) {
    let provider_id = provider_id(world).await;
    let claim =
        Claim { user_id: "jdoe".to_owned(), provider_id, until: None, only_if_held_beyond: Some(now), now };
    assert!(matches!(world.store.claim(claim).await, Ok(Found::Entry(_))));
}

async fn known(world: &World, now: Timestamp) -> Option<Arc<KnownEntry>> {
    world.store.known("jdoe", provider_id(world).await, now)
}

/// Reserves what is known of jdoe's token, as a request at noon would.
async fn reserve(world: &World, until: Timestamp) -> Guarded {
    let known = known(world, at(0)).await.expect("it was loaded, and somebody holds it");
    world.store.reserve_known(&known, until.max(known.reserved_until()), at(0)).await.unwrap()
}

on_every_database! {
    async fn what_is_known_is_reserved_without_another_look_and_never_for_less(kind: Kind) {
        let (world, _) = world_with_held_token(kind).await;
        assert!(known(&world, at(0)).await.is_none(), "nobody loaded it yet");
        load(&world, at(0)).await;
        for (until, reserved) in [(7, 7), (6, 7), (7, 7), (30, 30)] {
            assert_eq!(reserve(&world, at(until)).await, Guarded::Done);
            assert_eq!(world.entry("jdoe").await.state.reserved_until, Some(at(reserved)));
            assert_eq!(known(&world, at(0)).await.unwrap().reserved_until(), at(reserved));
        }
    }

    async fn a_token_that_was_loaded_once_is_loaded_a_second_time_and_known_then(kind: Kind) {
        let (world, _) = world_with_held_token(kind).await;
        load_once(&world, at(0)).await;
        assert!(known(&world, at(0)).await.is_none());
        load_once(&world, at(0)).await;
        assert!(known(&world, at(0)).await.is_some());
    }

    async fn a_token_that_nobody_holds_any_more_is_looked_at_again(kind: Kind) {
        let (world, _) = world_with_held_token(kind).await;
        load(&world, at(0)).await;
        assert!(known(&world, at(4)).await.is_some());
        assert!(known(&world, at(5)).await.is_none(), "a refresh may be due");
        load(&world, at(5)).await;
        assert!(known(&world, at(5)).await.is_none());
    }

    async fn whatever_happened_to_it_since_is_not_passed_over(kind: Kind) {
        let (world, held) = world_with_held_token(kind).await;
        let changes: [(&str, token_entry::Model); 9] = [
            ("another pair", token_entry::Model { generation: held.generation + 1, ..held.clone() }),
            ("a refresh", token_entry::Model {
                lease_holder: Some("somebody".to_owned()),
                lease_until: Some(at(1).as_millis()),
                ..held.clone()
            }),
            ("a doubt", token_entry::Model { attempt_fingerprint: Some("sent".to_owned()), ..held.clone() }),
            ("a failure", token_entry::Model { failed_at: Some(at(-1).as_millis()), ..held.clone() }),
            ("a report", token_entry::Model { reported_at: Some(at(-1).as_millis()), ..held.clone() }),
            ("longer held", token_entry::Model { reserved_until: Some(at(8).as_millis()), ..held.clone() }),
            ("not held", token_entry::Model { reserved_until: None, ..held.clone() }),
            ("held no more", token_entry::Model { reserved_until: Some(at(0).as_millis()), ..held.clone() }),
            ("other dates", token_entry::Model { expires_at: None, ..held.clone() }),
        ];
        for (what, changed) in changes {
            write(&world, &held).await;
            load(&world, at(0)).await;
            write(&world, &changed).await;
            assert_eq!(reserve(&world, at(7)).await, Guarded::Moved, "{what}");
            assert!(known(&world, at(0)).await.is_none(), "{what}: known no more");
            assert_eq!(row(&world).await, changed, "{what}: the row is left as it is");
        }
    }

    async fn a_token_that_is_gone_is_not_known_for_long(kind: Kind) {
        let (world, held) = world_with_held_token(kind).await;
        load(&world, at(0)).await;
        let db = world.connection().await;
        let owner = identity::Entity::find_by_id(held.identity_id).one(&db).await.unwrap().unwrap();
        held.delete(&db).await.unwrap();
        owner.delete(&db).await.unwrap();
        // The same user at the same provider, in another row.
        put_token(&world, "jdoe", at(60)).await;
        assert_eq!(reserve(&world, at(7)).await, Guarded::Moved);
        assert_eq!(world.entry("jdoe").await.state.reserved_until, None);
    }

    async fn what_is_served_unseen_would_be_served_after_another_look(kind: Kind) {
        let (world, held) = world_with_held_token(kind).await;
        let demand = Demand { received_at: at(0), lifetime: Duration::from_secs(300), deadline: at(1) };
        let (mut served, mut looked_at) = (0, 0);
        // One in five: every value of every column, and most pairs of them.
        for state in states(&held).into_iter().step_by(5) {
            write(&world, &token_entry::Model { expires_at: state.expires_at, ..held.clone() }).await;
            load(&world, at(0)).await;
            let known = known(&world, at(0)).await.unwrap().state();
            write(&world, &state).await;
            if reserve(&world, at(5)).await == Guarded::Moved {
                looked_at += 1;
                continue;
            }
            let seen = world.entry("jdoe").await.state;
            for policy in policies(true).into_iter().chain(policies(false)) {
                let unseen = decide(Some(&known), at(0), &demand, &policy);
                if matches!(unseen, Decision::Serve { .. }) {
                    assert_eq!(decide(Some(&seen), at(0), &demand, &policy), unseen, "{state:?} {policy:?}");
                    served += 1;
                }
            }
        }
        assert!(served > 30 && looked_at > 30, "{served} served, {looked_at} looked at");
    }
}
