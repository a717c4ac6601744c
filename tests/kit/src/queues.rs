//! Upstream, as a worker sees it: it publishes requests and reads replies and dead letters.
//!
//! ```no_run
//! # use serde_json::json;
//! # use tokenkeeper_testkit::queues::{TOKEN_REQUEST, TestBroker};
//! # async fn example() {
//! let broker = TestBroker::connect().await;
//! // ... start a worker with TOKENKEEPER__BROKER__PREFIX = broker.prefix() ...
//! broker.wait_for_consumer("token-requests").await;
//! let reply = broker.request(TOKEN_REQUEST, json!({"user_id": "u-1", "host": "git.example.org"})).await;
//! assert_eq!(reply.body["status"], "ok");
//! # }
//! ```

mod dead_letters;
mod requester;

use std::{
    env,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

pub use lapin::{BasicProperties, types::FieldTable};
use lapin::{
    Channel, Connection, ConnectionProperties, Queue,
    options::{ConfirmSelectOptions, ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions},
};
use serde_json::Value;
use url::Url;
use uuid::Uuid;

use self::dead_letters::next_dead_letter;
pub use self::dead_letters::{DeadLetter, remaining_dead_letters};
pub use self::requester::{PendingReply, Reply};
use self::requester::{Requester, publish_mandatory};
use crate::wait::{PATIENCE, eventually, within};

/// The routing key of requests for a token.
pub const TOKEN_REQUEST: &str = "token.request";
/// The routing key of workspace starts.
pub const WORKSPACE_START: &str = "workspace.start";
/// The routing key of pairs to store.
pub const TOKEN_STORE: &str = "token.store";
/// The routing key of tokens that a host rejected.
pub const TOKEN_REPORT: &str = "token.report";

const DEFAULT_URL: &str = "amqp://guest:guest@127.0.0.1:5672/%2f";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What the worker declares, after the prefix and a dot.
const QUEUES: [&str; 10] = [
    "token-requests",
    "workspace-starts",
    "token-stores",
    "token-reports",
    "again",
    "parked-pairs",
    "pairs",
    "suspects",
    "isolated",
    "dead-letters",
];

/// Which of them have partitions, where a worker is set to have some: queues of their own, and an exchange.
const PARTITIONED: [&str; 3] = ["token-requests", "workspace-starts", "token-stores"];

/// A connection to the broker with a prefix of its own. When it is dropped, everything that a worker declares
/// under this prefix is deleted, also when the test panics.
pub struct TestBroker {
    connection: Connection,
    prefix: String,
    url: String,
    by_queue: Requester,
    direct: Requester,
    /// One message at a time: a confirm then tells about the message it belongs to.
    publishing: tokio::sync::Mutex<Channel>,
    /// What a worker declares beside the rest, and is to be deleted with it.
    partitions: AtomicU16,
    /// The dead letters that were taken out so far, for [`TestBroker::dead_letters_seen`].
    letters: Mutex<Vec<DeadLetter>>,
}

/// A user of the broker who publishes over a connection of its own.
pub struct Publisher {
    by_queue: Requester,
    _connection: Connection,
}

impl Publisher {
    /// As [`TestBroker::send`].
    pub async fn send(
        &self,
        routing_key: &str,
        body: impl AsRef<[u8]>,
        properties: BasicProperties,
    ) -> PendingReply {
        self.by_queue.send(routing_key, body.as_ref(), properties).await
    }

    /// As [`TestBroker::publish`]: with the properties as they are.
    pub async fn publish(&self, routing_key: &str, body: impl AsRef<[u8]>, properties: BasicProperties) {
        self.by_queue.publish(routing_key, body.as_ref(), properties).await;
    }
}

impl TestBroker {
    /// Connects to `AMQP_URL`, or to the broker on this machine. Panics, and says what to start, where no
    /// broker answers.
    pub async fn connect() -> Self {
        Self::connect_to(&broker_url()).await
    }

    /// Connects to the broker at `url`.
    pub async fn connect_to(url: &str) -> Self {
        let connection = connect(url).await;
        let prefix = format!("tk-test-{}", &Uuid::new_v4().simple().to_string()[..12]);
        let by_queue = Requester::with_queue(&connection, &prefix, format!("{prefix}-replies")).await;
        let direct = Requester::direct(&connection, &prefix).await;
        let publishing = tokio::sync::Mutex::new(confirming_channel(&connection).await);
        let (url, partitions) = (url.to_owned(), AtomicU16::new(0));
        let letters = Mutex::default();
        Self { connection, prefix, url, by_queue, direct, publishing, partitions, letters }
    }

    /// The worker's `broker.prefix`.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The worker's `broker.url`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The full name of a queue or exchange of the worker: `token-requests` → `PREFIX.token-requests`.
    pub fn name(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.prefix)
    }

    /// The queue that replies to [`TestBroker::request`] come to.
    pub fn reply_queue(&self) -> &str {
        self.by_queue.reply_to()
    }

    /// Says that workers under this prefix have so many partitions.
    pub fn expect_partitions(&self, count: u16) {
        self.partitions.fetch_max(count, Ordering::Relaxed);
    }

    /// Connects as another user of the broker, who publishes to the same worker. Its replies come to `PREFIX-NAME-replies`.
    pub async fn publisher(&self, url: &str, name: &str) -> Publisher {
        let connection = connect(url).await;
        let reply_to = format!("{}-{name}-replies", self.prefix);
        let by_queue = Requester::with_queue(&connection, &self.prefix, reply_to).await;
        Publisher { by_queue, _connection: connection }
    }

    /// A channel for what the kit does not offer.
    pub async fn channel(&self) -> Channel {
        self.connection.create_channel().await.expect("open a channel")
    }

    // --- Publishing ---

    /// Publishes to the worker's exchange, `properties` as they are: without a `reply_to` unless they have one.
    /// Returns when the broker has taken the message; panics when it cannot be routed.
    pub async fn publish(&self, routing_key: &str, body: impl AsRef<[u8]>, properties: BasicProperties) {
        let channel = self.publishing.lock().await;
        let returned =
            publish_mandatory(&channel, &self.prefix, routing_key, body.as_ref(), properties).await;
        assert!(
            returned.is_none(),
            "no queue is bound to the exchange {} for {routing_key}: is the worker up?",
            self.prefix
        );
    }

    /// Publishes a request and waits for its reply. Any number may be under way at once.
    pub async fn request(&self, routing_key: &str, body: Value) -> Reply {
        self.send(routing_key, body.to_string(), BasicProperties::default()).await.reply().await
    }

    /// The same through direct reply-to (`amq.rabbitmq.reply-to`), without a queue of its own.
    pub async fn request_direct(&self, routing_key: &str, body: Value) -> Reply {
        self.send_direct(routing_key, body.to_string(), BasicProperties::default()).await.reply().await
    }

    /// Publishes a request, any bytes with any properties, and returns before its reply has come. `reply_to` is
    /// set; `correlation_id` as well, unless the properties have one or a `message_id`.
    pub async fn send(
        &self,
        routing_key: &str,
        body: impl AsRef<[u8]>,
        properties: BasicProperties,
    ) -> PendingReply {
        self.by_queue.send(routing_key, body.as_ref(), properties).await
    }

    /// The same to the partition of a user: `kind` is the queue of its kind, without the prefix.
    pub async fn send_to_partition(
        &self,
        kind: &str,
        user: &str,
        body: impl AsRef<[u8]>,
        properties: BasicProperties,
    ) -> PendingReply {
        self.by_queue.send_via(&self.name(kind), user, body.as_ref(), properties).await
    }

    /// The same straight to the queue `PREFIX.suffix`.
    pub async fn send_to_queue(
        &self,
        suffix: &str,
        body: impl AsRef<[u8]>,
        properties: BasicProperties,
    ) -> PendingReply {
        self.by_queue.send_via("", &self.name(suffix), body.as_ref(), properties).await
    }

    /// The same through direct reply-to.
    pub async fn send_direct(
        &self,
        routing_key: &str,
        body: impl AsRef<[u8]>,
        properties: BasicProperties,
    ) -> PendingReply {
        self.direct.send(routing_key, body.as_ref(), properties).await
    }

    /// Replies that nobody waited for: second replies to one request, and those to a [`PendingReply`] that was
    /// dropped. Each is returned once.
    pub fn stray_replies(&self) -> Vec<Reply> {
        [&self.by_queue, &self.direct].into_iter().flat_map(Requester::stray_replies).collect()
    }

    /// Every reply that has come so far.
    pub fn replies_seen(&self) -> Vec<Reply> {
        [&self.by_queue, &self.direct].into_iter().flat_map(Requester::replies_seen).collect()
    }

    /// Every dead letter that was taken out so far.
    pub fn dead_letters_seen(&self) -> Vec<DeadLetter> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    // --- Looking at the worker's queues ---

    /// How many messages are ready in `PREFIX.suffix`. Panics where there is no such queue.
    pub async fn queue_depth(&self, suffix: &str) -> u32 {
        let name = self.name(suffix);
        self.inspect(&name).await.unwrap_or_else(|| panic!("there is no queue {name}")).message_count()
    }

    /// How many consumers `PREFIX.suffix` has; none where there is no such queue.
    pub async fn consumers(&self, suffix: &str) -> u32 {
        self.inspect(&self.name(suffix)).await.map_or(0, |queue| queue.consumer_count())
    }

    /// Waits until a worker consumes from `PREFIX.suffix`.
    pub async fn wait_for_consumer(&self, suffix: &str) {
        let what = format!("a worker that consumes from {}", self.name(suffix));
        eventually(&what, PATIENCE, async || (self.consumers(suffix).await > 0).then_some(())).await;
    }

    /// Takes all dead letters that are there now.
    pub async fn dead_letters(&self) -> Vec<DeadLetter> {
        let channel = self.channel().await;
        let mut letters = Vec::new();
        while let Some(letter) = next_dead_letter(&channel, &self.prefix).await {
            letters.push(letter);
        }
        close(&channel).await;
        self.letters.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&letters);
        letters
    }

    /// Takes dead letters until there are `count`: they arrive a moment after the worker has let go of them.
    pub async fn wait_for_dead_letters(&self, count: usize) -> Vec<DeadLetter> {
        let mut letters = Vec::new();
        let what = format!("{count} dead letters in {}", self.name("dead-letters"));
        eventually(&what, PATIENCE, async || {
            letters.extend(self.dead_letters().await);
            (letters.len() >= count).then_some(())
        })
        .await;
        letters
    }

    /// `None` where there is no such queue, which closes the channel that asked.
    async fn inspect(&self, name: &str) -> Option<Queue> {
        let channel = self.channel().await;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare(name.into(), passive, FieldTable::default()).await.ok();
        close(&channel).await;
        queue
    }
}

