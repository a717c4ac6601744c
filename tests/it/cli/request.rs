//! `tokenkeeper request` and `tokenkeeper workspace-start`

use std::net::Ipv4Addr;

use lapin::options::ExchangeDeleteOptions;
use tokenkeeper_testkit::scm::git_clone;
use tokio::net::TcpListener;

use super::{Cli, ended, signal};
use crate::harness::accounts::Accounts;
use crate::harness::{Dialect, Kind, PATIENCE, World, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_git_clone_with_the_token_of_a_request_works() {
    let world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    world.scm.create_repo("proj", "repo", 100_000).await;
    let cli = Cli::of(&world);

    let request = ["request", "--user", "jdoe", "--host", &world.scm.host(), "--lifetime", "10m", "--json"];
    let reply = cli.run(&request).await.good();

    assert!(reply.stderr.is_empty(), "{reply:?}");
    let reply = reply.json();
    let userinfo = reply["token"]["userinfo"].as_str().unwrap();
    let url = world.scm.clone_url_with_userinfo("proj", "repo", userinfo);
    git_clone(&url, &cli.folder.path().join("clone")).await.expect("the clone works");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_partitions_the_request_command_publishes_to_the_users_partition() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    world.set("broker.partitions", 2);
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    // So that no other way is left.
    let channel = world.broker.channel().await;
    let exchange = world.broker.prefix();
    channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await.unwrap();
    let cli = Cli::of(&world);

    let host = world.scm.host();
    cli.run(&["request", "--user", "jdoe", "--host", &host]).await.good();
    let repository = world.scm.clone_url("proj", "repo");
    cli.run(&["workspace-start", "--user", "jdoe", "--workspace", "ws-1", &repository]).await.good();

    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_token_is_shown_only_where_it_is_asked_for() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    let pair = world.user_with_token("jdoe").await;
    let cli = Cli::of(&world);
    let host = world.scm.host();
    let request = ["request", "--user", "jdoe", "--host", &host];
    let start =
        ["workspace-start", "--user", "jdoe", "--workspace", "ws-1", &world.scm.clone_url("proj", "repo")];

    let hidden = cli.run(&request).await.good().keeps_secrets_of(&world);
    assert_eq!(
        (hidden.value("status"), hidden.value("user"), hidden.value("host")),
        ("ok", "jdoe", &host[..])
    );
    assert_eq!(
        (hidden.value("token"), hidden.value("refresh")),
        ("(hidden; --show-token prints it)", "none")
    );
    let shown = cli.run(&[&request[..], &["--show-token"]].concat()).await.good();
    assert_eq!(shown.value("token"), pair.access_token);
    assert_eq!(shown.value("userinfo"), format!("x-access-token:{}", pair.access_token));

    let hidden = cli.run(&start).await.good().keeps_secrets_of(&world);
    assert_eq!(hidden.table()[1][..3], [&host, "ok", "none"]);
    let shown = cli.run(&[&start[..], &["--show-token"]].concat()).await.good();
    assert!(shown.stdout.contains(&pair.access_token), "{shown:?}");
    let json = cli.run(&[&start[..], &["--json"]].concat()).await.good().json();
    assert_eq!(json["tokens"][0]["token"]["value"], pair.access_token);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_with_an_error_is_printed_and_exits_with_1() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let worker = world.start_worker().await;
    world.user_with_token("jdoe").await;
    let cli = Cli::of(&world);
    let host = world.scm.host();

    let request = ["request", "--user", "nobody", "--host", &host];
    let table = cli.run(&request).await.with_code(1);
    assert_eq!(
        (table.value("status"), table.value("error"), table.value("retryable")),
        ("error", "user_not_found", "no")
    );
    let json = cli.run(&[&request[..], &["--json"]].concat()).await.with_code(1).json();
    assert_eq!(json["error"]["code"], "user_not_found");

    let known = world.scm.clone_url("proj", "repo");
    let start = [
        "workspace-start",
        "--user",
        "jdoe",
        "--workspace",
        "ws-1",
        "git@unknown.example.org:o/r.git",
        &known,
    ];
    let table = cli.run(&start).await.with_code(1);
    assert_eq!(table.table()[1][..2], ["unknown.example.org", "error"]);
    assert!(table.stdout.contains("unknown_host"), "{table:?}");
    assert_eq!(table.table()[2][..2], [&host, "ok"]);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_reply_comes_it_exits_with_2_and_says_what_to_look_at() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let cli = Cli::of(&world);
    let request = ["request", "--user", "jdoe", "--host", "git.example.org", "--timeout", "100ms"];
    let prefix = world.broker.prefix();

    cli.run(&request)
        .await
        .with_code(2)
        .says(&format!("no queue takes token.request under the prefix `{prefix}`"));

    // It declares the queues, and leaves them.
    world.start_worker().await.stop().await;
    let ended = cli.run(&request).await.with_code(2).says("no reply came within 100ms");
    assert!(ended.stderr.contains(&world.broker.name("token-requests")), "{ended:?}");

    let away = Cli::of(&world).set("AMQP_URL", "amqp://me:s3cret@127.0.0.1:1/%2f");
    let ended =
        away.run(&request).await.with_code(2).says("error: nothing listens at 127.0.0.1:1 (broker.url): ");
    assert!(!ended.stderr.contains("s3cret"), "{ended:?}");
}

#[tokio::test]
async fn a_request_that_breaks_the_contract_is_not_published() {
    let cli = Cli::with([]).set("AMQP_URL", "amqp://127.0.0.1:1/%2f");
    for (arguments, text) in [
        (&["request", "--user", "u", "--host", "https://h/"][..], "host: must be a bare host name"),
        (&["request", "--user", "", "--host", "h"], "user_id: must be 1 to 255 characters"),
        (
            &["request", "--user", "u", "--host", "h", "--lifetime", "25h"],
            "must be a whole number from 1 to 86400",
        ),
        (&["request", "--user", "u", "--host", "h", "--lifetime", "10"], "write a duration like 30s"),
        (&["request", "--user", "u"], "--host <HOST>"),
        (
            &["workspace-start", "--user", "u", "--workspace", "w", "repo"],
            "repositories[0]: must be a clone URL",
        ),
        (&["workspace-start", "--user", "u", "--workspace", "w"], "<REPO>..."),
    ] {
        cli.run(arguments).await.with_code(2).says(text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn access_rules_apply_to_the_command_line_by_its_user_at_the_broker() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let host = world.scm.host();
    let user = url::Url::parse(world.broker.url()).unwrap().username().to_owned();
    let rule = |publisher: &str| serde_json::json!([{"publisher": publisher, "hosts": ["*"], "messages": ["token.request", "token.store"]}]);
    let request = ["request", "--user", "nobody", "--host", &host];
    for (publisher, code) in [(&user[..], "user_not_found"), ("somebody-else", "forbidden")] {
        let worker = world.set("access.rules", rule(publisher)).start_worker().await;
        let ended = Cli::of(&world).run(&request).await.with_code(1);
        assert_eq!(ended.value("error"), code, "rule for {publisher}");
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_request_says_whether_it_was_published_and_exits_with_130() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    // It declares the queues, and leaves them.
    world.start_worker().await.stop().await;
    let request = ["request", "--user", "jdoe", "--host", "git.example.org"];
    let child = Cli::of(&world).start(&request);
    eventually("the request to be in its queue", PATIENCE, async || {
        (world.broker.queue_depth("token-requests").await == 1).then_some(())
    })
    .await;
    signal(&child, "INT").await;
    // The confirm may be on its way.
    let told = ended(child).await.with_code(130).says("published").says("its reply is not waited for");
    assert_eq!((told.stdout.as_str(), told.stderr.lines().count()), ("", 1), "{told:?}");

    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("amqp://{}", silent.local_addr().unwrap());
    let start = ["workspace-start", "--user", "jdoe", "--workspace", "ws-1", "git@git.example.org:o/r.git"];
    let child = Cli::with([]).set("AMQP_URL", &url).start(&start);
    let _connected = silent.accept().await.unwrap();
    signal(&child, "TERM").await;
    drop(ended(child).await.with_code(130).says("error: no request was published: interrupted"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_without_permissions_is_told_which_it_needs_and_they_are_enough() {
    for partitions in [0, 2] {
        let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
        world.set("broker.partitions", partitions);
        let worker = world.start_worker().await;
        world.user_with_token("jdoe").await;
        let nothing = || ["^$".to_owned(), "^$".to_owned(), "^$".to_owned()];
        let users = [("stranger", None), ("publisher", Some(nothing()))];
        let accounts = Accounts::create(&world, &users).await;
        let host = world.scm.host();
        let request = ["request", "--user", "jdoe", "--host", &host];

        let cli = Cli::of(&world).set("AMQP_URL", &accounts.url("stranger"));
        let stranger =
            cli.run(&request).await.with_code(2).says("it has no permissions there; next: `rabbitmqctl");
        let cli = Cli::of(&world).set("AMQP_URL", &accounts.url("publisher"));
        let refused = cli.run(&request).await.with_code(2).says("has no write permission for exchange ");
        for ended in [stranger, refused] {
            assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
            assert!(!ended.stderr.contains("ACCESS_REFUSED"), "{}", ended.stderr);
            let (_, grant) = ended.stderr.split_once("rabbitmqctl set_permissions ").expect("a command");
            let patterns: Vec<String> = grant.split('\'').skip(1).step_by(2).map(str::to_owned).collect();
            accounts.grant("publisher", &patterns.try_into().expect("three patterns")).await;
            // The broker remembers for a moment what a connection may do; this is a new one.
            cli.run(&request).await.good();
            accounts.grant("publisher", &nothing()).await;
        }
        worker.stop().await;
    }
}
