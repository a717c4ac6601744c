//! A host that refuses everybody: the fault of its settings, for which no user is asked to log in again.

mod client;

use serde_json::json;
use tokenkeeper::domain::clock::Timestamp;
use tokenkeeper::store::{FailureKind, Guarded};

use crate::cli::Cli;
use crate::harness::events::Listener;
use crate::harness::reply::{error_message, token};
use crate::harness::{Dialect, Fault, InProcessWorker, Kind, PATIENCE, World, eventually, on_every_database};

const MISCONFIGURED: &str = "provider_misconfigured";
const REAUTHORIZE: &str = "reauthorization_required";

/// A world whose replicas probe a host that refuses everybody in this interval, and so many of them.
async fn world_and_workers(kind: Kind, secs: u64, workers: usize) -> (World, Vec<InProcessWorker>) {
    let mut world = World::new(kind, Dialect::BitbucketServer).await;
    // The tests ask for the same users more often than that in a minute.
    world.set("refresh.circuit_open_secs", secs).set("refresh.identity_limit_per_minute", 0);
    let mut started = Vec::new();
    for _ in 0..workers {
        started.push(world.start_worker().await);
    }
    (world, started)
}

async fn stop(workers: Vec<InProcessWorker>) {
    for worker in workers {
        worker.stop().await;
    }
}

async fn expired_users(world: &World, count: usize) -> Vec<String> {
    let users: Vec<String> = (0..count).map(|number| format!("user-{number}")).collect();
    for user in &users {
        world.user_with_expired_token(user).await;
    }
    users
}

/// Since when the database says that the host refuses everybody.
async fn refusing_since(world: &World) -> Option<i64> {
    let provider = world.store.provider(&world.scm.host()).await.unwrap().expect("it was applied");
    provider.refusing_since.map(Timestamp::as_millis)
}

/// Lets the host refuse five users, of whom the fifth shows that it is not their fault.
async fn refuse_everybody(world: &World, users: &[String]) {
    world.scm.fail_always(Fault::InvalidGrant);
    for user in &users[..4] {
        error_message(&world.request(user).await, REAUTHORIZE);
    }
    error_message(&world.request(&users[4]).await, MISCONFIGURED);
}

/// Elsewhere a wrong secret has a name of its own, so it is the users who are refused: all of them must log in again.
#[tokio::test]
async fn where_a_refusal_says_nothing_of_the_settings_each_of_many_hears_that_a_login_is_needed() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let users = expired_users(&world, 8).await;
    world.scm.fail_always(Fault::InvalidGrant);
    for user in &users {
        error_message(&world.request(user).await, REAUTHORIZE);
    }
    assert_eq!(refusing_since(&world).await, None);
    world.scm.heal();
    error_message(&world.request(&users[0]).await, REAUTHORIZE);
    worker.stop().await;
}

/// Waits until all workers know that a host refuses everybody, or that it does not.
async fn wait_until_answered(world: &World, user: &str, code: &str) {
    eventually(&format!("{user} to be answered {code}"), PATIENCE, async || {
        (world.request(user).await["error"]["code"] == code).then_some(())
    })
    .await;
}

/// A worker believes its copy of the provider for a second; nobody is condemned meanwhile.
async fn wait_until_all_know(world: &World, users: &[String]) {
    eventually("all workers to know that the host refuses everybody", PATIENCE, async || {
        let asked = world.scm.log().len();
        for user in users {
            error_message(&world.request(user).await, MISCONFIGURED);
        }
        (world.scm.log().len() == asked).then_some(())
    })
    .await;
}

async fn wait_until_served(world: &World, user: &str) {
    eventually(&format!("{user} to be served"), PATIENCE, async || {
        (world.request(user).await["status"] == "ok").then_some(())
    })
    .await;
}

async fn assert_not_condemned(world: &World, users: &[String]) {
    for user in users {
        let failure = world.entry(user).await.failure;
        assert!(
            !failure.as_ref().is_some_and(|failure| failure.kind.condemns_refresh_token()),
            "{user}: {failure:?}"
        );
    }
}

