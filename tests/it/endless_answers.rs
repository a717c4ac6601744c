//! A token endpoint whose answer does not end costs its own requesters their refresh, and nobody else anything.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use tokenkeeper_testkit::http;
use tokenkeeper_testkit::queues::{BasicProperties, PendingReply, TOKEN_REQUEST, TOKEN_STORE};

use crate::harness::{Dialect, Kind, PATIENCE, SimulatedScm, WorkerProcess, World, eventually};

/// A server that answers every request with this, again and again, as fast as it is read. On threads of its own, so that
/// it does not slow down the test.
struct Flood {
    port: u16,
    /// Requests that it has answered so.
    requests: Arc<AtomicUsize>,
}

impl Flood {
    fn of(text: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::<AtomicUsize>::default();
        let (count, flood) = (Arc::clone(&requests), text.repeat(16 * 1024 / text.len()));
        std::thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                let (count, flood) = (Arc::clone(&count), flood.clone());
                std::thread::spawn(move || pour(connection, &flood, &count));
            }
        });
        Self { port, requests }
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

fn pour(mut connection: TcpStream, flood: &str, count: &AtomicUsize) {
    if !matches!(connection.read(&mut [0; 4096]), Ok(1..)) {
        return;
    }
    count.fetch_add(1, Ordering::Relaxed);
    while connection.write_all(flood.as_bytes()).is_ok() {}
}

/// A worker whose hand-outs are timed.
struct Timed<'a> {
    world: &'a World,
    worker: &'a WorkerProcess,
    hand_outs: Vec<Duration>,
    looks: Vec<Duration>,
}

impl<'a> Timed<'a> {
    fn new(world: &'a World, worker: &'a WorkerProcess) -> Self {
        Self { world, worker, hand_outs: Vec::new(), looks: Vec::new() }
    }

    /// One hand-out, and one look at `/healthz`.
    async fn once(&mut self, client: &reqwest::Client) {
        let begin = Instant::now();
        assert_eq!(self.world.request("bystander").await["status"], "ok");
        self.hand_outs.push(begin.elapsed());
        let begin = Instant::now();
        let health = format!("http://{}/healthz", self.worker.address());
        assert!(client.get(&health).send().await.unwrap().status().is_success());
        self.looks.push(begin.elapsed());
    }
}

/// The shortest first.
struct Latencies(Vec<Duration>);

impl Latencies {
    fn of(mut latencies: Vec<Duration>) -> Self {
        latencies.sort();
        Self(latencies)
    }

    /// What so many of a hundred were not above.
    fn percentile(&self, percent: usize) -> Duration {
        self.0[(self.0.len() - 1) * percent / 100]
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_hosts_with_endless_interim_answers_do_not_slow_down_other_hosts() {
    // Less than the time of a request, so that the hosts are asked meanwhile.
    const MEASURED: Duration = Duration::from_secs(6);
    let mut world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    // So that the host is asked again and again for as long as its requesters wait.
    world.set("refresh.circuit_failures", 1_000).set("refresh.retry_max_ms", 200);
    world.set("worker.request_budget_secs", 8).set("refresh.wait_secs", 8).set("log.level", "info");
    let worker = world.spawn_worker().await;
    world.user_with_token("bystander").await;
    // Beside it, in turn: whatever else the machine does meanwhile slows down both.
    let calm_world = World::new(Kind::Sqlite, Dialect::GitHub).await;
    let calm_worker = calm_world.spawn_worker().await;
    calm_world.user_with_token("bystander").await;

    let floods = [
        Flood::of("HTTP/1.1 100 Continue\r\n\r\n"),
        Flood::of("HTTP/1.1 102 Processing\r\nx: y\r\n\r\n"),
        Flood::of("HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n"),
    ];
    let hosts = join_all(floods.iter().map(|flood| hostile_host(&world, flood))).await;
    let asked = Instant::now();
    let refreshes = join_all((0..8).map(|number| {
        let body = json!({"user_id": format!("user-{number}"), "host": hosts[number % 3].host()});
        world.broker.send(TOKEN_REQUEST, body.to_string(), BasicProperties::default())
    }))
    .await;
    let refreshes = tokio::spawn(async move {
        let replies = join_all(refreshes.into_iter().map(PendingReply::reply)).await;
        (replies, asked.elapsed())
    });
    eventually("every flood to have begun", PATIENCE, async || {
        floods.iter().all(|flood| flood.requests() > 0).then_some(())
    })
    .await;
    let client = http::client();
    let (mut flooded, mut calm) = (Timed::new(&world, &worker), Timed::new(&calm_world, &calm_worker));
    let until = Instant::now() + MEASURED;
    while Instant::now() < until {
        flooded.once(&client).await;
        calm.once(&client).await;
    }

    let (refused, took) = refreshes.await.unwrap();
    for reply in &refused {
        let (status, error) = (&reply.body["status"], &reply.body["error"]);
        assert_eq!((status, &error["retryable"]), (&json!("error"), &json!(true)), "{error}");
    }
    assert!(took < Duration::from_secs(12), "they had 8 s, and were told after {took:?}");
    let requests: usize = floods.iter().map(Flood::requests).sum();
    assert!(requests >= 16, "they were asked no more than {requests} times");
    let (hand_outs, calm_hand_outs) = (Latencies::of(flooded.hand_outs), Latencies::of(calm.hand_outs));
    for percent in [50, 90] {
        let (calm, flooded) = (calm_hand_outs.percentile(percent), hand_outs.percentile(percent));
        let most = 2 * calm + Duration::from_millis(2);
        assert!(flooded <= most, "{percent} %: {flooded:?} in place of {calm:?}");
    }
    let slow = Latencies::of(flooded.looks).percentile(95);
    let most = Duration::from_millis(100).max(2 * Latencies::of(calm.looks).percentile(95));
    assert!(slow < most, "/healthz took {slow:?}");
    worker.stop(&world).await;
    calm_worker.stop(&calm_world).await;
}

/// A host whose token endpoint is this flood, with expired tokens of all users.
async fn hostile_host(world: &World, flood: &Flood) -> SimulatedScm {
    let scm = SimulatedScm::start_as(Dialect::GitHub).await;
    let token_url = format!("http://127.0.0.1:{}/token", flood.port).parse().unwrap();
    world.apply(&scm, |record| record.token_url = Some(token_url)).await;
    for number in 0..8 {
        let pair = scm.authorize_until(&format!("user-{number}"), scm.now_ms() - 1_000);
        let stored = world.broker.request(TOKEN_STORE, scm.token_store_body(&pair)).await;
        assert_eq!(stored.body, json!({"status": "ok"}));
    }
    scm
}
