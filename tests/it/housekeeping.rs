//! Housekeeping: what is removed, what is refreshed in time, what is left alone, and who does it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokenkeeper::app::lifecycle::Stop;
use tokenkeeper::domain::clock::{Clock, SystemClock, Timestamp};
use tokenkeeper::domain::secret::fingerprint;
use tokenkeeper::housekeeping::{Pass, Passed, pass_alone};
use tokenkeeper::store::{AccountNames, Failure, FailureKind, Found, Guarded, NewPair, PairSource};
use tokenkeeper_testkit::scm::IssuedPair;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::harness::{Dialect, Fault, Kind, PATIENCE, World, eventually, on_every_database};

const TTL: Duration = Duration::from_secs(60);

/// A date so many days from now; before now where it is negative.
fn days(days: i64) -> Timestamp {
    Timestamp::from_millis(SystemClock.now().as_millis() + days * 24 * 60 * 60 * 1000)
}

/// A pair of the SCM's that was stored `stored` days from now, with what matters here set.
async fn put(world: &World, user: &str, stored: i64, change: impl FnOnce(&mut NewPair)) -> IssuedPair {
    let issued = world.scm.authorize(user);
    let mut pair = NewPair {
        access_token: issued.access_token.clone().into(),
        refresh_token: Some(issued.refresh_token.clone().into()),
        username: None,
        scopes: vec![],
        expires_at: None,
        refresh_token_expires_at: None,
        source: PairSource::Login,
    };
    change(&mut pair);
    let provider = world.store.provider(&world.scm.host()).await.unwrap().unwrap();
    let account = AccountNames { auth_id: user.to_owned(), auth_name: None };
    world.store.put_login(user, provider.id, &account, &pair, false, days(stored)).await.unwrap();
    issued
}

/// Expired so many days ago, and without a refresh token.
async fn put_expired(world: &World, user: &str, ago: i64) {
    put(world, user, -ago - 1, |pair| {
        pair.expires_at = Some(days(-ago));
        pair.refresh_token = None;
    })
    .await;
}

/// Idle since a hundred days, with a refresh token that dies tomorrow.
async fn put_dying(world: &World, user: &str) -> IssuedPair {
    put(world, user, -100, |pair| pair.refresh_token_expires_at = Some(days(1))).await
}

/// Has the provider refuse this refresh token.
async fn condemn(world: &World, user: &str, refresh_token: &str) {
    let entry = world.entry(user).await;
    let now = SystemClock.now();
    let failure = Failure {
        kind: FailureKind::Refused,
        message: "invalid_grant".to_owned(),
        fingerprint: fingerprint(&refresh_token.to_owned().into()),
        at: now,
    };
    let taken = world.store.take_lease(&entry, None, "flight", "sent", now, TTL).await;
    assert_eq!(taken.unwrap(), Guarded::Done);
    assert_eq!(world.store.give_up(&entry, "flight", &failure).await.unwrap(), Guarded::Done);
}

async fn take_lease(world: &World, user: &str) {
    let entry = world.entry(user).await;
    let taken = world.store.take_lease(&entry, None, "flight", "sent", SystemClock.now(), TTL).await;
    assert_eq!(taken.unwrap(), Guarded::Done);
}

/// One pass, as `tokenkeeper housekeeping` does it.
async fn keep_house(world: &World) -> Pass {
    match pass_alone(&world.settings(), Arc::new(SystemClock), &Stop::default()).await.unwrap() {
        Passed::ToTheEnd(pass) => pass,
        Passed::Stopped(pass) => panic!("nobody told it to stop: {pass:?}"),
    }
}

async fn has_token(world: &World, user: &str) -> bool {
    let provider = world.store.provider(&world.scm.host()).await.unwrap().unwrap();
    match world.store.find(user, provider.id).await.unwrap() {
        Found::Entry(_) => true,
        Found::NoToken => false,
        other => panic!("{user} has lost the identity: {other:?}"),
    }
}

/// Which of these users still have a token.
async fn with_token<'a>(world: &World, users: &[&'a str]) -> Vec<&'a str> {
    let has = join_all(users.iter().map(|user| has_token(world, user))).await;
    users.iter().zip(has).filter_map(|(user, has)| has.then_some(*user)).collect()
}

const fn pass(removed: u64, refreshed: u64, failed: u64) -> Pass {
    Pass { removed, refreshed, failed, moved: 0 }
}

