//! What an operator meets first when RabbitMQ is not as a worker needs it: each in one line that says what to do, and a worker
//! that waits and goes on by itself.

mod able;

use std::sync::Arc;

use futures_util::future::join_all;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use tokenkeeper::broker::{Diagnosis, Difference, Login, Permission};
use tokenkeeper::settings::Settings;
use tokenkeeper::tls::TlsFault;
use tokenkeeper_testkit::proxy::FaultProxy;
use tokenkeeper_testkit::queues::TestBroker;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use url::Url;

use crate::harness::accounts::{Accounts, Permissions};
use crate::harness::{Dialect, Kind, PATIENCE, WorkerProcess, World, eventually};

/// A worker that cannot do its job, and what it should say of it.
struct Case {
    settings: Vec<(&'static str, String)>,
    diagnosis: Diagnosis,
}

impl Case {
    fn at(url: impl Into<String>, diagnosis: Diagnosis) -> Self {
        Self { settings: vec![("AMQP_URL", url.into())], diagnosis }
    }

    fn and(mut self, variable: &'static str, value: impl Into<String>) -> Self {
        self.settings.push((variable, value.into()));
        self
    }
}

const PREFIX: &str = "TOKENKEEPER__BROKER__PREFIX";
const TOPOLOGY: &str = "TOKENKEEPER__BROKER__TOPOLOGY";
const PUBLISHERS: &str = "TOKENKEEPER__PUBLISHERS";

fn patterns(configure: &str, write: &str, read: &str) -> Permissions {
    [configure, write, read].map(str::to_owned)
}

fn forbidden(permission: Permission, object: impl Into<String>) -> Diagnosis {
    Diagnosis::Forbidden { permission, object: object.into() }
}

fn different(object: String, argument: &str, wanted: &str, found: &str) -> Diagnosis {
    let [argument, wanted, found] = [argument, wanted, found].map(str::to_owned);
    Diagnosis::Different { object, difference: Difference { argument, wanted, found } }
}

/// The same URL with something else in it.
fn url_with(url: &str, change: impl FnOnce(&mut Url)) -> String {
    let mut url = Url::parse(url).expect("a URL");
    change(&mut url);
    url.into()
}

/// A port that speaks TLS with a certificate that nobody knows, and ends each connection after that.
async fn tls_port() -> u16 {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
    let (acceptor, listener) =
        (TlsAcceptor::from(Arc::new(config)), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(acceptor.accept(stream).await);
        }
    });
    port
}

/// Where a worker is that stands beside all this and must not notice: its world.
async fn cases(world: &World, accounts: &Accounts, others: &[TestBroker; 3]) -> Vec<Case> {
    let url = world.broker.url();
    let ours = |name: &str| format!("queue {}", world.broker.name(name));
    let [theirs, locked, nothing] = others;
    let channel = theirs.channel().await;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let mut arguments = FieldTable::default();
    for (argument, value) in [
        ("x-queue-type", "quorum"),
        ("x-dead-letter-exchange", "elsewhere"),
        ("x-dead-letter-strategy", "at-least-once"),
        ("x-overflow", "reject-publish"),
    ] {
        arguments.insert(argument.into(), AMQPValue::LongString(value.into()));
    }
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(5));
    let queue = theirs.name("token-requests");
    channel.queue_declare(queue.as_str().into(), durable, arguments).await.unwrap();
    let postgres =
        std::env::var("TEST_POSTGRES_URL").unwrap_or_else(|_| "postgres://127.0.0.1:5432".to_owned());
    let postgres = Url::parse(&postgres).unwrap();
    let tls = tls_port().await;
    let at_port = |port: u16| url_with(url, |url| url.set_port(Some(port)).unwrap());
    let encrypted = |url: &str| url.replacen("amqp://", "amqps://", 1);
    let localhost = |url: &str| url_with(url, |url| url.set_host(Some("localhost")).unwrap());

    vec![
        Case::at(at_port(1), Diagnosis::NotRunning),
        Case::at(
            encrypted(&url_with(url, |url| url.set_host(Some("no-such-host.invalid")).unwrap())),
            Diagnosis::UnknownHost,
        ),
        Case::at(url_with(url, |url| url.set_password(Some("wrong")).unwrap()), Diagnosis::LoginRefused),
        Case::at(url_with(url, |url| url.set_path("/no-such-vhost")), Diagnosis::NoVhost),
        Case::at(accounts.url("nobody"), Diagnosis::NoAccess),
        Case::at(
            accounts.url("no-configure"),
            forbidden(Permission::Configure, format!("exchange {}", world.broker.name("dead-letters"))),
        ),
        Case::at(accounts.url("no-write"), forbidden(Permission::Write, "exchange amq.default")),
        Case::at(
            accounts.url("no-read"),
            forbidden(Permission::Read, format!("exchange {}", world.broker.name("dead-letters"))),
        ),
        Case::at(url, different(ours("suspects"), "x-delivery-limit", "7", "5"))
            .and("TOKENKEEPER__BROKER__DELIVERY_LIMIT", "7"),
        Case::at(
            url,
            different(
                format!("queue {queue}"),
                "x-dead-letter-exchange",
                &theirs.name("dead-letters"),
                "elsewhere",
            ),
        )
        .and(PREFIX, theirs.prefix()),
        Case::at(url, Diagnosis::Locked { object: format!("queue {}", locked.name("token-requests")) })
            .and(PREFIX, locked.prefix()),
        Case::at(
            url_with(url, |url| {
                url.set_host(postgres.host_str()).unwrap();
                url.set_port(Some(postgres.port().unwrap_or(5432))).unwrap();
            }),
            Diagnosis::NotAmqp,
        ),
        Case::at(
            encrypted(&at_port(Url::parse(url).unwrap().port().unwrap_or(5672))),
            Diagnosis::Tls(TlsFault::NotTls),
        ),
        Case::at(at_port(tls), Diagnosis::NotAmqp),
        Case::at(encrypted(&localhost(&at_port(tls))), Diagnosis::Tls(TlsFault::UnknownAuthority)),
        Case::at(url, Diagnosis::Missing { object: format!("exchange {}", nothing.name("dead-letters")) })
            .and(PREFIX, nothing.prefix())
            .and(TOPOLOGY, "passive"),
    ]
}

