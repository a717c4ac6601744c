use tokenkeeper_testkit::authority::{Authority, Signed};
use tokenkeeper_testkit::queues::TestBroker;
use tokenkeeper_testkit::servers::{Permissions, RabbitMq};

use super::{Trust, can_run_servers};
use crate::cli::Cli;
use crate::harness::{Dialect, Kind, World};

const USER: &str = "tokenkeeper";

/// What `doctor` says of the broker.
async fn told(url: &str, settings: Vec<(String, String)>) -> String {
    let environment = settings.into_iter().chain([("AMQP_URL".to_owned(), url.to_owned())]);
    let ended = Cli::with(environment).run(&["doctor"]).await;
    let is_of_broker = |line: &&str| line.chars().skip(2).collect::<String>().starts_with("broker ");
    let line = ended.stdout.lines().find(is_of_broker);
    line.unwrap_or_else(|| panic!("{ended:?}")).to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_is_used_by_certificate_and_each_way_to_fail_is_one_line_with_its_cause() {
    if !can_run_servers() {
        return;
    }
    let trust = Trust::new();
    let shown = trust.known.sign_server("localhost");
    let rabbitmq = RabbitMq::start(trust.folder(), Some(&trust.of_server(&shown))).await.unwrap();
    let all = || ".*".to_owned();
    rabbitmq.add_account(USER, &Permissions { configure: all(), write: all(), read: all() }).await.unwrap();
    let client = trust.known.sign_client(USER);
    let settings = |trusted: &Authority, shown: Option<&Signed>| trust.settings("BROKER", trusted, shown);
    let url = rabbitmq.url_by_certificate("localhost");

    let good = told(&url, settings(&trust.known, Some(&client))).await;
    assert!(good.starts_with('✓') && good.contains("lets a worker publish, declare and consume"), "{good}");

    let unknown = told(&url, settings(&trust.unknown, Some(&client))).await;
    assert!(unknown.contains("is not trusted (broker.tls_ca_file)"), "{unknown}");

    // The file takes the place of those that this machine trusts.
    let mut of_machine = settings(&trust.unknown, Some(&client));
    of_machine.push(("SSL_CERT_FILE".to_owned(), trust.write("machine.pem", trust.known.pem())));
    let of_machine = told(&url, of_machine).await;
    assert!(of_machine.contains("is not trusted (broker.tls_ca_file)"), "{of_machine}");

    let by_address = rabbitmq.url_by_certificate("127.0.0.1");
    let other_name = told(&by_address, settings(&trust.known, Some(&client))).await;
    assert!(
        other_name.contains("is for another name (broker.tls_server_name): it does not name 127.0.0.1"),
        "{other_name}"
    );
    let mut named = settings(&trust.known, Some(&client));
    named.push(("TOKENKEEPER__BROKER__TLS_SERVER_NAME".to_owned(), "localhost".to_owned()));
    let named = told(&by_address, named).await;
    assert!(named.starts_with('✓'), "{named}");

    // Of several nodes each one must show its own name.
    let of_two = |one: &str, other: &str| {
        let (before, host) = (rabbitmq.url_by_certificate(one), rabbitmq.url_by_certificate(other));
        let host = host.trim_start_matches("amqps://").split('/').next().unwrap().to_owned();
        before.replace("amqps://", &format!("amqps://{host},"))
    };
    let one_of_two = told(&of_two("127.0.0.1", "localhost"), settings(&trust.known, Some(&client))).await;
    assert!(one_of_two.starts_with('✓'), "{one_of_two}");
    let none_of_two = told(&of_two("127.0.0.1", "127.0.0.2"), settings(&trust.known, Some(&client))).await;
    assert!(none_of_two.contains("it does not name 127.0.0."), "{none_of_two}");

    let with_password =
        url.replace("amqps://", "amqps://guest:guest@").replace("?auth_mechanism=external", "");
    let nothing_shown = told(&with_password, settings(&trust.known, None)).await;
    assert!(nothing_shown.contains("wants a client certificate (broker.tls_cert_file)"), "{nothing_shown}");

    let of_others = trust.unknown.sign_client(USER);
    let refused = told(&url, settings(&trust.known, Some(&of_others))).await;
    assert!(refused.contains("refuses our client certificate (broker.tls_cert_file)"), "{refused}");

    let nobody = trust.known.sign_client("nobody");
    let no_user = told(&url, settings(&trust.known, Some(&nobody))).await;
    assert!(no_user.contains("refuses the login by our certificate (broker.tls_cert_file)"), "{no_user}");

    a_worker_serves_over_tls(&trust, &rabbitmq, &url, &client).await;

    rabbitmq
        .change_certificate(&trust.of_server(&trust.known.sign_expired_server("localhost")))
        .await
        .unwrap();
    let expired = told(&url, settings(&trust.known, Some(&client))).await;
    assert!(expired.contains("has expired (broker.url)"), "{expired}");
}

/// With a client certificate in place of a password.
async fn a_worker_serves_over_tls(trust: &Trust, rabbitmq: &RabbitMq, url: &str, client: &Signed) {
    let mut world = World::new(Kind::Sqlite, Dialect::BitbucketServer).await;
    world.broker = TestBroker::connect_to(&rabbitmq.url()).await;
    let prefix = world.broker.prefix().to_owned();
    world.set("broker.prefix", prefix).set_broker_url(url.to_owned());
    for (variable, value) in trust.settings("BROKER", &trust.known, Some(client)) {
        world.set(&variable.trim_start_matches("TOKENKEEPER__").replace("__", "."), value);
    }
    let worker = world.spawn_worker().await;
    world.user_with_token("jdoe").await;

    assert_eq!(world.request("jdoe").await["status"], "ok");

    worker.stop(&world).await;
}
