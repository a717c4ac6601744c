//! Tokens that the broker cannot read, both ways.

use secrecy::ExposeSecret;
use tokenkeeper::domain::secret::KeyRing;
use tokenkeeper_client::{DeploymentKey, UnusableReply};
use tokenkeeper_testkit::proxy::{FaultProxy, Marker, Then};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_login_and_sealed_tokens_never_cross_the_wire_in_clear() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("access.require_sealed_replies", true).set("access.require_sealed_stores", true);
    let worker = world.start_worker().await;
    let ring = KeyRing::parse(&world.keys).unwrap();
    let key = &ring.keys()[0];
    let deployment = DeploymentKey::new(&key.login_public_key().to_string()).unwrap().with_id(key.id());
    let pair = world.scm.authorize("jdoe");
    let proxy = FaultProxy::start_for_url(world.broker.url(), 5672).await;
    // A connection that shows the token ends.
    proxy.watch_for(Marker::new(&pair.access_token, Then::Cut));
    let client = Client::connect(options_at(&world, &proxy.url(world.broker.url()))).await.unwrap();
    let (host, url) = (world.scm.host(), world.scm.clone_url("p", "r"));
    let login = || client.store("jdoe", &*host, &*pair.access_token).refresh_token(&*pair.refresh_token);

    assert_eq!(code(&login().send().await.unwrap_err()), "forbidden");
    assert!(login().sealed_to(&deployment).send().await.unwrap().warnings.is_empty());
    assert_eq!(code(&client.token("jdoe", &*host).send().await.unwrap_err()), "forbidden");
    let token = client.token("jdoe", &*host).sealed(true).send().await.unwrap();
    assert_eq!(token.value.expose_secret(), pair.access_token);
    assert!(token.userinfo.unwrap().expose_secret().ends_with(&*pair.access_token));
    let workspace = client.workspace_start("ws-1", "jdoe", [url]).sealed(true).send().await.unwrap();
    assert_eq!(workspace.tokens[0].token.as_ref().unwrap().value.expose_secret(), pair.access_token);

    assert_eq!(*proxy.marked().borrow(), 0);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_in_clear_or_in_anothers_box_is_refused_where_a_sealed_one_was_asked_for() {
    let world = world_without_a_worker().await;
    let replier = Replier::start(&world, move |asked| {
        let mut body: Value = serde_json::from_slice(&asked.granted("s3cret")).unwrap();
        match asked.user() {
            "forged" => body["token"] = json!({"sealed": "c2VhbGVk"}),
            "clear-beside-a-box" => body["token"]["sealed"] = "c2VhbGVk".into(),
            "clear-beside-a-list" => body["tokens"] = json!([]),
            _ => {}
        }
        vec![(asked.correlation_id.clone(), body.to_string().into_bytes())]
    })
    .await;
    let client = Client::connect(options(&world).sealed(true)).await.unwrap();
    for (user, expected) in [
        ("clear", UnusableReply::NotSealed),
        ("clear-beside-a-list", UnusableReply::NotSealed),
        ("clear-beside-a-box", UnusableReply::NotSealed),
        ("forged", UnusableReply::NotOpened),
    ] {
        let error = client.token(user, "git.example.org").send().await.unwrap_err();
        assert!(matches!(error, Error::Reply(told) if told == expected), "{error:?}");
        assert!(!format!("{error:?} {error}").contains("s3cret"));
    }
    assert!(client.token("clear", "git.example.org").sealed(false).send().await.is_ok());
    drop(replier);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_asked_for_sealed_and_again_unless_somebody_says_otherwise() {
    let world = world_without_a_worker().await;
    let mut asked_before = 0;
    let replier = Replier::start(&world, move |asked| {
        asked_before += 1;
        let body = if asked_before < 5 { refused("internal", 0) } else { asked.granted("s3cret") };
        vec![(asked.correlation_id.clone(), body)]
    })
    .await;
    let options = Options::new(world.broker.url()).prefix(world.broker.prefix());
    let client = Client::connect(options).await.unwrap();
    let error = client.token("jdoe", "git.example.org").send().await.unwrap_err();
    assert!(matches!(error, Error::Reply(UnusableReply::NotSealed)), "{error:?}");
    drop(replier);
}
