//! Refreshes that fail: what the requester is told, what is remembered, and what the provider is spared.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokenkeeper::domain::provider::RequiredWhileReserved;
use tokenkeeper::store::FailureKind;

use crate::harness::{
    Dialect, Fault, InProcessWorker, Kind, PATIENCE, ScmOptions, World, eventually, on_every_database,
};

async fn world_and_worker(kind: Kind, dialect: Dialect) -> (World, InProcessWorker) {
    let mut world = World::new(kind, dialect).await;
    world.set("refresh.retry_initial_ms", 20).set("refresh.opportunistic_budget_secs", 1);
    // These tests are of single refreshes; that a host which fails is left alone is told in `circuit.rs`.
    world.set("refresh.circuit_failures", 1_000);
    let worker = world.start_worker().await;
    (world, worker)
}

fn latest_token(world: &World, user: &str) -> Value {
    world.scm.latest_pair(user).expect("the user has authorised").access_token.into()
}

fn assert_error(reply: &Value, code: &str, retryable: bool) {
    assert_eq!(reply["status"], "error", "{reply}");
    assert_eq!(reply["error"]["code"], code, "{reply}");
    assert_eq!(reply["error"]["retryable"], retryable, "{reply}");
    assert!(reply.get("token").is_none(), "{reply}");
}