on_every_database! {
    async fn tokens_that_expired_long_ago_and_cannot_be_refreshed_are_removed_and_no_others(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        put_expired(&world, "without", 8).await;
        put(&world, "dead", -9, |pair| {
            pair.expires_at = Some(days(-8));
            pair.refresh_token_expires_at = Some(days(-1));
        }).await;
        let refused = put(&world, "refused", -9, |pair| pair.expires_at = Some(days(-8))).await;
        condemn(&world, "refused", &refused.refresh_token).await;

        put_expired(&world, "lately", 6).await;
        put(&world, "refreshable", -9, |pair| pair.expires_at = Some(days(-8))).await;
        put(&world, "other failure", -9, |pair| pair.expires_at = Some(days(-8))).await;
        condemn(&world, "other failure", "an earlier refresh token").await;
        put(&world, "for ever", -400, |pair| pair.refresh_token = None).await;
        put_expired(&world, "refreshed now", 8).await;
        take_lease(&world, "refreshed now").await;

        let done = keep_house(&world).await;

        assert_eq!(done, Pass { moved: 1, ..pass(3, 0, 0) });
        let users =
            ["without", "dead", "refused", "lately", "refreshable", "other failure", "for ever", "refreshed now"];
        assert_eq!(with_token(&world, &users).await, users[3..]);
        let worker = world.start_worker().await;
        assert_eq!(world.request("without").await["error"]["code"], "token_not_found");
        worker.stop().await;
    }

    async fn how_long_an_expired_token_is_kept_is_a_setting(kind: Kind) {
        let mut world = World::new(kind, Dialect::BitbucketServer).await;
        world.set("housekeeping.remove_after_days", 30);
        for (user, ago) in [("recently", 29), ("long ago", 31)] {
            put_expired(&world, user, ago).await;
        }
        assert_eq!(keep_house(&world).await, pass(1, 0, 0));
        assert_eq!(with_token(&world, &["recently", "long ago"]).await, ["recently"]);
    }

    async fn more_expired_tokens_than_a_page_holds_are_all_removed(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        for number in 0..230 {
            put_expired(&world, &format!("u-{number}"), 8).await;
        }
        assert_eq!(keep_house(&world).await, pass(230, 0, 0));
    }

    async fn a_token_that_changed_after_it_was_found_is_not_removed(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        let (now, cutoff) = (SystemClock.now(), days(-7));
        let found = async || world.store.expired_for_good(cutoff, now, 0, 10).await.unwrap().remove(0);

        // A new pair, of no use either: the generation alone tells.
        put_expired(&world, "jdoe", 8).await;
        let before = found().await;
        put_expired(&world, "jdoe", 8).await;
        assert_eq!(world.store.remove_expired(&before, cutoff, now).await.unwrap(), Guarded::Moved);

        // The same pair, which somebody refreshes now.
        let before = found().await;
        take_lease(&world, "jdoe").await;
        assert_eq!(world.store.remove_expired(&before, cutoff, now).await.unwrap(), Guarded::Moved);
        assert!(has_token(&world, "jdoe").await);
    }

    async fn a_pair_whose_refresh_token_dies_soon_is_refreshed_while_nobody_holds_it(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        put_dying(&world, "dying").await;

        put_dying(&world, "held").await;
        let held = world.entry("held").await;
        assert_eq!(world.store.reserve(&held, days(1), SystemClock.now()).await.unwrap(), Guarded::Done);
        put_dying(&world, "refreshed now").await;
        take_lease(&world, "refreshed now").await;
        let refused = put_dying(&world, "refused").await;
        condemn(&world, "refused", &refused.refresh_token).await;
        put(&world, "later", -100, |pair| pair.refresh_token_expires_at = Some(days(8))).await;
        // Half of its life is left: it is refreshed when it is used.
        put(&world, "short-lived", -1, |pair| pair.refresh_token_expires_at = Some(days(1))).await;
        put(&world, "no date", -80, |_| {}).await;

        assert_eq!(keep_house(&world).await, pass(0, 1, 0));

        let entry = world.entry("dying").await;
        assert_eq!(entry.generation, 2);
        assert!(entry.state.reserved_until.is_none_or(|until| until <= SystemClock.now()), "nobody holds it");
        for user in ["held", "refreshed now", "refused", "later", "short-lived", "no date"] {
            assert_eq!(world.scm.refresh_requests(user), 0, "{user}");
        }
    }

    async fn a_pair_that_nobody_used_for_long_is_refreshed_before_its_provider_forgets_it(kind: Kind) {
        for (dialect, due, not_yet) in [
            (Dialect::GitHub, 176, 174),
            (Dialect::Bitbucket, 84, 82),
            (Dialect::BitbucketServer, 84, 82),
        ] {
            let world = World::new(kind, dialect).await;
            put(&world, "idle", -due, |_| {}).await;
            put(&world, "less idle", -not_yet, |_| {}).await;
            assert_eq!(keep_house(&world).await, pass(0, 1, 0));
            assert_eq!(world.entry("idle").await.generation, 2);
        }
    }

    async fn a_pass_refreshes_so_many_and_those_that_failed_do_not_keep_the_others_waiting(kind: Kind) {
        let mut world = World::new(kind, Dialect::BitbucketServer).await;
        world.set("housekeeping.refresh_batch", 2);
        let users = ["u-1", "u-2", "u-3"];
        for user in users {
            put_dying(&world, user).await;
        }
        world.scm.fail_always(Fault::InvalidClient);
        assert_eq!(keep_house(&world).await, pass(0, 0, 2));
        world.scm.heal();
        assert_eq!(keep_house(&world).await, pass(0, 2, 0));
        assert_eq!(world.entry("u-3").await.generation, 2, "it had not failed");
        assert_eq!(keep_house(&world).await, pass(0, 1, 0));
        assert_eq!(keep_house(&world).await, pass(0, 0, 0));
    }

    async fn a_duty_belongs_to_one_worker_until_its_time_is_over(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let take = async |holder: &str, day: i64| {
            world.store.take_duty("test", holder, days(day), Duration::from_hours(36)).await.unwrap()
        };
        assert_eq!(take("a", 0).await, Guarded::Done, "the first one ever");
        assert_eq!(take("b", 1).await, Guarded::Moved, "it is a's");
        assert_eq!(take("a", 1).await, Guarded::Done, "it may keep it");
        assert_eq!(take("b", 2).await, Guarded::Moved, "it was kept");
        assert_eq!(take("b", 3).await, Guarded::Done, "a did not come again");
        assert_eq!(take("a", 4).await, Guarded::Moved, "it is b's");
        let races = join_all((0..8).map(|number| {
            let store = world.store.clone();
            let holder = format!("w-{number}");
            async move { store.take_duty("another", &holder, days(0), TTL).await.unwrap() }
        }));
        let won = races.await.into_iter().filter(|taken| *taken == Guarded::Done).count();
        assert_eq!(won, 1, "of eight who came at once");
    }

    async fn one_of_two_workers_keeps_house_and_the_other_takes_over_when_it_dies(kind: Kind) {
        let mut world = World::new(kind, Dialect::BitbucketServer).await;
        world.set("housekeeping.interval_secs", 3);
        let passes = |outcome: &str| format!("tokenkeeper_housekeeping_passes_total{{outcome=\"{outcome}\"}}");
        let (done, left) = (passes("done"), passes("left_to_another"));
        let first = world.spawn_worker().await;
        eventually("the first worker's pass", PATIENCE, async || (first.count(&done).await > 0).then_some(())).await;
        // It begins within the first one's interval, and again and again while the first one keeps the duty.
        let second = world.spawn_worker().await;
        eventually("the second worker to leave it", PATIENCE, async || {
            (second.count(&left).await > 0).then_some(())
        })
        .await;

        first.signal("KILL").await;
        put_expired(&world, "jdoe", 8).await;
        let before = second.count(&done).await;
        eventually("the second worker's pass", PATIENCE, async || {
            (second.count(&done).await > before && !has_token(&world, "jdoe").await).then_some(())
        })
        .await;
        second.stop(&world).await;
    }

    async fn the_command_shows_what_is_to_be_done_and_does_it(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        put_expired(&world, "gone", 8).await;
        put_dying(&world, "dying").await;
        put(&world, "fine", 0, |_| {}).await;
        let cli = crate::cli::Cli::of(&world);

        let table = cli.run(&["housekeeping", "--dry-run"]).await.good().keeps_secrets_of(&world);
        let rows: Vec<Vec<String>> =
            table.table().iter().map(|row| row.iter().map(|cell| (*cell).to_owned()).collect()).collect();
        assert_eq!(rows.len(), 3, "{rows:?}");
        assert_eq!(rows[1][..2], ["remove", "gone"]);
        assert_eq!(rows[2][..2], ["refresh", "dying"]);
        let due = cli.run(&["housekeeping", "--dry-run", "--json"]).await.good().json();
        assert_eq!(due[0]["user_id"], "gone");
        assert_eq!(due[0]["host"], world.scm.host());
        assert_eq!(due[1]["reason"], "refresh token expires soon");
        assert_eq!(with_token(&world, &["gone", "dying", "fine"]).await.len(), 3, "a dry run does nothing");
        assert_eq!(world.scm.refresh_requests("dying"), 0);

        let done = cli.run(&["housekeeping", "--json"]).await.good().keeps_secrets_of(&world).json();

        assert_eq!(done, serde_json::json!({"removed": 1, "refreshed": 1, "failed": 0, "moved": 0}));
        assert_eq!(with_token(&world, &["gone", "dying", "fine"]).await, ["dying", "fine"]);
        assert_eq!(world.entry("dying").await.generation, 2);
        assert_eq!(cli.run(&["housekeeping"]).await.good().stdout, "removed 0, refreshed 0, failed 0, taken meanwhile 0\n");
    }

    async fn a_pass_that_is_interrupted_says_how_far_it_came_and_loses_no_pair(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        put_expired(&world, "gone", 8).await;
        put_dying(&world, "dying").await;
        let gate = world.scm.hold_refreshes();
        let mut child = crate::cli::Cli::of(&world).start(&["housekeeping"]);
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
        gate.wait_for_parked(1).await;

        crate::cli::signal(&child, "INT").await;
        assert!(said.next_line().await.unwrap().unwrap().contains("finishing what is in hand"));
        gate.release();

        let ended = crate::cli::ended(child).await.with_code(130);
        assert!(said.next_line().await.unwrap().unwrap().contains("run the command again for the rest"));
        assert_eq!(ended.stdout, "removed 1, refreshed 0, failed 0, taken meanwhile 0\n");
        assert_eq!(world.entry("dying").await.generation, 2, "what the provider issued is stored");
    }
}
