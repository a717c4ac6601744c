//! The statements that reserve a token or take its lease, against every state of its row: each lets through what the rules
//! say (`src/store/rules.rs`), and nothing else. `claims.rs` shows the same of the statement that finds and reserves at once.

use std::time::Duration;

use sea_orm::{ActiveModelTrait, DatabaseConnection, EntityTrait, IntoActiveModel};
use tokenkeeper::domain::clock::Timestamp;
use tokenkeeper::domain::decide::{Decision, Demand, Policy, decide};
use tokenkeeper::store::{Entry, Guarded};
use tokenkeeper_entity::token_entry;

use crate::claims::{at, policies, put_token, states};
use crate::harness::{Dialect, Kind, World, on_every_database};

/// A world in which jdoe has a token, and its row.
struct OneRow {
    world: World,
    db: DatabaseConnection,
    row: token_entry::Model,
}

impl OneRow {
    async fn new(kind: Kind) -> Self {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        put_token(&world, "jdoe", at(60)).await;
        let db = world.connection().await;
        let id = world.entry("jdoe").await.id;
        let row = token_entry::Entity::find_by_id(id).one(&db).await.unwrap().unwrap();
        Self { world, db, row }
    }

    /// Every state of a row whose token works for an hour, or has expired.
    fn states(&self) -> Vec<token_entry::Model> {
        let dates = [self.row.expires_at, Some(at(-1).as_millis())];
        states(&self.row).into_iter().filter(|state| dates.contains(&state.expires_at)).collect()
    }

    /// The entry, once its row is in this state.
    async fn put(&self, state: &token_entry::Model) -> Entry {
        state.clone().into_active_model().reset_all().update(&self.db).await.unwrap();
        self.world.entry("jdoe").await
    }
}

fn done_if(guard: bool) -> Guarded {
    if guard { Guarded::Done } else { Guarded::Moved }
}

fn lease_is_free(row: &token_entry::Model, now: Timestamp) -> bool {
    row.lease_until.is_none_or(|until| until <= now.as_millis())
}

fn not_reserved_beyond(row: &token_entry::Model, then: Timestamp) -> bool {
    row.reserved_until.is_none_or(|until| until <= then.as_millis())
}

/// No attempt, failure or report that was not there when the token was loaded.
fn is_ordinary(row: &token_entry::Model) -> bool {
    row.attempt_fingerprint.is_none() && row.failed_at.is_none() && row.reported_at.is_none()
}

/// Whether it is decided to refresh the token, and such a reservation would stand against that.
fn refreshes(entry: &Entry, policy: &Policy, unless_reserved_beyond: Option<Timestamp>) -> bool {
    let demand = Demand { received_at: at(0), lifetime: Duration::from_secs(300), deadline: at(1) };
    let Decision::Refresh(cause) = decide(Some(&entry.state), at(0), &demand, policy) else { return false };
    cause.unless_reserved_beyond(policy.old_token_grace, at(0)) == unless_reserved_beyond
}

on_every_database! {
    async fn a_token_is_reserved_where_nobody_refreshes_it_or_holds_it_for_longer(kind: Kind) {
        let one = OneRow::new(kind).await;
        let loaded_before = one.put(&one.row).await;
        let reserve = async |entry: &Entry| one.world.store.reserve(entry, at(5), at(0)).await.unwrap();
        for state in one.states() {
            let free = lease_is_free(&state, at(0)) && not_reserved_beyond(&state, at(5));
            one.put(&state).await;
            assert_eq!(reserve(&loaded_before).await, done_if(free && is_ordinary(&state)), "{state:?}");
            let loaded = one.put(&state).await;
            assert_eq!(reserve(&loaded).await, done_if(free), "{state:?}");
            let reserved_until = one.world.entry("jdoe").await.state.reserved_until;
            let expected = if free { Some(at(5)) } else { loaded.state.reserved_until };
            assert_eq!(reserved_until, expected, "{state:?}");
        }
    }

    async fn a_lease_is_taken_where_nobody_has_it_and_no_reservation_stands_against_it(kind: Kind) {
        let one = OneRow::new(kind).await;
        let loaded_before = one.put(&one.row).await;
        let take = async |entry: &Entry, unless_reserved_beyond| {
            let ttl = Duration::from_secs(60);
            let taken = one.world.store.take_lease(entry, unless_reserved_beyond, "one", "sent", at(0), ttl);
            taken.await.unwrap()
        };
        let policies: Vec<_> = [true, false].into_iter().flat_map(policies).collect();
        let mut decided_on = 0;
        for unless_reserved_beyond in [None, Some(at(0)), Some(at(10))] {
            for state in one.states() {
                let unreserved = unless_reserved_beyond.is_none_or(|then| not_reserved_beyond(&state, then));
                let free = lease_is_free(&state, at(0)) && unreserved;
                one.put(&state).await;
                let taken = take(&loaded_before, unless_reserved_beyond).await;
                assert_eq!(taken, done_if(free && is_ordinary(&state)), "{unless_reserved_beyond:?} {state:?}");
                let loaded = one.put(&state).await;
                let taken = take(&loaded, unless_reserved_beyond).await;
                assert_eq!(taken, done_if(free), "{unless_reserved_beyond:?} {state:?}");
                if policies.iter().any(|policy| refreshes(&loaded, policy, unless_reserved_beyond)) {
                    decided_on += 1;
                    assert!(unreserved, "what was decided on is stopped by a lease alone: {state:?}");
                }
            }
        }
        assert!(decided_on > 0);
    }
}