on_every_database! {
    async fn a_provider_that_fails_twice_is_asked_a_third_time(kind: Kind) {
        let (world, worker) = world_and_worker(kind, Dialect::BitbucketServer).await;
        world.user_with_expired_token("jdoe").await;
        world.scm.fail_next(2, Fault::Status(500));

        let reply = world.request("jdoe").await;

        assert_eq!(reply["status"], "ok", "{reply}");
        assert_eq!(reply["refresh"], "required");
        assert_eq!(reply["token"]["value"], latest_token(&world, "jdoe"));
        assert_eq!((world.scm.refresh_requests("jdoe"), world.scm.refreshes("jdoe")), (3, 1));
        assert_eq!(world.entry("jdoe").await.failure, None);
        worker.stop().await;
    }

    async fn a_failed_opportunistic_refresh_serves_the_token_that_is_still_valid(kind: Kind) {
        let (world, worker) = world_and_worker(kind, Dialect::BitbucketServer).await;
        let pair = world.user_with_token("jdoe").await;
        world.scm.fail_always(Fault::Status(500));

        let reply = world.request("jdoe").await;

        assert_eq!(reply["status"], "ok", "{reply}");
        assert_eq!(reply["token"]["value"], json!(pair.access_token));
        assert_eq!(reply["refresh"], "none");
        assert_eq!(reply["warnings"], json!(["refresh_failed"]));
        let entry = world.entry("jdoe").await;
        assert_eq!(entry.failure.map(|failure| failure.kind), Some(FailureKind::Unavailable));
        assert!(entry.state.reserved_until.is_some(), "what is handed out is reserved");
        assert_eq!(entry.lease, None, "the lease is given back");
        worker.stop().await;
    }

    async fn a_refused_refresh_token_is_not_sent_again_and_a_new_pair_starts_clean(kind: Kind) {
        let (world, worker) = world_and_worker(kind, Dialect::GitHub).await;
        world.user_with_expired_token("jdoe").await;
        world.scm.revoke("jdoe");

        assert_error(&world.request("jdoe").await, "reauthorization_required", false);
        let asked = world.scm.refresh_requests("jdoe");
        assert_error(&world.request("jdoe").await, "reauthorization_required", false);

        assert_eq!((asked, world.scm.refresh_requests("jdoe")), (1, 1), "the provider is left alone");
        let failure = world.entry("jdoe").await.failure.expect("it is remembered");
        assert_eq!(failure.kind, FailureKind::Refused);
        let pair = world.user_with_expired_token("jdoe").await;
        assert_eq!(world.entry("jdoe").await.failure, None);
        let reply = world.request("jdoe").await;
        assert_eq!(reply["refresh"], "required", "{reply}");
        assert_ne!(reply["token"]["value"], json!(pair.access_token));
        worker.stop().await;
    }

    async fn a_refused_opportunistic_refresh_serves_the_token_and_is_not_tried_again(kind: Kind) {
        let (world, worker) = world_and_worker(kind, Dialect::BitbucketServer).await;
        let pair = world.user_with_token("jdoe").await;
        world.scm.fail_always(Fault::InvalidGrant);

        for _ in 0..2 {
            let reply = world.request_for("jdoe", 1).await;
            assert_eq!(reply["token"]["value"], json!(pair.access_token), "{reply}");
            // The second request finds the token reserved, or, that being over, knows that it cannot be refreshed.
            let warned = reply["warnings"] == json!(["refresh_failed"]);
            assert!(warned || reply["refresh"] == "reserved", "{reply}");
        }

        assert_eq!(world.scm.refresh_requests("jdoe"), 1);
        worker.stop().await;
    }

    async fn an_answer_lost_after_the_provider_acted_means_logging_in_again(kind: Kind) {
        let (world, worker) = world_and_worker(kind, Dialect::BitbucketServer).await;
        let pair = world.user_with_token("jdoe").await;
        world.scm.fail_next(1, Fault::CloseAfter);

        let first = world.request("jdoe").await;

        assert!(!world.scm.is_alive(&pair.access_token), "the provider has killed the stored token");
        assert_error(&first, "reauthorization_required", false);
        let asked = world.scm.refresh_requests("jdoe");
        assert_eq!(asked, 2, "it was tried again");
        assert_error(&world.request("jdoe").await, "reauthorization_required", false);
        assert_eq!(world.scm.refresh_requests("jdoe"), asked, "the dead token is neither sent nor served again");
        // A provider that was changed is asked once more, and what is in doubt stays in doubt until then.
        world.apply_provider(|provider| provider.opportunistic_refresh = Some(false)).await;
        eventually("the worker to know the new settings, and the failure again", PATIENCE, async || {
            let reply = world.request("jdoe").await;
            assert_eq!(reply["status"], "error", "the dead token is not served: {reply}");
            (reply["error"]["reason"] == "refresh_interrupted").then_some(())
        })
        .await;
        assert!(world.scm.refresh_requests("jdoe") > asked);
        worker.stop().await;
    }

    async fn an_answer_that_was_lost_for_good_is_not_forgotten_with_its_request(kind: Kind) {
        for (fault, code, retryable) in
            [(Fault::Status(503), "provider_unavailable", true), (Fault::Redirect, "provider_misconfigured", false)]
        {
            let (world, worker) = world_and_worker(kind, Dialect::BitbucketServer).await;
            let pair = world.user_with_token("jdoe").await;
            world.scm.fail_next(1, Fault::CloseAfter);
            world.scm.fail_always(fault);
            assert_error(&world.request("jdoe").await, code, retryable);
            assert!(!world.scm.is_alive(&pair.access_token), "the provider has killed the stored token");
            assert_error(&world.request("jdoe").await, code, retryable);

            world.scm.heal();

            // After two failures in a row the entry backs off for a second.
            eventually("the provider to be asked again", PATIENCE, async || {
                let reply = world.request("jdoe").await;
                assert_eq!(reply["status"], "error", "the dead token is not served: {reply}");
                (reply["error"]["code"] == "reauthorization_required").then_some(())
            })
            .await;
            worker.stop().await;
        }
    }

    async fn all_who_wait_for_a_refresh_that_fails_are_told_so_together(kind: Kind) {
        let (world, worker) = world_and_worker(kind, Dialect::BitbucketServer).await;
        world.user_with_expired_token("jdoe").await;
        world.scm.fail_always(Fault::InvalidClient);
        let gate = world.scm.hold_refreshes();
        let requests = join_all((0..50).map(|_| world.request("jdoe")));
        let refusal = async {
            gate.wait_for_parked(1).await;
            eventually("all requests to be in hand", PATIENCE, async || {
                (world.broker.queue_depth("token-requests").await == 0).then_some(())
            })
            .await;
            gate.release();
        };

        let (replies, ()) = tokio::join!(requests, refusal);

        for reply in &replies {
            assert_error(reply, "provider_misconfigured", false);
        }
        // One for all who waited, and perhaps one for a straggler who came when it had just ended.
        let asked = world.scm.refresh_requests("jdoe");
        assert!(asked <= 5, "50 requests asked the provider {asked} times");
        worker.stop().await;
    }
}

#[tokio::test]
async fn an_answer_lost_before_the_provider_acted_costs_only_a_second_call() {
    let (world, worker) = world_and_worker(Kind::Sqlite, Dialect::BitbucketServer).await;
    world.user_with_token("jdoe").await;
    world.scm.fail_next(1, Fault::CloseBefore);

    let reply = world.request("jdoe").await;

    assert_eq!(reply["refresh"], "opportunistic", "{reply}");
    assert_eq!(reply["token"]["value"], latest_token(&world, "jdoe"));
    assert_eq!((world.scm.refresh_requests("jdoe"), world.scm.refreshes("jdoe")), (2, 1));
    worker.stop().await;
}

