//! A connection that requests come over, one for each tier: subscribe, hand messages over, subscribe again when something breaks.

use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::ops::Deref;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::StreamExt;
use futures_util::future::try_join;
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer, Event};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;

use super::acks::Acks;
use super::in_hand::InHand;
use super::partitions::Partitions;
use super::restore::Restorer;
use super::settle::{Received, Settler};
use super::settlement::Settlement;
use super::suspects::{Next, Origin, Tier, ends};
use crate::app::admin::{Health, Progress};
use crate::app::lifecycle::Stop;
use crate::broker::{
    AGAIN, Aside, BrokerError, Feed, Names, Replies, connect, declare, declare_for, take_leave, within,
};
use crate::settings::{Broker, WorkerSettings};
use crate::store::database::Availability;
use crate::telemetry;

/// Consumes the queues of a tier.
pub(super) struct Consumers {
    pub(super) tier: Tier,
    /// The ordinary messages' alone.
    pub(super) partitions: Option<Partitions>,
    pub(super) common: Common,
}

/// What all tiers have in common.
#[derive(Clone)]
pub(super) struct Common {
    pub(super) settings: Arc<Broker>,
    pub(super) prefetch: WorkerSettings,
    /// Names this worker at the broker.
    pub(super) instance: String,
    pub(super) settler: Arc<Settler>,
    pub(super) restorer: Arc<Restorer>,
    /// While it is away nothing new is taken.
    pub(super) database: Availability,
    pub(super) aside: Arc<Aside>,
    pub(super) messages: TaskTracker,
    pub(super) health: Arc<Health>,
    pub(super) stop: Stop,
}

impl Deref for Consumers {
    type Target = Common;

    fn deref(&self) -> &Common {
        &self.common
    }
}

