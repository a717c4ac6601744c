//! Takes messages from the queues of workers, and answers them over the connection that they come over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream, SelectAll};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection, Consumer};
use tokenkeeper::app::lifecycle::Stop;
use tokenkeeper::broker::{
    AGAIN, Aside, BrokerError, Feed, Names, OutgoingReply, Replies, checks, connect, declare, take_leave,
    within,
};
use tokenkeeper::contract::{Envelope, ErrorCode, MessageKind};
use tokenkeeper::requests::{LATE_REPLY, Outcome};
use tokenkeeper::retry::retry_until_cancelled;
use tokenkeeper::settings::{Broker, Settings, WorkerSettings};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use super::answer::{Fake, Taken};

const NAME: &str = "tokenkeeper fake";
/// How long the answers under way may take once the command ends.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// Consumes the queues of all four messages.
pub(super) struct Consumers {
    broker: Arc<Broker>,
    prefetch: WorkerSettings,
    fake: Arc<Fake>,
    aside: Arc<Aside>,
    stop: Stop,
    /// Until it has been seen once that nobody else consumes. Over a later connection the broker may still count the consumers of
    /// the one before.
    must_be_alone: AtomicBool,
    messages: TaskTracker,
    /// Messages that got no answer because they may get none.
    unanswerable: Arc<AtomicU64>,
}

/// Somebody consumes a queue already.
#[derive(Debug, thiserror::Error)]
#[error(
    "queue {queue} at {broker} has {consumers} consumer(s) already: real workers, or another fake, whose messages it would take; stop \
     them, set another `broker.prefix`, or say --beside-workers"
)]
pub(super) struct NotAlone {
    queue: String,
    broker: String,
    consumers: u32,
}

/// Of each queue, and None where its consumer has ended.
type Deliveries = SelectAll<BoxStream<'static, (MessageKind, Option<lapin::Result<Delivery>>)>>;

/// A connection whose queues are consumed.
struct Session {
    connection: Arc<Connection>,
    replies: Arc<Replies>,
    deliveries: Deliveries,
    /// Closed when they are dropped.
    _channels: Vec<Channel>,
}

impl Consumers {
    pub(super) fn new(settings: &Settings, fake: Arc<Fake>, stop: Stop, beside_workers: bool) -> Self {
        let broker = Arc::new(settings.broker.clone());
        Self {
            aside: Arc::new(Aside::new(Arc::clone(&broker), format!("{NAME} reply"))),
            broker,
            prefetch: settings.worker.clone(),
            fake,
            stop,
            must_be_alone: AtomicBool::new(!beside_workers),
            messages: TaskTracker::new(),
            unanswerable: Arc::default(),
        }
    }