#[tokio::test]
async fn an_opportunistic_refresh_whose_answers_are_all_lost_does_not_hand_out_the_doubtful_token() {
    let (world, worker) = world_and_worker(Kind::Sqlite, Dialect::BitbucketServer).await;
    world.user_with_token("jdoe").await;
    world.scm.fail_always(Fault::CloseBefore);

    assert_error(&world.request("jdoe").await, "provider_unavailable", true);

    world.scm.heal();
    assert_eq!(world.request("jdoe").await["refresh"], "opportunistic");
    worker.stop().await;
}

#[tokio::test]
async fn a_provider_that_refuses_our_client_condemns_no_users_token() {
    for fault in [Fault::InvalidClient, Fault::Redirect, Fault::Status(404)] {
        let (world, worker) = world_and_worker(Kind::Sqlite, Dialect::GitHub).await;
        world.user_with_expired_token("jdoe").await;
        world.scm.fail_always(fault.clone());

        let reply = world.request("jdoe").await;
        assert_error(&reply, "provider_misconfigured", false);
        assert_eq!(world.scm.login_page_views(), 0, "a redirect is not followed");
        assert_eq!(world.scm.refresh_requests("jdoe"), 1, "{fault:?} is not tried again");

        world.scm.heal();
        assert_eq!(world.request("jdoe").await["status"], "ok", "after {fault:?} is mended");
        worker.stop().await;
    }
}

/// Something before the provider may have put it in the place of a new pair.
#[tokio::test]
async fn a_success_without_a_pair_is_not_asked_for_again_at_once_and_condemns_no_users_token() {
    let (world, worker) = world_and_worker(Kind::Sqlite, Dialect::GitHub).await;
    world.user_with_expired_token("jdoe").await;
    world.scm.fail_always(Fault::Html);

    let reply = world.request("jdoe").await;
    assert_error(&reply, "provider_unavailable", true);
    assert_eq!(world.scm.refresh_requests("jdoe"), 1, "the refresh token may be spent");
    assert!(world.entry("jdoe").await.is_in_doubt());

    world.scm.heal();
    assert_eq!(world.request("jdoe").await["status"], "ok", "it was not");
    worker.stop().await;
}

#[tokio::test]
async fn a_wrong_client_secret_is_the_providers_fault_and_mending_it_takes_effect_by_itself() {
    let mut world = World::new(Kind::Sqlite, Dialect::Bitbucket).await;
    // One user asks again and again, so that the first refresh that works is seen.
    world.set("refresh.identity_limit_per_minute", 0);
    let worker = world.start_worker().await;
    world.apply_provider(|provider| provider.client_secret = "a wrong one".to_owned().into()).await;
    let mut users = (0..).map(|number| format!("user-{number}"));
    let condemned = eventually("the wrong secret to be used", PATIENCE, async || {
        let user = users.next().expect("there is always a next one");
        world.user_with_expired_token(&user).await;
        (world.request(&user).await["error"]["code"] == "provider_misconfigured").then_some(user)
    })
    .await;

    world.apply_provider(|_| {}).await;

    eventually("the mended provider to be used", PATIENCE, async || {
        (world.request(&condemned).await["status"] == "ok").then_some(())
    })
    .await;
    worker.stop().await;
}

#[tokio::test]
async fn a_retry_after_is_kept_where_there_is_time_and_passed_on_where_there_is_not() {
    let (world, worker) = world_and_worker(Kind::Sqlite, Dialect::GitLab).await;
    world.user_with_expired_token("patient").await;
    world.scm.fail_next(1, Fault::RetryAfter { status: 429, seconds: 1 });
    let asked = Instant::now();
    assert_eq!(world.request("patient").await["refresh"], "required");
    assert!(asked.elapsed() >= Duration::from_secs(1), "it came back after {:?}", asked.elapsed());

    world.user_with_expired_token("hurried").await;
    world.scm.fail_always(Fault::RetryAfter { status: 503, seconds: 3600 });
    let reply = world.request("hurried").await;
    assert_error(&reply, "provider_unavailable", true);
    assert_eq!(reply["error"]["retry_after_secs"], 300, "capped");
    assert_eq!(world.scm.refresh_requests("hurried"), 1);
    worker.stop().await;
}

#[tokio::test]
async fn the_old_refresh_token_is_kept_where_the_provider_sends_none() {
    let options = ScmOptions { omit_refresh_token: true, ..ScmOptions::new(Dialect::Bitbucket) };
    let world = World::with_scm(Kind::Sqlite, options).await;
    world.apply_provider(|provider| provider.opportunistic_refresh = Some(true)).await;
    let worker = world.start_worker().await;
    world.user_with_expired_token("jdoe").await;

    assert_eq!(world.request_for("jdoe", 1).await["refresh"], "required");
    eventually("the reservation to be over", PATIENCE, async || {
        let reserved_until = world.entry("jdoe").await.state.reserved_until.expect("it was handed out");
        (reserved_until.as_millis() < world.scm.now_ms()).then_some(())
    })
    .await;
    let second = world.request("jdoe").await;

    assert_eq!(second["refresh"], "opportunistic", "{second}");
    assert_eq!(world.scm.refreshes("jdoe"), 2);
    worker.stop().await;
}