impl Consumers {
    /// Consumes until the soft stop, over as many connections as that takes. Gives back the last one: what is in
    /// hand is acked on it.
    pub(super) async fn run(self) -> Option<Drained> {
        let consumers = Arc::new(self);
        let mut delays = AGAIN.delays();
        while !consumers.stop.soft.is_cancelled() {
            let delay = delays.next_delay();
            let error = match consumers.open().await {
                Ok(replies) => {
                    delays.reset();
                    match consumers.consume(&replies).await {
                        Ok(channels) => return Some(Drained { replies, _channels: channels }),
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            telemetry::broker_lost(consumers.tier.link(), &error, delay);
            tokio::select! {
                () = consumers.stop.soft.cancelled() => {}
                () = sleep(delay) => {}
            }
        }
        None
    }

    /// A connection to consume over, in the shape of what replies over it.
    async fn open(&self) -> Result<Arc<Replies>, BrokerError> {
        let link = self.tier.link();
        let name = format!("{} {}", self.instance, link.name());
        let connection = Arc::new(connect(&self.settings, &name).await?);
        match self.tier {
            Tier::Ordinary => declare(&connection, &self.settings).await?,
            Tier::Suspects => declare_for(&connection, &self.settings, Feed::Suspects).await?,
            Tier::Isolated => declare_for(&connection, &self.settings, Feed::Isolated).await?,
        }
        let (settings, aside) = (Arc::clone(&self.settings), Arc::clone(&self.aside));
        let replies = Replies::open(connection, settings, aside, self.stop.hard.clone()).await?;
        telemetry::broker_connected(link, self.settings.display_url());
        Ok(Arc::new(replies))
    }

    /// Consumes every queue until the soft stop, or until the connection is gone. For as long as that this worker
    /// takes its share of the partitions: one that cannot consume leaves them to the others.
    async fn consume(
        self: &Arc<Self>,
        replies: &Arc<Replies>,
    ) -> Result<Vec<Option<Arc<Channel>>>, BrokerError> {
        let mut queues = JoinSet::new();
        let partitions = self.partitions.iter().flat_map(Partitions::feeds);
        for feed in self.tier.feeds().iter().copied().chain(partitions) {
            let (consumers, replies) = (Arc::clone(self), Arc::clone(replies));
            queues.spawn(async move { consumers.consume_queue(&replies, feed).await });
        }
        let all = async {
            let mut channels = Vec::new();
            while let Some(ended) = queues.join_next().await {
                // Nobody aborts these tasks before this ends: such a one panicked.
                channels.push(ended.unwrap_or_else(|ended| resume_unwind(ended.into_panic()))?);
            }
            Ok(channels)
        };
        let sharing = async {
            if let Some(partitions) = &self.partitions {
                partitions.take_part(&self.stop.soft).await;
            }
            Ok(())
        };
        let consumed = tokio::select! {
            consumed = try_join(all, sharing) => consumed,
            error = self.watch(replies) => Err(error),
        };
        if consumed.is_err() {
            if let Some(partitions) = &self.partitions {
                partitions.forget_share();
            }
            // What they have in hand goes on.
            queues.shutdown().await;
        }
        consumed.map(|(channels, ())| channels)
    }

    /// Says when the broker blocks the connection, until it says nothing any more.
    async fn watch(&self, replies: &Replies) -> BrokerError {
        let blocked = async {
            let mut events = replies.connection().events_listener();
            let mut mark = None;
            while let Some(event) = events.next().await {
                match event {
                    Event::ConnectionBlocked(reason) => {
                        telemetry::broker_blocked(self.tier.link(), Some(&reason));
                        mark.get_or_insert_with(|| self.health.blocked());
                    }
                    Event::ConnectionUnblocked => {
                        telemetry::broker_blocked(self.tier.link(), None);
                        mark = None;
                    }
                    _ => {}
                }
            }
            drop(mark);
            // The connection is gone, and the consumers hear of that themselves.
            pending::<Infallible>().await
        };
        tokio::select! {
            error = replies.gone_silent() => error,
            never = blocked => match never {},
        }
    }

    /// Consumes one queue. While the connection lives, a cancelled consumer or a closed channel subscribes again
    /// without disturbing the other queues.
    async fn consume_queue(
        &self,
        replies: &Arc<Replies>,
        feed: Feed,
    ) -> Result<Option<Arc<Channel>>, BrokerError> {
        let connection = replies.connection();
        let mut delays = AGAIN.delays();
        loop {
            let prefetch = tokio::select! {
                () = self.stop.soft.cancelled() => return Ok(None),
                prefetch = self.turn(feed) => prefetch,
            };
            let error = match self.consume_in_turn(replies, feed, prefetch).await {
                Ok(Pumped::Stopped(channel)) => return Ok(Some(channel)),
                Ok(Pumped::TurnOver) => {
                    delays.reset();
                    continue;
                }
                Err(error) => error,
            };
            if !connection.status().connected() {
                return Err(error);
            }
            let delay = delays.next_delay();
            telemetry::consumer_lost(self.tier.link(), &feed, &error, delay);
            tokio::select! {
                () = self.stop.soft.cancelled() => return Ok(None),
                () = sleep(delay) => {}
            }
            // The queue itself may be gone.
            declare_for(connection, &self.settings, feed).await?;
        }
    }

    async fn consume_in_turn(
        &self,
        replies: &Arc<Replies>,
        feed: Feed,
        prefetch: u16,
    ) -> Result<Pumped, BrokerError> {
        let subscription = self.subscribe(replies, feed, prefetch).await?;
        self.pump(subscription, feed, prefetch).await
    }

    async fn subscribe(
        &self,
        replies: &Arc<Replies>,
        feed: Feed,
        prefetch: u16,
    ) -> Result<Subscription, BrokerError> {
        let connection = replies.connection();
        let limit = self.settings.operation_timeout;
        let queue = Names::new(&self.settings.prefix).queue(feed);
        let channel =
            within(limit, || format!("open a channel for queue {queue}"), connection.create_channel())
                .await?;
        // Before consuming, or the broker sends everything it has.
        let qos = channel.basic_qos(prefetch, BasicQosOptions::default());
        within(limit, || format!("set the prefetch of queue {queue}"), qos).await?;
        let channel = Arc::new(channel);
        let acks = Acks::open(Arc::clone(connection), Arc::clone(&channel), &self.messages);
        let before = self.move_suspects_away(feed, &queue, &channel, &acks).await?;
        let tag = ShortString::try_new(format!("{}-{feed}", self.instance))
            .map_err(|_| BrokerError::TooLong { what: "the consumer tag".into() })?;
        let name = ShortString::try_new(queue.as_str())
            .map_err(|_| BrokerError::TooLong { what: format!("the name {queue}") })?;
        let consume =
            channel.basic_consume(name, tag.clone(), BasicConsumeOptions::default(), FieldTable::default());
        let consumer = within(limit, || format!("consume queue {queue}"), consume).await?;
        Ok(Subscription { channel, replies: Arc::clone(replies), acks, before, consumer, tag, queue })
    }

    /// Takes deliveries in hand until the soft stop, or until the turn is over; then takes back the subscription, and takes
    /// what the broker had sent already.
    async fn pump(
        &self,
        mut subscription: Subscription,
        feed: Feed,
        prefetch: u16,
    ) -> Result<Pumped, BrokerError> {
        let consuming = self.health.consuming(feed);
        let progress = self.health.watch(feed, prefetch);
        let mut in_hand = InHand::nothing(&self.messages);
        if let Some(delivery) = subscription.before.take() {
            self.take(delivery, &subscription, feed, &mut in_hand);
        }
        let stopped = tokio::select! {
            biased;
            () = self.stop.soft.cancelled() => true,
            () = self.turn_over(feed, prefetch) => false,
            error = poll_fn(|context| self.flow(&mut subscription, &mut in_hand, &progress, feed, context)) => {
                return Err(error);
            }
        };
        drop((consuming, progress));
        // Goes on while the broker is waited for.
        drop(in_hand);
        let limit = self.settings.operation_timeout;
        let cancel =
            subscription.channel.basic_cancel(subscription.tag.clone(), BasicCancelOptions::default());
        tokio::select! {
            cancelled = within(limit, || format!("cancel the consumer of {}", subscription.queue), cancel) => cancelled?,
            // The broker hears nothing over a connection that it blocks. The end of the connection gives everything back.
            () = self.stop.hard.cancelled() => return Ok(Pumped::Stopped(subscription.channel)),
        }
        let mut late = InHand::nothing(&self.messages);
        // Under the same limit: on a connection that is breaking the end of the stream may never come.
        while let Ok(Some(Ok(delivery))) = timeout(limit, subscription.consumer.next()).await {
            self.take(delivery, &subscription, feed, &mut late);
        }
        Ok(if stopped { Pumped::Stopped(subscription.channel) } else { Pumped::TurnOver })
    }

    /// Takes in hand what has come, and takes on what is in hand. Ready when the consumer has ended.
    fn flow(
        &self,
        subscription: &mut Subscription,
        in_hand: &mut InHand,
        progress: &Progress,
        feed: Feed,
        context: &mut Context<'_>,
    ) -> Poll<BrokerError> {
        if subscription.acks.is_closed() {
            return Poll::Ready(BrokerError::NoAcks { queue: subscription.queue.clone() });
        }
        // First, so that what came together is looked up together.
        while let Poll::Ready(next) = subscription.consumer.poll_next_unpin(context) {
            match next {
                Some(Ok(delivery)) => self.take(delivery, subscription, feed, in_hand),
                Some(Err(source)) => {
                    let action = format!("consume queue {}", subscription.queue);
                    return Poll::Ready(BrokerError::Amqp { action, source });
                }
                None => return Poll::Ready(BrokerError::Cancelled { queue: subscription.queue.clone() }),
            }
        }
        let settled = in_hand.go_on(context);
        progress.note(in_hand.len(), settled);
        Poll::Pending
    }

    fn take(&self, delivery: Delivery, subscription: &Subscription, feed: Feed, in_hand: &mut InHand) {
        match feed {
            Feed::Messages(kind) | Feed::Partition(kind, _) => {
                let (replies, acks) = (Arc::clone(&subscription.replies), subscription.acks.clone());
                match self.tier.next(ends(&delivery), self.settings.delivery_limit) {
                    Next::Work => {
                        let origin = Origin::of_put_off(kind, &self.settler.keys, &delivery);
                        let prefix = &self.settings.prefix;
                        let mut received = Received::new(kind, self.tier, delivery, prefix, replies, acks);
                        if let Some(origin) = origin {
                            received = received.with_origin(origin);
                        }
                        in_hand.take(Arc::clone(&self.settler).process(received));
                    }
                    Next::MoveTo(_) | Next::GiveUp => {
                        let (settler, lifeline) =
                            (Arc::clone(&self.settler), self.lifeline(&subscription.channel));
                        in_hand.take(settler.move_away(kind, delivery, acks, lifeline));
                    }
                }
            }
            Feed::Suspects | Feed::Isolated => {
                let (replies, acks) = (Arc::clone(&subscription.replies), subscription.acks.clone());
                let next = self.tier.next(ends(&delivery), self.settings.delivery_limit);
                let lifeline = self.lifeline(&subscription.channel);
                let settler = Arc::clone(&self.settler);
                in_hand.take(settler.process_suspect(self.tier, delivery, replies, acks, lifeline, next));
            }
            Feed::ParkedPairs => {
                let settlement = Settlement::new(subscription.acks.clone(), delivery.delivery_tag);
                in_hand.take(Arc::clone(&self.restorer).process(delivery, settlement));
            }
        }
    }
}

/// Why no more deliveries are taken from a queue.
enum Pumped {
    /// The worker stops; what is in hand is acked on this channel.
    Stopped(Arc<Channel>),
    /// The database is away, or the partition is another worker's: what is in hand is finished, and what is not stays
    /// with the broker.
    TurnOver,
}

/// The connection after the soft stop: nothing comes over it any more, but what is in hand is replied to and acked on it.
#[derive(Debug)]
pub(super) struct Drained {
    replies: Arc<Replies>,
    /// Closed with the connection. Dropped before that, each would be closed on its own, and the connection's
    /// own closing would find them half-way.
    _channels: Vec<Option<Arc<Channel>>>,
}

impl Drained {
    /// Closes the connection, which gives everything back that was not acked.
    pub(super) async fn close(&self) {
        take_leave(self.replies.connection()).await;
    }
}

/// A queue that is consumed.
struct Subscription {
    /// Closed when the last one who may still ack on it lets go.
    channel: Arc<Channel>,
    replies: Arc<Replies>,
    acks: Acks,
    /// What came before it was consumed.
    before: Option<Delivery>,
    consumer: Consumer,
    tag: ShortString,
    queue: String,
}