    /// Answers until the soft stop, over as many connections as that takes.
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let lost = |error: &BrokerError| {
            tracing::warn!("{error}");
            AGAIN
        };
        let ended = retry_until_cancelled(&self.stop.soft, lost, async || {
            let connection = Arc::new(connect(&self.broker, NAME).await?);
            declare(&connection, &self.broker).await?;
            checks::may_publish(&connection, &self.broker).await?;
            if self.must_be_alone.load(Ordering::Relaxed) {
                if let Some(somebody) = self.somebody_else(&connection).await? {
                    return Ok(Err(somebody));
                }
                // From here on it consumes itself: also a subscription that fails half-way is counted.
                self.must_be_alone.store(false, Ordering::Relaxed);
            }
            let session = self.subscribe(connection).await?;
            self.serve(session).await.map(Ok)
        });
        if let Some(Err(somebody)) = ended.await {
            return Err(somebody.into());
        }
        self.aside.close().await;
        let unanswerable = self.unanswerable.load(Ordering::Relaxed);
        tracing::info!(unanswerable, "stopped");
        Ok(())
    }

    fn feeds(&self) -> impl Iterator<Item = (MessageKind, Feed)> {
        let partitions = Feed::partitions(self.broker.partitions).filter_map(|feed| match feed {
            Feed::Partition(kind, _) => Some((kind, feed)),
            _ => None,
        });
        MessageKind::ALL.into_iter().map(|kind| (kind, Feed::Messages(kind))).chain(partitions)
    }

    /// Who consumes one of the queues.
    async fn somebody_else(&self, connection: &Connection) -> Result<Option<NotAlone>, BrokerError> {
        let limit = self.broker.operation_timeout;
        let channel = within(limit, || "open a channel".to_owned(), connection.create_channel()).await?;
        let mut found = None;
        for (_, feed) in self.feeds() {
            let queue = Names::new(&self.broker.prefix).queue(feed);
            let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            let look = channel.queue_declare(short(&queue)?, passive, FieldTable::default());
            let state = within(limit, || format!("find queue {queue}"), look).await?;
            if state.consumer_count() > 0 {
                let (broker, consumers) = (self.broker.display_url().to_owned(), state.consumer_count());
                found = Some(NotAlone { queue, broker, consumers });
                break;
            }
        }
        within(limit, || "close a channel".to_owned(), channel.close(200, "done".into())).await?;
        if found.is_some() {
            take_leave(connection).await;
        }
        Ok(found)
    }

    async fn subscribe(&self, connection: Arc<Connection>) -> Result<Session, BrokerError> {
        let (broker, aside) = (Arc::clone(&self.broker), Arc::clone(&self.aside));
        let hard_stop = self.stop.hard.clone();
        let replies = Arc::new(Replies::open(Arc::clone(&connection), broker, aside, hard_stop).await?);
        let (mut deliveries, mut channels) = (SelectAll::new(), Vec::new());
        for (kind, feed) in self.feeds() {
            let (channel, consumer) = self.consume(&connection, kind, feed).await?;
            let ended = stream::iter([None]);
            deliveries.push(consumer.map(Some).chain(ended).map(move |delivery| (kind, delivery)).boxed());
            channels.push(channel);
        }
        let (key_id, public_key) = self.fake.login_key();
        tracing::info!(
            broker = self.broker.display_url(),
            prefix = self.broker.prefix,
            key_id,
            %public_key,
            "fake is ready: no token that it hands out is real"
        );
        Ok(Session { connection, replies, deliveries, _channels: channels })
    }

    /// The prefetch is how many messages are in hand at once. The others wait with the broker.
    async fn consume(
        &self,
        connection: &Connection,
        kind: MessageKind,
        feed: Feed,
    ) -> Result<(Channel, Consumer), BrokerError> {
        let limit = self.broker.operation_timeout;
        let queue = Names::new(&self.broker.prefix).queue(feed);
        let channel = within(limit, || "open a channel".to_owned(), connection.create_channel()).await?;
        let qos = channel.basic_qos(self.prefetch.prefetch(kind), BasicQosOptions::default());
        within(limit, || format!("set the prefetch of queue {queue}"), qos).await?;
        let options = BasicConsumeOptions::default();
        let consume = channel.basic_consume(short(&queue)?, "".into(), options, FieldTable::default());
        let consumer = within(limit, || format!("consume queue {queue}"), consume).await?;
        Ok((channel, consumer))
    }

    /// Answers what comes until the soft stop, or until the connection is of no use.
    async fn serve(&self, mut session: Session) -> Result<(), BrokerError> {
        let error = loop {
            let next = tokio::select! {
                biased;
                () = self.stop.soft.cancelled() => break None,
                error = session.replies.useless() => break Some(error),
                next = session.deliveries.next() => next,
            };
            match next {
                Some((kind, Some(Ok(delivery)))) => {
                    drop(self.messages.spawn(self.process(kind, delivery, &session.replies)));
                }
                Some((kind, Some(Err(error)))) => {
                    break Some(BrokerError::Amqp { action: format!("consume {kind}"), error });
                }
                Some((kind, None)) => break Some(BrokerError::Cancelled { queue: kind.to_string() }),
                None => break Some(BrokerError::Closed),
            }
        };
        if error.is_none() {
            // What waits by rule goes back, and what is being answered is answered.
            self.messages.close();
            drop(timeout(LAST_ANSWERS, self.messages.wait()).await);
        }
        take_leave(&session.connection).await;
        error.map_or(Ok(()), Err)
    }

    fn process(
        &self,
        kind: MessageKind,
        delivery: Delivery,
        replies: &Arc<Replies>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (fake, replies) = (Arc::clone(&self.fake), Arc::clone(replies));
        let (unanswerable, prefix) = (Arc::clone(&self.unanswerable), self.broker.prefix.clone());
        let arrived = Instant::now();
        async move {
            let envelope = Envelope::read(&delivery.properties, &prefix);
            let time = fake.time_frame(kind, &envelope, arrived);
            match fake.take(kind, &envelope, &delivery.data, time).await {
                // The end of the connection gives it back.
                Taken::GivenBack => return,
                Taken::Silent => tracing::debug!(%kind, "not answered, by rule"),
                Taken::Handled(outcome) => {
                    let nowhere = match &*outcome {
                        Outcome::Unanswerable { reason, .. } => Some(reason),
                        Outcome::Invalid { reason, .. } if envelope.reply_to.is_none() => Some(reason),
                        Outcome::Invalid { .. } | Outcome::Answered(_) => None,
                    };
                    if let Some(reason) = nowhere {
                        let count = unanswerable.fetch_add(1, Ordering::Relaxed) + 1;
                        if count.is_power_of_two() {
                            tracing::warn!(%kind, count, "a message gets no answer: {reason}");
                        }
                    }
                    if let (Some(reply_to), Some(reply)) = (&envelope.reply_to, outcome.reply()) {
                        let until = time.give_up_at().max(Instant::now() + LATE_REPLY);
                        let patience = |now: Instant| (now < until).then_some(until);
                        let reply_type = kind.reply_type();
                        let outgoing =
                            OutgoingReply { reply_to, reply_type, envelope: &envelope, exact: false };
                        if let Err(unanswered) = replies.publish(&outgoing, &reply.encode(), patience).await {
                            tracing::debug!(%kind, "not answered: {unanswered}");
                            return;
                        }
                    }
                    let code = outcome.error_code().map(ErrorCode::name);
                    tracing::debug!(%kind, code, request_id = envelope.request_id(), "handled");
                }
            }
            if let Err(error) = delivery.ack(BasicAckOptions::default()).await {
                tracing::debug!(%kind, "not acked: {error}");
            }
        }
    }
}

fn short(name: &str) -> Result<ShortString, BrokerError> {
    ShortString::try_new(name).map_err(|_| BrokerError::TooLong { what: format!("the name {name}") })
}
