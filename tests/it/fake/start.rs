//! How it starts, beside whom, and by which rules.

use tokenkeeper_testkit::proxy::FaultProxy;
use tokenkeeper_testkit::queues::TOKEN_REQUEST;

use super::*;
use crate::harness::{Dialect, Kind, World};

#[tokio::test]
async fn it_does_not_start_beside_others_unless_it_is_told_to() {
    let broker = TestBroker::connect().await;
    let mut first = Fake::start(&broker, &[]).await;
    let folder = tempfile::tempdir().unwrap();
    let mut second = launch(&broker, &folder, &[], &[]);
    let ended = within("the second one to end", PATIENCE, second.wait()).await.unwrap();
    let said = fs::read_to_string(folder.path().join("fake.log")).unwrap();
    assert_eq!(ended.code(), Some(1), "{said}");
    assert!(said.contains("--beside-workers") && said.contains(&broker.name("token-requests")), "{said}");
    assert!(!said.contains("fake is ready"), "{said}");

    let mut beside = Fake::start(&broker, &["--beside-workers"]).await;
    assert_eq!(broker.consumers("token-requests").await, 2);
    assert_eq!(first.end("INT").await, Some(0));
    assert_eq!(broker.request(TOKEN_REQUEST, request("u-1")).await.body["status"], "ok");
    assert_eq!(beside.end("TERM").await, Some(0));
}

#[tokio::test]
async fn it_takes_no_message_from_a_worker_and_a_worker_takes_over_after_it() {
    let mut world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    world.set("broker.partitions", 2);
    let mut fake = Fake::start_with(&world.broker, &[], &[("TOKENKEEPER__BROKER__PARTITIONS", "2")]).await;
    let faked = world.send_to_partition("u-1").await.reply().await.body;
    assert!(faked["token"]["value"].as_str().unwrap().starts_with("fake-"), "{faked}");
    assert_eq!(fake.end("TERM").await, Some(0));

    let worker = world.spawn_worker().await;
    let folder = tempfile::tempdir().unwrap();
    let mut late = launch(&world.broker, &folder, &[], &[("TOKENKEEPER__BROKER__PARTITIONS", "2")]);
    let ended = within("the late one to end", PATIENCE, late.wait()).await.unwrap();
    assert_eq!(ended.code(), Some(1));
    world.user_with_token("u-1").await;
    let real = world.request("u-1").await;
    assert_eq!(real["status"], "ok");
    assert!(!real["token"]["value"].as_str().unwrap().starts_with("fake-"), "a token of the provider");
    worker.stop(&world).await;
}

#[tokio::test]
async fn it_does_not_start_beside_others_either_when_its_first_connection_fails() {
    let broker = TestBroker::connect().await;
    let _first = Fake::start(&broker, &[]).await;
    let proxy = FaultProxy::start_for_url(broker.url(), 5672).await;
    proxy.refuse();
    let folder = tempfile::tempdir().unwrap();
    let mut second = launch(&broker, &folder, &[], &[("AMQP_URL", &proxy.url(broker.url()))]);
    let said = || fs::read_to_string(folder.path().join("fake.log")).unwrap();
    eventually("a try to fail", PATIENCE, async || said().contains("WARN").then_some(())).await;
    proxy.accept();
    let ended = within("the second one to end", PATIENCE, second.wait()).await.unwrap();
    assert_eq!(ended.code(), Some(1), "{}", said());
    assert!(said().contains("--beside-workers") && !said().contains("fake is ready"), "{}", said());
}

#[tokio::test]
async fn it_answers_again_once_a_broken_connection_is_back() {
    let broker = TestBroker::connect().await;
    let proxy = FaultProxy::start_for_url(broker.url(), 5672).await;
    let mut fake = Fake::start_with(&broker, &[], &[("AMQP_URL", &proxy.url(broker.url()))]).await;
    let asked = async || broker.request(TOKEN_REQUEST, request("u-1")).await.body;
    let before = asked().await;
    proxy.cut_all();
    eventually("the fake to be ready again", PATIENCE, async || {
        (fake.log().matches("fake is ready").count() == 2).then_some(())
    })
    .await;
    // The same token, and by one consumer alone.
    assert_eq!(asked().await["token"]["value"], before["token"]["value"]);
    eventually("the old consumer to be gone", PATIENCE, async || {
        (broker.consumers("token-requests").await == 1).then_some(())
    })
    .await;
    assert_eq!(fake.end("TERM").await, Some(0));
}

#[tokio::test]
async fn rules_say_what_a_user_gets_at_a_host() {
    let broker = TestBroker::connect().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rules.toml");
    let rules = "[[rules]]\nuser = \"jdoe*\"\nhost = \"*.example.org\"\nanswer = \"error-provider_unavailable\"\n\
                 [[rules]]\nhost = \"github.com\"\nanswer = \"expires-never.refresh-reserved\"\n";
    fs::write(&file, rules).unwrap();
    let _fake = Fake::start(&broker, &["--rules", file.to_str().unwrap()]).await;
    let ask = async |user: &str, host: &str| {
        broker.request(TOKEN_REQUEST, json!({"user_id": user, "host": host})).await.body
    };
    assert_eq!(ask("jdoe-2", HOST).await["error"]["code"], "provider_unavailable");
    assert_eq!(ask("u-1", HOST).await["status"], "ok");
    assert_eq!(ask("jdoe", "github.com").await["refresh"], "reserved");
    assert_eq!(ask("error-internal.jdoe", HOST).await["error"]["code"], "internal");
}

#[tokio::test]
async fn wrong_rules_are_told_with_their_place_before_anything_is_consumed() {
    let broker = TestBroker::connect().await;
    for (rules, place, said) in [
        (
            "[[rules]]\nuser = \"a\"\nanswer = \"error-none\"\n",
            "line 3, column 10",
            "reauthorization_required",
        ),
        ("[[rules]]\nusr = \"a\"\nanswer = \"ok\"\n", "line 2, column 1", "usr"),
        ("[[rules]\n", "line 1", ""),
    ] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("rules.toml"), rules).unwrap();
        let mut fake = launch(&broker, &folder, &["--rules", "rules.toml"], &[]);
        let ended = within("it to end", PATIENCE, fake.wait()).await.unwrap();
        let told = fs::read_to_string(folder.path().join("fake.log")).unwrap();
        assert_eq!(ended.code(), Some(2), "{told}");
        assert!(told.contains("rules.toml") && told.contains(place) && told.contains(said), "{told}");
    }
    assert_eq!(broker.consumers("token-requests").await, 0);
}