/// The lines that an operator is to read: warnings and errors.
fn alarming(worker: &WorkerProcess) -> Vec<Value> {
    let log = worker.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["level"] == "WARN" || line["level"] == "ERROR").collect()
}

/// How often it has tried in vain.
async fn tries(worker: &WorkerProcess) -> usize {
    let mut tries = 0;
    for connection in ["consume", "suspects", "isolated", "publish"] {
        let series = format!(r#"tokenkeeper_broker_reconnects_total{{connection="{connection}"}}"#);
        tries += worker.count(&series).await;
    }
    tries
}

async fn says_it_once(world: &World, case: &Case) {
    let mut environment = world.environment().clone();
    environment.extend(case.settings.iter().map(|(variable, value)| ((*variable).to_owned(), value.clone())));
    let login = Login::of(&Settings::load_from(None, environment).unwrap().broker);
    let problem = format!("broker: {}", case.diagnosis.problem(&login));
    // With a policy, a broker on another machine is no reason for a warning of its own.
    let settings: Vec<_> = case.settings.iter().cloned().chain([(PUBLISHERS, "[]".to_owned())]).collect();
    let worker = WorkerProcess::launch_with(world, &settings).await;

    let awaited = format!("{problem:?} in /readyz");
    let ready = eventually(&awaited, PATIENCE, async || {
        let (status, body) = worker.get("readyz").await;
        body.contains(&problem).then_some((status, body))
    });
    let (status, body) = ready.await;
    assert_eq!((status, body.lines().next()), (503, Some(problem.as_str())), "the cause comes first");
    // Each of its connections, and more than once.
    eventually("it to try again", PATIENCE, async || (tries(&worker).await >= 8).then_some(())).await;
    let lines = alarming(&worker);
    let texts: Vec<&str> = lines.iter().filter_map(|line| line["message"].as_str()).collect();
    assert_eq!(texts, [problem], "one line, and none of a library: {lines:?}");
    worker.stop(world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_first_error_is_one_line_with_its_cause_and_the_next_command_while_another_worker_serves() {
    let world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let bystander = world.spawn_worker().await;
    world.user_with_token("jdoe").await;
    let all = &format!("^{}.*$", world.broker.prefix());
    let users = [
        ("nobody", None),
        ("no-configure", Some(patterns("^$", ".*", all))),
        ("no-write", Some(patterns(all, all, all))),
        ("no-read", Some(patterns(all, ".*", "^$"))),
    ];
    let accounts = Accounts::create(&world, &users).await;
    let others = [TestBroker::connect().await, TestBroker::connect().await, TestBroker::connect().await];
    let locker = Connection::connect(world.broker.url(), ConnectionProperties::default()).await.unwrap();
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let (channel, queue) = (locker.create_channel().await.unwrap(), others[1].name("token-requests"));
    channel.queue_declare(queue.into(), exclusive, FieldTable::default()).await.unwrap();
    let cases = cases(&world, &accounts, &others).await;

    for together in cases.chunks(6) {
        let failing = join_all(together.iter().map(|case| says_it_once(&world, case)));
        let serving = async { assert_eq!(world.request("jdoe").await["status"], "ok") };
        tokio::join!(failing, serving);
    }

    locker.close(200, "done".into()).await.unwrap();
    assert_eq!(bystander.get("readyz").await.0, 200);
    assert_eq!(alarming(&bystander), Vec::<Value>::new(), "it noticed nothing");
    bystander.stop(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_not_there_yet_is_one_line_when_that_begins_and_one_when_it_is_over() {
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let proxy = FaultProxy::start_for_url(world.broker.url(), 5672).await;
    proxy.refuse();
    let url = proxy.url(world.broker.url());
    world.set_broker_url(url);
    let worker = world.launch_worker_process().await;
    eventually("it to try again", PATIENCE, async || (tries(&worker).await >= 12).then_some(())).await;
    assert_eq!(worker.log().matches(r#""broker: "#).count(), 1);

    proxy.accept();

    worker.wait_until_ready().await;
    worker.wait_for_log(r#""broker, over: "#, 1).await;
    assert_eq!(alarming(&worker).len(), 1);
    world.user_with_token("jdoe").await;
    assert_eq!(world.request("jdoe").await["status"], "ok");
    worker.stop(&world).await;
}