impl Drop for TestBroker {
    fn drop(&mut self) {
        let (url, prefix) = (self.url.clone(), self.prefix.clone());
        let partitions = self.partitions.load(Ordering::Relaxed);
        // A thread with a runtime of its own: the test's may be the one that is going down.
        let deleting = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime to delete queues").block_on(within(
                "the queues of a test to be deleted",
                PATIENCE,
                delete_topology(&url, &prefix, partitions),
            ));
        });
        let deleted = deleting.join();
        assert!(deleted.is_ok() || std::thread::panicking(), "queues of {} are left over", self.prefix);
    }
}

async fn delete_topology(url: &str, prefix: &str, partitions: u16) {
    let connection = connect(url).await;
    let channel = connection.create_channel().await.expect("open a channel");
    let of_partitions = PARTITIONED
        .into_iter()
        .flat_map(|queue| (0..partitions).map(move |index| format!("{queue}.{index}")));
    for queue in QUEUES.into_iter().map(str::to_owned).chain(of_partitions) {
        let queue = format!("{prefix}.{queue}");
        let deleted = channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await;
        deleted.expect("delete a queue");
    }
    let plain = ["", ".dead-letters", ".events", ".again"].map(|suffix| format!("{prefix}{suffix}"));
    let spreading = PARTITIONED.map(|queue| format!("{prefix}.{queue}"));
    for exchange in plain.into_iter().chain(spreading.into_iter().filter(|_| partitions > 0)) {
        let deleted = channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await;
        deleted.expect("delete an exchange");
    }
    connection.close(200, "done".into()).await.expect("close the connection");
}

