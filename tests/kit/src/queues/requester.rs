//! Requests and their replies, matched by correlation id.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Connection, Consumer,
    message::BasicReturnMessage,
    options::{BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions},
    types::FieldTable,
};
use serde_json::Value;
use tokio::{sync::oneshot, task::JoinHandle};
use uuid::Uuid;

use super::confirming_channel;
use crate::wait::PATIENCE;

/// What a worker answered.
#[derive(Clone, Debug)]
pub struct Reply {
    /// `type`, `correlation_id`, headers and the like.
    pub properties: BasicProperties,
    /// The JSON body.
    pub body: Value,
}

/// A request that is under way.
pub struct PendingReply {
    /// What identifies the reply.
    correlation_id: String,
    reply: oneshot::Receiver<Reply>,
}

impl PendingReply {
    /// The reply, which has to come within 30 s.
    pub async fn reply(self) -> Reply {
        let correlation_id = self.correlation_id.clone();
        let reply = self.reply_within(PATIENCE).await;
        reply.unwrap_or_else(|| panic!("no reply to {correlation_id} within {PATIENCE:?}: is the worker up?"))
    }

    /// The reply, or `None` when it has not come within `timeout`.
    pub async fn reply_within(self, timeout: Duration) -> Option<Reply> {
        let reply = tokio::time::timeout(timeout, self.reply).await.ok()?;
        Some(reply.unwrap_or_else(|_| {
            panic!("the request {} could not be routed to a queue: is the worker up?", self.correlation_id)
        }))
    }

    /// The correlation id that was sent, or the message id where it stands in for one.
    pub fn correlation_id(&self) -> &str {
        &self.correlation_id
    }
}

/// A channel that publishes requests and consumes their replies. Many requests may be under way at once.
pub(super) struct Requester {
    channel: Channel,
    exchange: String,
    reply_to: String,
    inbox: Arc<Inbox>,
    consuming: JoinHandle<()>,
}

impl Requester {
    /// Replies come to an exclusive queue of this name.
    pub(super) async fn with_queue(connection: &Connection, prefix: &str, reply_to: String) -> Self {
        let channel = confirming_channel(connection).await;
        let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let declared =
            channel.queue_declare(reply_to.as_str().into(), exclusive, FieldTable::default()).await;
        declared.expect("declare a reply queue");
        Self::new(channel, prefix, reply_to).await
    }

    /// Replies come by direct reply-to (<https://www.rabbitmq.com/docs/direct-reply-to>), which wants requests
    /// and replies on one channel.
    pub(super) async fn direct(connection: &Connection, prefix: &str) -> Self {
        let channel = confirming_channel(connection).await;
        Self::new(channel, prefix, "amq.rabbitmq.reply-to".to_owned()).await
    }

    async fn new(channel: Channel, prefix: &str, reply_to: String) -> Self {
        let unacked = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consumer = channel
            .basic_consume(reply_to.as_str().into(), "replies".into(), unacked, FieldTable::default())
            .await
            .expect("consume replies");
        let inbox = Arc::<Inbox>::default();
        let consuming = tokio::spawn(consume(consumer, inbox.clone()));
        Self { channel, exchange: prefix.to_owned(), reply_to, inbox, consuming }
    }

    pub(super) fn reply_to(&self) -> &str {
        &self.reply_to
    }