#[tokio::test]
async fn a_gitlab_that_leaves_expires_in_out_issues_tokens_of_two_hours() {
    let options = ScmOptions { omit_expires_in: true, ..ScmOptions::new(Dialect::GitLab) };
    let world = World::with_scm(Kind::Sqlite, options).await;
    let worker = world.start_worker().await;
    world.user_with_expired_token("jdoe").await;
    let before = world.scm.now_ms();

    let reply = world.request("jdoe").await;

    assert_eq!(reply["status"], "ok", "{reply}");
    let expires_at = world.entry("jdoe").await.state.expires_at.expect("it does expire").as_millis();
    let two_hours = 2 * 60 * 60 * 1000;
    assert!((before + two_hours..=world.scm.now_ms() + two_hours).contains(&expires_at));
    worker.stop().await;
}

on_every_database! {
    async fn a_request_for_more_than_the_provider_grants_does_not_refresh_on_every_call(kind: Kind) {
        let lifetime = Duration::from_secs(600);
        let world =
            World::with_scm(kind, ScmOptions { token_lifetime: lifetime, ..ScmOptions::new(Dialect::GitHub) }).await;
        let worker = world.start_worker().await;
        world.user_with_expired_token("jdoe").await;

        let first = world.request_for("jdoe", 3600).await;
        assert_eq!((&first["refresh"], &first["warnings"]), (&json!("required"), &json!(["lifetime_clamped"])));
        for _ in 0..3 {
            let reply = world.request_for("jdoe", 3600).await;
            assert_eq!((&reply["refresh"], &reply["warnings"]), (&json!("none"), &json!(["lifetime_clamped"])));
        }

        assert_eq!(world.scm.refreshes("jdoe"), 1);
        let state = world.entry("jdoe").await.state;
        assert_eq!(state.granted_lifetime, Some(lifetime));
        assert!(state.reserved_until > state.expires_at, "reserved until what was asked for");
        worker.stop().await;
    }
}

/// A user at a provider with this rule whose token lives for another minute and is held for two seconds.
async fn held_token(rule: RequiredWhileReserved) -> (World, InProcessWorker, String) {
    let world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    world.apply_provider(|provider| provider.required_while_reserved = Some(rule)).await;
    let worker = world.start_worker().await;
    let pair = world.scm.authorize_until("jdoe", world.scm.now_ms() + 60_000);
    world.store_pair(&pair).await;
    let entry = world.entry("jdoe").await;
    let now = tokenkeeper::domain::clock::Timestamp::from_millis(world.scm.now_ms());
    let held = world.store.reserve(&entry, now.plus(Duration::from_secs(2)), now).await.unwrap();
    assert_eq!(held, tokenkeeper::store::Guarded::Done);
    (world, worker, pair.access_token)
}

#[tokio::test]
async fn a_required_refresh_takes_a_held_token_away_where_the_provider_says_refresh() {
    let (world, worker, held) = held_token(RequiredWhileReserved::Refresh).await;
    let reply = world.request("jdoe").await;
    assert_eq!(reply["refresh"], "required", "{reply}");
    assert!(!world.scm.is_alive(&held));
    worker.stop().await;
}

#[tokio::test]
async fn a_required_refresh_waits_for_a_held_token_where_the_provider_says_wait() {
    let (world, worker, held) = held_token(RequiredWhileReserved::Wait).await;
    let asked = Instant::now();
    let reply = world.request("jdoe").await;
    assert_eq!(reply["refresh"], "required", "{reply}");
    assert!(asked.elapsed() > Duration::from_millis(500), "it waited until the reservation was over");
    assert!(!world.scm.is_alive(&held));
    worker.stop().await;
}

#[tokio::test]
async fn a_required_refresh_leaves_a_held_token_where_the_provider_says_grant_remaining() {
    let (world, worker, held) = held_token(RequiredWhileReserved::GrantRemaining).await;
    let reply = world.request("jdoe").await;
    assert_eq!(reply["refresh"], "none", "{reply}");
    assert_eq!(reply["warnings"], json!(["lifetime_short"]));
    assert_eq!(reply["token"]["value"], json!(held));
    assert!(world.scm.is_alive(&held));
    worker.stop().await;
}