async fn connect(url: &str) -> Connection {
    let properties = ConnectionProperties::default().with_connection_name("tokenkeeper-testkit".into());
    // lapin waits for ever for a broker that accepts and says nothing.
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT, Connection::connect(url, properties)).await;
    let problem = match connecting {
        Ok(Ok(connection)) => return connection,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {CONNECT_TIMEOUT:?}"),
    };
    panic!(
        "RabbitMQ at {} does not answer: {problem}\n\
         Start it with scripts/services.sh, or name another broker in AMQP_URL.",
        address(url)
    );
}

async fn confirming_channel(connection: &Connection) -> Channel {
    let channel = connection.create_channel().await.expect("open a channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("switch confirms on");
    channel
}

async fn close(channel: &Channel) {
    // It fails where the broker has closed the channel already, after a queue that is not there.
    let _ = channel.close(200, "done".into()).await;
}

fn broker_url() -> String {
    env::var("AMQP_URL").unwrap_or_else(|_| DEFAULT_URL.to_owned())
}

/// Host and port, without user and password.
fn address(url: &str) -> String {
    let url = Url::parse(url).expect("the broker's address is a URL");
    format!("{}:{}", url.host_str().unwrap_or("127.0.0.1"), url.port().unwrap_or(5672))
}

#[cfg(test)]
mod tests;
