//! A worker follows the database's clock, whatever its own machine's shows.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokenkeeper::domain::clock::{Clock, SystemClock, Timestamp};
use tokenkeeper::store::Guarded;

use crate::harness::logs::captured;
use crate::harness::reply::{error_message, token};
use crate::harness::world::own_time;
use crate::harness::{Dialect, Kind, PATIENCE, World, eventually, on_every_database};

const TEN_MINUTES_MS: i64 = 600_000;

/// A machine's clock that is off by so many milliseconds.
#[derive(Debug, Clone, Default)]
struct SkewedClock(Arc<AtomicI64>);

impl SkewedClock {
    fn by(ms: i64) -> Self {
        Self(Arc::new(AtomicI64::new(ms)))
    }
}

impl Clock for SkewedClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(SystemClock.now().as_millis() + self.0.load(Ordering::SeqCst))
    }
}

/// Ten minutes ahead and ten minutes behind, where an operator has allowed it.
async fn world_that_allows_skew(kind: Kind) -> World {
    let mut world = World::new(kind, Dialect::BitbucketServer).await;
    world.set("database.max_clock_offset_secs", 3600);
    world
}

fn distance(a: Timestamp, b: Timestamp) -> Duration {
    a.since(b).max(b.since(a))
}

on_every_database! {
    async fn the_database_says_what_time_it_is(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let off = distance(world.store.now().await.unwrap(), SystemClock.now());
        assert!(off < Duration::from_secs(2), "all of them run on this machine: {off:?}");
    }

    async fn a_worker_whose_clock_is_ten_minutes_ahead_leaves_a_reserved_token_alone(kind: Kind) {
        let world = world_that_allows_skew(kind).await;
        let punctual = world.start_worker().await;
        world.user_with_token("jdoe").await;
        token(&world.request_for("jdoe", 300).await);
        assert_eq!(world.scm.refreshes("jdoe"), 1);
        punctual.stop().await;
        let ahead = world.start_worker_in(own_time(SkewedClock::by(TEN_MINUTES_MS))).await;

        let reply = world.request_for("jdoe", 60).await;

        assert_eq!(reply["refresh"], "reserved", "{reply}");
        assert_eq!(world.scm.refreshes("jdoe"), 1);
        ahead.stop().await;
    }

    async fn a_reservation_by_a_worker_whose_clock_is_ten_minutes_behind_counts_for_other_workers(kind: Kind) {
        let world = world_that_allows_skew(kind).await;
        let behind = world.start_worker_in(own_time(SkewedClock::by(-TEN_MINUTES_MS))).await;
        world.user_with_token("jdoe").await;
        let reply = world.request_for("jdoe", 300).await;
        let reserved_until = token(&reply)["reserved_until"].as_str().unwrap();
        let expected = SystemClock.now().plus(Duration::from_secs(300));
        assert!(distance(Timestamp::parse_rfc3339(reserved_until).unwrap(), expected) < Duration::from_secs(5), "{reply}");
        behind.stop().await;
        let punctual = world.start_worker().await;
        assert_eq!(world.request_for("jdoe", 60).await["refresh"], "reserved");
        punctual.stop().await;
    }

    async fn a_worker_whose_clock_is_ten_minutes_ahead_respects_a_live_lease(kind: Kind) {
        let mut world = world_that_allows_skew(kind).await;
        world.set("refresh.wait_secs", 1);
        let ahead = world.start_worker_in(own_time(SkewedClock::by(TEN_MINUTES_MS))).await;
        world.user_with_expired_token("jdoe").await;
        let (entry, now, minute) = (world.entry("jdoe").await, SystemClock.now(), Duration::from_secs(60));
        let leased = world.store.take_lease(&entry, None, "another worker", "sent", now, minute).await;
        assert_eq!(leased.unwrap(), Guarded::Done);

        error_message(&world.request("jdoe").await, "refresh_timeout");

        assert_eq!(world.scm.refresh_requests("jdoe"), 0);
        ahead.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn setting_the_machines_clock_does_not_change_the_time_of_a_running_worker() {
    let world = World::new(Kind::Postgres, Dialect::BitbucketServer).await;
    let own = SkewedClock::default();
    let worker = world.start_worker_in(own_time(own.clone())).await;
    world.user_with_token("jdoe").await;
    token(&world.request_for("jdoe", 300).await);

    own.0.store(TEN_MINUTES_MS, Ordering::SeqCst);
    assert_eq!(world.request_for("jdoe", 60).await["refresh"], "reserved", "at once");
    eventually("the worker to notice and say so", PATIENCE, async || {
        captured().contains("this machine's clock differs from the database's").then_some(())
    })
    .await;
    assert_eq!(world.request_for("jdoe", 60).await["refresh"], "reserved", "and afterwards");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_clock_is_more_than_five_minutes_off_refuses_to_start_and_says_what_to_do() {
    let world = World::new(Kind::Postgres, Dialect::GitHub).await;
    for off in [-TEN_MINUTES_MS, TEN_MINUTES_MS] {
        let refused = world.try_start_worker_in(own_time(SkewedClock::by(off))).await;
        let Err(error) = refused else { panic!("it starts with a clock that is {off} ms off") };
        let error = format!("{error:#}");
        assert!(error.contains("clock") && error.contains("NTP"), "{error}");
        assert!(error.contains(&(off / 1000).to_string()), "{error}");
    }
    world.start_worker_in(own_time(SkewedClock::by(4 * 60_000))).await.stop().await;
}