on_every_database! {
    async fn five_users_refused_in_a_row_are_not_condemned_and_served_when_the_host_is_mended(kind: Kind) {
        let (world, workers) = world_and_workers(kind, 1, 2).await;
        let events = Listener::start(&world, "provider.*").await;
        let users = expired_users(&world, 6).await;

        refuse_everybody(&world, &users).await;

        assert_not_condemned(&world, &users).await;
        let since = refusing_since(&world).await.expect("it is on record");
        let alarm = events.wait_for("provider.misconfigured", 1).await;
        assert_eq!((&alarm[0]["host"], alarm.len()), (&json!(world.scm.host()), 1));
        assert_eq!(alarm[0]["since"], json!(Timestamp::from_millis(since)));

        wait_until_all_know(&world, &users).await;
        world.scm.heal();
        for user in &users {
            wait_until_served(&world, user).await;
        }
        assert_eq!(refusing_since(&world).await, None);
        events.wait_for("provider.recovered", 1).await;
        assert_eq!(events.times("provider.recovered"), 1, "once, whichever worker found out");
        assert_eq!(events.times("provider.misconfigured"), 1);
        let provider = world.store.provider(&world.scm.host()).await.unwrap().expect("it was applied");
        let ended = world.store.end_refusing(provider.id, Timestamp::from_millis(since)).await.unwrap();
        assert_eq!(ended, Guarded::Moved, "nobody tells it a second time");
        stop(workers).await;
    }

    async fn a_host_that_refuses_everybody_is_not_called_and_valid_tokens_are_served(kind: Kind) {
        let (world, workers) = world_and_workers(kind, 60, 2).await;
        let users = expired_users(&world, 8).await;
        let pair = world.user_with_token("jdoe").await;
        refuse_everybody(&world, &users).await;
        wait_until_all_know(&world, &users).await;
        let asked = world.scm.log().len();

        for user in &users {
            let reply = world.request(user).await;
            assert!(error_message(&reply, MISCONFIGURED).contains("provider apply"), "{reply}");
        }
        let served = world.request("jdoe").await;

        assert_eq!(token(&served)["value"], pair.access_token.as_str());
        assert_eq!(served["warnings"], json!(["refresh_failed"]), "{served}");
        assert_eq!(world.scm.log().len(), asked, "the host is left alone");
        assert_not_condemned(&world, &users).await;
        stop(workers).await;
    }

    async fn a_refused_probe_condemns_nobody_and_a_restart_forgets_nothing(kind: Kind) {
        let (world, workers) = world_and_workers(kind, 1, 1).await;
        let users = expired_users(&world, 6).await;
        refuse_everybody(&world, &users).await;
        let since = refusing_since(&world).await;
        stop(workers).await;
        let asked = world.scm.log().len();

        let restarted = world.start_worker().await;
        eventually("three probes", PATIENCE, async || {
            for user in &users {
                error_message(&world.request(user).await, MISCONFIGURED);
            }
            (world.scm.log().len() >= asked + 3).then_some(())
        })
        .await;

        assert_not_condemned(&world, &users).await;
        assert_eq!(refusing_since(&world).await, since);
        restarted.stop().await;
    }

    async fn applying_the_provider_again_ends_a_mass_refusal_and_forgets_its_failures(kind: Kind) {
        let (world, workers) = world_and_workers(kind, 60, 1).await;
        let users = expired_users(&world, 6).await;
        refuse_everybody(&world, &users).await;
        wait_until_answered(&world, &users[5], MISCONFIGURED).await;
        world.scm.heal();
        world.apply_provider(|_| {}).await;
        assert!(refusing_since(&world).await.is_some(), "a file that changes nothing mends nothing");

        world.apply_provider(|provider| provider.username = Some("git".to_owned())).await;

        assert_eq!(refusing_since(&world).await, None);
        for user in &users {
            assert_eq!(world.entry(user).await.failure, None, "{user}");
            wait_until_served(&world, user).await;
        }
        stop(workers).await;
    }

    async fn applying_the_provider_again_clears_refusals_and_keeps_tokens_in_doubt(kind: Kind) {
        let (world, workers) = world_and_workers(kind, 10, 1).await;
        world.user_with_expired_token("refused").await;
        world.user_with_expired_token("interrupted").await;
        world.scm.fail_next_for("refused", 1, Fault::InvalidGrant);
        world.scm.fail_next_for("interrupted", 1, Fault::CloseAfter);
        for user in ["refused", "interrupted"] {
            error_message(&world.request(user).await, REAUTHORIZE);
        }

        world.apply_provider(|provider| provider.username = Some("git".to_owned())).await;

        let (refused, interrupted) = (world.entry("refused").await, world.entry("interrupted").await);
        assert_eq!((refused.failure.as_ref(), refused.is_in_doubt()), (None, false));
        assert_eq!((interrupted.failure.as_ref(), interrupted.is_in_doubt()), (None, true));
        wait_until_served(&world, "refused").await;
        // A worker that knew the old settings a moment ago says so, and condemns nobody by them.
        wait_until_answered(&world, "interrupted", REAUTHORIZE).await;
        let again = world.request("interrupted").await;
        assert_eq!(again["error"]["reason"], "refresh_interrupted", "{again}");
        stop(workers).await;
    }

    async fn users_who_revoked_their_access_stay_condemned_where_others_are_served_in_between(kind: Kind) {
        let (world, workers) = world_and_workers(kind, 10, 2).await;
        let users = expired_users(&world, 8).await;
        for (number, user) in users.iter().enumerate() {
            if number == 4 {
                wait_until_served(&world, user).await;
                continue;
            }
            world.scm.revoke(user);
            error_message(&world.request(user).await, REAUTHORIZE);
        }
        assert_eq!(refusing_since(&world).await, None);
        for (number, user) in users.iter().enumerate().filter(|(number, _)| *number != 4) {
            let failure = world.entry(user).await.failure.expect("it is remembered");
            assert_eq!(failure.kind, FailureKind::Refused, "user {number}");
            assert_eq!(world.scm.refresh_requests(user), 1);
        }
        stop(workers).await;
    }

    async fn refusals_that_come_all_at_once_condemn_nobody(kind: Kind) {
        let (world, workers) = world_and_workers(kind, 60, 2).await;
        let events = Listener::start(&world, "provider.*").await;
        world.apply_provider(|provider| provider.max_concurrent_refreshes = Some(20)).await;
        let users = expired_users(&world, 12).await;
        let gate = world.scm.hold_refreshes();
        let mut requests = Vec::new();
        for user in &users {
            requests.push(world.send(user).await);
        }
        gate.wait_for_parked(users.len()).await;
        world.scm.fail_always(Fault::InvalidGrant);
        gate.release();
        for request in requests {
            assert_eq!(request.reply().await.body["status"], "error");
        }

        assert!(refusing_since(&world).await.is_some());
        for user in &users {
            assert_eq!(world.entry(user).await.failure, None, "{user}");
        }
        events.wait_for("provider.misconfigured", 1).await;
        stop(workers).await;
        assert_eq!(events.times("provider.misconfigured"), 1, "one alarm, not twelve");
    }

    async fn a_refusal_under_settings_that_were_changed_meanwhile_condemns_nobody(kind: Kind) {
        let (world, workers) = world_and_workers(kind, 10, 1).await;
        world.user_with_expired_token("jdoe").await;
        let gate = world.scm.hold_refreshes();
        let request = world.send("jdoe").await;
        gate.wait_for_parked(1).await;
        world.scm.fail_next(1, Fault::InvalidGrant);
        world.apply_provider(|provider| provider.username = Some("git".to_owned())).await;
        gate.release();

        let reply = request.reply().await.body;

        error_message(&reply, "provider_unavailable");
        assert_eq!(reply["error"]["retry_after_secs"], 1, "{reply}");
        assert_eq!(world.entry("jdoe").await.failure, None);
        wait_until_served(&world, "jdoe").await;
        stop(workers).await;
    }

    async fn a_refusal_says_nothing_about_a_pair_that_was_stored_while_it_was_on_its_way(kind: Kind) {
        let world = World::new(kind, Dialect::GitHub).await;
        let worker = world.start_worker().await;
        let events = Listener::start(&world, "token.reauthorization_required").await;
        world.user_with_expired_token("jdoe").await;
        let gate = world.scm.hold_refreshes();
        let request = world.send("jdoe").await;
        gate.wait_for_parked(1).await;
        let login = world.user_with_token("jdoe").await;
        world.scm.fail_next(1, Fault::InvalidGrant);
        gate.release();

        let reply = request.reply().await.body;

        assert_eq!(token(&reply)["value"], login.access_token.as_str(), "the new pair is used: {reply}");
        assert_eq!(world.entry("jdoe").await.failure, None, "the new pair starts clean");
        // Events come in the order of what they tell of: nothing was told before this one.
        world.user_with_expired_token("alice").await;
        world.scm.revoke("alice");
        error_message(&world.request("alice").await, REAUTHORIZE);
        assert_eq!(events.wait_for("token.reauthorization_required", 1).await[0]["user_id"], "alice");
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_see_which_host_refuses_everybody_and_since_when() {
    let (world, workers) = world_and_workers(Kind::Sqlite, 60, 1).await;
    let users = expired_users(&world, 5).await;
    let cli = Cli::of(&world);
    let before = cli.run(&["provider", "list", "--json"]).await.good().json();
    assert_eq!(before[0]["refusing_since"], json!(null));

    refuse_everybody(&world, &users).await;

    let since = Timestamp::from_millis(refusing_since(&world).await.expect("it does"));
    let listed = cli.run(&["provider", "list", "--json"]).await.good().json();
    assert_eq!(listed[0]["refusing_since"], json!(since));
    let table = cli.run(&["provider", "list"]).await.good();
    assert_eq!(table.table()[1].last(), Some(&&*since.to_string()), "{table:?}");
    stop(workers).await;
}