    /// Publishes a request to the worker's exchange and returns when the broker has taken it.
    pub(super) async fn send(
        &self,
        routing_key: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> PendingReply {
        self.send_via(&self.exchange, routing_key, body, properties).await
    }

    /// The same to another exchange.
    pub(super) async fn send_via(
        &self,
        exchange: &str,
        routing_key: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> PendingReply {
        let given = correlation_id(&properties);
        let correlation_id = given.unwrap_or_else(|| Uuid::new_v4().to_string());
        let properties = if properties.message_id().is_some() {
            properties
        } else {
            properties.with_correlation_id(correlation_id.as_str().into())
        };
        let properties = properties.with_reply_to(self.reply_to.as_str().into());
        let reply = self.inbox.expect(&correlation_id);
        let returned = publish_mandatory(&self.channel, exchange, routing_key, body, properties).await;
        if let Some(returned) = returned {
            // lapin attaches a returned message to whichever confirm comes next, so it may be another's.
            self.inbox.give_up(&returned.delivery.properties);
        }
        PendingReply { correlation_id, reply }
    }

    /// Publishes a message as it is.
    pub(super) async fn publish(&self, routing_key: &str, body: &[u8], properties: BasicProperties) {
        let returned = publish_mandatory(&self.channel, &self.exchange, routing_key, body, properties).await;
        assert!(returned.is_none(), "no queue is bound for {routing_key}: is the worker up?");
    }

    pub(super) fn replies_seen(&self) -> Vec<Reply> {
        self.inbox.seen().clone()
    }

    pub(super) fn stray_replies(&self) -> Vec<Reply> {
        std::mem::take(&mut *self.inbox.strays())
    }
}

impl Drop for Requester {
    fn drop(&mut self) {
        self.consuming.abort();
    }
}

/// Publishes one message and awaits the broker's confirm. The message comes back where no queue wants it.
pub(super) async fn publish_mandatory(
    channel: &Channel,
    exchange: &str,
    routing_key: &str,
    body: &[u8],
    properties: BasicProperties,
) -> Option<Box<BasicReturnMessage>> {
    let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let confirmed = async {
        let published =
            channel.basic_publish(exchange.into(), routing_key.into(), mandatory, body, properties);
        published.await?.await
    };
    match confirmed.await {
        Ok(confirmation) => confirmation.take_message().map(Box::new),
        Err(error) => panic!("publish to the exchange {exchange}: {error}. Is the worker up?"),
    }
}

/// Replies that are waited for, and replies that nobody waited for.
#[derive(Default)]
struct Inbox {
    pending: Mutex<HashMap<String, oneshot::Sender<Reply>>>,
    strays: Mutex<Vec<Reply>>,
    /// Every reply, whoever waited for it.
    seen: Mutex<Vec<Reply>>,
}

impl Inbox {
    fn expect(&self, correlation_id: &str) -> oneshot::Receiver<Reply> {
        let (sender, receiver) = oneshot::channel();
        let before = self.pending().insert(correlation_id.to_owned(), sender);
        assert!(before.is_none(), "two requests under way with the correlation id {correlation_id}");
        receiver
    }

    /// A request that is not going to be answered: whoever waits for it learns that.
    fn give_up(&self, properties: &BasicProperties) {
        if let Some(id) = correlation_id(properties) {
            self.pending().remove(&id);
        }
    }

    fn deliver(&self, reply: Reply) {
        let id = correlation_id(&reply.properties).unwrap_or_default();
        self.seen().push(reply.clone());
        let waiting = self.pending().remove(&id);
        let unwanted = match waiting {
            Some(waiting) => waiting.send(reply).err(),
            None => Some(reply),
        };
        self.strays().extend(unwanted);
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<String, oneshot::Sender<Reply>>> {
        self.pending.lock().expect("the pending requests")
    }

    fn strays(&self) -> MutexGuard<'_, Vec<Reply>> {
        self.strays.lock().expect("the stray replies")
    }

    fn seen(&self) -> MutexGuard<'_, Vec<Reply>> {
        self.seen.lock().expect("the replies so far")
    }
}

async fn consume(mut replies: Consumer, inbox: Arc<Inbox>) {
    while let Some(Ok(delivery)) = replies.next().await {
        let body = serde_json::from_slice(&delivery.data).unwrap_or_else(|_| {
            // A test that looks at the body sees what came instead of JSON.
            Value::String(String::from_utf8_lossy(&delivery.data).into_owned())
        });
        inbox.deliver(Reply { properties: delivery.properties, body });
    }
    // The channel is gone, and with it every reply.
    inbox.pending().clear();
}

/// The correlation id, or the message id where there is none (the contract's rule for replies).
fn correlation_id(properties: &BasicProperties) -> Option<String> {
    let id = properties.correlation_id().as_ref().or(properties.message_id().as_ref())?;
    Some(id.as_str().to_owned())
}
