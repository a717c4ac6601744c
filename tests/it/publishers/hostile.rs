//! A publisher who means harm. Bystanders are served throughout.

use lapin::options::{BasicGetOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;
use tokenkeeper_testkit::queues::{BasicProperties, TOKEN_REQUEST, TOKEN_STORE};

use super::Platform;
use crate::harness::reply::error_message;
use crate::harness::{PATIENCE, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_does_not_depend_on_what_is_stored() {
    let platform = Platform::new(|_, _| {}).await;
    let worker = platform.world.start_worker().await;
    let here = platform.world.scm.host();
    for (user, host) in [("u-1", &here[..]), ("u-nobody", &here), ("u-1", "nowhere.example.org")] {
        let reply = platform.ask("ci", TOKEN_REQUEST, json!({"user_id": user, "host": host})).await;
        let message = error_message(&reply, "forbidden");
        assert_eq!(message, "the access rules do not let this publisher ask for this user", "{user} {host}");
    }
    for (user, host) in [("ci-1", "nowhere.example.org"), ("ci-nobody", "elsewhere.example.org")] {
        let reply = platform.ask("ci", TOKEN_REQUEST, json!({"user_id": user, "host": host})).await;
        let message = error_message(&reply, "forbidden");
        assert_eq!(message, "the access rules do not let this publisher ask for this host", "{user} {host}");
    }
    platform.bystander_is_served().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_goes_to_no_queue_that_the_policy_does_not_give() {
    let platform = Platform::new(|service, entry| {
        if service == "ci" {
            entry["reply_queues"] = json!(["*-ci-replies"]);
        }
    })
    .await;
    let worker = platform.world.spawn_worker().await;
    let channel = platform.world.broker.channel().await;
    let victim = format!("{}-victim", platform.world.broker.prefix());
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(victim.as_str().into(), exclusive, FieldTable::default()).await.unwrap();

    // Such a message is answered nowhere, whatever else is wrong with it.
    let forged = BasicProperties::default()
        .with_user_id(platform.accounts.name("ci").into())
        .with_reply_to(victim.as_str().into());
    for body in [platform.world.token_request("ci-1").to_string(), "no JSON".to_owned()] {
        platform.ci.publish(TOKEN_REQUEST, body, forged.clone()).await;
    }
    let letters = platform.world.broker.wait_for_dead_letters(2).await;

    for letter in &letters {
        let reason = letter.headers.inner().get("x-tokenkeeper-reason");
        assert_eq!(reason, Some(&AMQPValue::LongString("forbidden".into())));
    }
    let taken = channel.basic_get(victim.as_str().into(), BasicGetOptions::default()).await.unwrap();
    assert!(taken.is_none(), "a reply where it must not go");
    assert_eq!(platform.request("ci", "ci-1").await["status"], "ok", "its own queue is fine");
    platform.bystander_is_served().await;
    worker.stop(&platform.world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denials_are_counted_and_audited_and_made_up_publishers_leave_nothing_behind() {
    let mut platform = Platform::new(|_, _| {}).await;
    platform.accounts.let_impersonate("stranger").await;
    // The broker reads the tag when a connection is opened.
    let url = platform.accounts.url("stranger");
    platform.stranger = platform.world.broker.publisher(&url, "impersonator").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.jsonl");
    platform.world.set("audit.to", "file").set("audit.file", file.display());
    platform.world.set("limits.publisher_requests_per_second", 100_000);
    let worker = platform.world.spawn_worker().await;
    let made_up = async |number: u32| {
        let named = BasicProperties::default().with_user_id(format!("made-up-{number}").into());
        let body = platform.world.token_request(&format!("nobody-{number}")).to_string();
        platform.stranger.send(TOKEN_REQUEST, body, named).await
    };

    let mut asked = Vec::new();
    for number in 0..300 {
        asked.push(made_up(number).await);
    }
    platform.bystander_is_served().await;
    for asked in asked {
        error_message(&asked.reply().await.body, "forbidden");
    }
    error_message(&platform.request("ci", "u-1").await, "forbidden");
    let store = platform.world.scm.token_store_body(&platform.world.scm.authorize("ci-1"));
    error_message(&platform.ask("login", TOKEN_STORE, store).await, "forbidden");

    let denials = |publisher: &str, reason: &str| {
        format!(r#"tokenkeeper_denials_total{{publisher="{publisher}",reason="{reason}"}}"#)
    };
    let (ci, login) = (platform.accounts.name("ci"), platform.accounts.name("login"));
    assert_eq!(worker.count(&denials("(unlisted)", "unlisted")).await, 300);
    assert_eq!(worker.count(&denials("(unnamed)", "unnamed")).await, 0);
    assert_eq!(worker.count(&denials(&ci, "user")).await, 1);
    assert_eq!(worker.count(&denials(&login, "store_for")).await, 1);
    let (_, metrics) = worker.get("metrics").await;
    assert!(!metrics.contains("made-up"), "a publisher's word is no label");

    let audited = |publisher: &str, user: &str| {
        let audit = std::fs::read_to_string(&file).unwrap_or_default();
        let (publisher, user) = (format!(r#""publisher":"{publisher}""#), format!(r#""user":"{user}""#));
        let is_it = |line: &&str| line.contains(&publisher) && line.contains(&user);
        audit.lines().filter(is_it).filter(|line| line.contains(r#""outcome":"forbidden""#)).count()
    };
    eventually("the lines of the audit log", PATIENCE, async || {
        let all = [audited("made-up-299", "nobody-299"), audited(&ci, "u-1"), audited(&login, "ci-1")];
        (all == [1; 3]).then_some(())
    })
    .await;
    worker.stop(&platform.world).await;
}
