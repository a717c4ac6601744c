//! What goes well.

use std::sync::{Arc, Mutex};

use futures_util::future::join_all;
use lapin::options::ExchangeDeleteOptions;
use lapin::types::AMQPValue;
use secrecy::{ExposeSecret, SecretString};
use tokenkeeper_client::{Refresh, ReportResult};
use tokenkeeper_testkit::proxy::FaultProxy;
use tokenkeeper_testkit::scm::git_clone;

use super::*;
use crate::harness::on_every_database;

on_every_database! {
    async fn a_token_is_handed_out_for_as_long_as_it_is_asked_for_and_git_takes_it(kind: Kind) {
        let world = World::new(kind, Dialect::BitbucketServer).await;
        let worker = world.start_worker().await;
        let pair = world.user_with_token("jdoe").await;
        world.scm.create_repo("proj", "repo", 50_000).await;
        let client = client(&world).await;

        let token = client.token("jdoe", world.scm.host()).lifetime(Duration::from_mins(10)).send().await.unwrap();

        assert_ne!(token.value.expose_secret(), pair.access_token, "it was due, and nobody held it");
        assert_eq!((token.refresh.clone(), token.warnings.len()), (Refresh::Opportunistic, 0));
        let reserved = (token.reserved_until.timestamp_millis() - world.scm.now_ms()).abs_diff(600_000);
        assert!(reserved < 60_000, "{}", token.reserved_until);
        assert!(token.expires_at.is_some());
        assert!(!format!("{token:?}").contains(token.value.expose_secret()));
        let url = world.scm.clone_url_with_userinfo("proj", "repo", token.userinfo.unwrap().expose_secret());
        git_clone(&url, &tempfile::tempdir().unwrap().path().join("clone")).await.expect("the clone works");
        client.close().await;
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workspace_gets_a_token_or_an_error_for_each_host() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let pair = world.user_with_token("jdoe").await;
    let client = client(&world).await;
    let repositories = [world.scm.clone_url("p", "r"), "git@unknown.example.org:o/r.git".to_owned()];

    let workspace = client.workspace_start("ws-1", "jdoe", repositories).send().await.unwrap();

    let [known, unknown] = &workspace.tokens[..] else { panic!("{workspace:?}") };
    assert_eq!(known.host, Some(world.scm.host()));
    assert_eq!(known.token.as_ref().unwrap().value.expose_secret(), pair.access_token);
    assert_eq!(unknown.token.as_ref().unwrap_err().code.as_str(), "unknown_host");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_is_stored_handed_out_and_reported() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let (client, host) = (client(&world).await, world.scm.host());
    let pair = world.scm.authorize("jdoe");
    let login = || {
        let login = client.store("jdoe", &*host, &*pair.access_token).refresh_token(&*pair.refresh_token);
        login.auth_id("jdoe").auth_name("J. Doe").scopes(["repo"]).username("jdoe").send()
    };

    assert_eq!(login().await.unwrap().warnings, []);
    assert_eq!(login().await.unwrap().warnings, [], "a repeated login changes nothing");
    let token = client.token("jdoe", &*host).lifetime(A_SECOND).send().await.unwrap();
    assert_eq!((token.value.expose_secret(), &*token.username), (&*pair.access_token, "jdoe"));
    assert_eq!((token.scopes, token.expires_at), (vec!["repo".to_owned()], None));

    let never_handed_out = SecretString::from("another");
    let report = client.report("jdoe", &*host, &never_handed_out).send().await.unwrap();
    assert_eq!(report.result, ReportResult::NotCurrent);
    let report = client.report("jdoe", &*host, &token.value).send().await.unwrap();
    assert!(matches!(report.result, ReportResult::Refreshed | ReportResult::Held), "{report:?}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_requests_are_in_flight_over_one_connection() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.spawn_worker().await;
    let pair = world.user_with_token("jdoe").await;
    let proxy = FaultProxy::start_for_url(world.broker.url(), 5672).await;
    let client = Client::connect(options_at(&world, &proxy.url(world.broker.url()))).await.unwrap();
    let host = world.scm.host();

    let asked = (0..1_000).map(|number| {
        // Every tenth for somebody else: each reply must find its own request.
        let user = if number % 10 == 0 { "nobody" } else { "jdoe" };
        client.token(user, &*host).send()
    });
    for (number, answer) in join_all(asked).await.into_iter().enumerate() {
        match answer {
            Ok(token) => assert!(number % 10 > 0 && token.value.expose_secret() == pair.access_token),
            Err(error) => {
                assert!(number % 10 == 0 && code(&error) == "user_not_found", "{number}: {error:?}");
            }
        }
    }
    assert_eq!(proxy.connections(), 1);
    worker.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_than_the_given_number_of_requests_are_in_flight() {
    let world = world_without_a_worker().await;
    let waiting = Arc::new(Mutex::new(Vec::new()));
    let most = Arc::new(Mutex::new(0));
    let (at_once, highest) = (Arc::clone(&waiting), Arc::clone(&most));
    // Answers two at a time: with two in flight there are never more.
    let replier = Replier::start(&world, move |asked| {
        let mut waiting = at_once.lock().unwrap();
        waiting.push((asked.correlation_id.clone(), asked.granted("t")));
        let mut highest = highest.lock().unwrap();
        *highest = (*highest).max(waiting.len());
        if waiting.len() < 2 { Vec::new() } else { waiting.drain(..).collect() }
    })
    .await;
    let client = Client::connect(options(&world).in_flight(2)).await.unwrap();

    let asked = (0..20).map(|_| client.token("jdoe", "git.example.org").send());
    assert!(join_all(asked).await.iter().all(Result::is_ok));
    assert_eq!((*most.lock().unwrap(), waiting.lock().unwrap().len()), (2, 0));
    drop(replier);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_partitions_requests_go_to_their_users_partition() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("broker.partitions", 2);
    let worker = world.start_worker().await;
    let pair = world.user_with_token("jdoe").await;
    let client = Client::connect(options(&world).partitioned(true)).await.unwrap();
    let (host, url) = (world.scm.host(), world.scm.clone_url("p", "r"));
    // Reports have no partitions. A user whose name is too long for a routing key goes the other way.
    let value = SecretString::from("another");
    assert!(client.report("jdoe", &*host, &value).send().await.is_ok());
    let error = client.token("ü".repeat(200), &*host).send().await.unwrap_err();
    assert_eq!(code(&error), "user_not_found");
    // So that no other way is left.
    let channel = world.broker.channel().await;
    channel.exchange_delete(world.broker.prefix().into(), ExchangeDeleteOptions::default()).await.unwrap();

    assert!(client.store("jdoe", &*host, &*pair.access_token).send().await.is_ok());
    assert!(client.token("jdoe", &*host).send().await.is_ok());
    assert!(client.workspace_start("ws-1", "jdoe", [url]).send().await.is_ok());
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_says_who_publishes_how_long_it_is_waited_for_and_in_which_trace() {
    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let world = world_without_a_worker().await;
    let seen = Arc::new(Mutex::new(None));
    let seen_here = Arc::clone(&seen);
    let replier = Replier::start(&world, move |asked| {
        *seen_here.lock().unwrap() = Some((asked.properties.clone(), asked.body.clone()));
        vec![(asked.correlation_id.clone(), asked.granted("t"))]
    })
    .await;
    let client = client(&world).await;

    let request = client.token("jdoe", "git.example.org").lifetime(Duration::from_millis(1_001));
    request.timeout(Duration::from_secs(20)).traceparent(TRACE).send().await.unwrap();

    let (properties, body) = seen.lock().unwrap().take().unwrap();
    assert_eq!(body, json!({"user_id": "jdoe", "host": "git.example.org", "requested_lifetime_secs": 2}));
    assert_eq!(properties.user_id().as_ref().map(ShortString::as_str), Some(&*world.publisher()));
    let expiration: u64 = properties.expiration().as_ref().unwrap().as_str().parse().unwrap();
    assert!((10_000..=20_000).contains(&expiration), "{expiration}");
    let headers = properties.headers().as_ref().unwrap().inner();
    assert_eq!(headers.get("traceparent"), Some(&AMQPValue::LongString(TRACE.into())));

    let malformed = client.token("jdoe", "git.example.org").traceparent(TRACE.to_uppercase());
    malformed.send().await.expect("it is asked without");
    let (properties, _) = seen.lock().unwrap().take().unwrap();
    assert_eq!(properties.headers(), &None);
    drop(replier);
}
