//! A connection that requests come over, one for each tier: subscribe, hand messages over, subscribe again when something breaks.

use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::mem;
use std::ops::Deref;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::StreamExt;
use lapin::options::BasicCancelOptions;
use lapin::{Channel, Event};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use super::acks::Disposition;
use super::arrivals::Arrival;
use super::in_hand::{InHand, Place};
use super::restore::Restorer;
use super::settle::{Received, Settler};
use super::settlement::Settlement;
use super::subscription::Subscription;
use super::suspects::{Next, Origin, Tier, ends};
use crate::app::admin::Health;
use crate::app::lifecycle::Stop;
use crate::broker::{
    Aside, BrokerError, Feed, Replies, Source, Troubles, checks, connect, declare, declare_for, take_leave,
    within,
};
use crate::contract::Envelope;
use crate::journal::Journal;
use crate::retry::retry_until_cancelled;
use crate::settings::{Broker, WorkerSettings};
use crate::store::database::Availability;
use crate::telemetry;

/// Consumes the queues of a tier.
pub(super) struct Consumers {
    pub(super) tier: Tier,
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
    /// Until the database holds what the journal has, nothing is taken.
    pub(super) journal: Journal,
    pub(super) troubles: Troubles,
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
        let (link, consumers) = (self.tier.link(), Arc::new(self));
        let lost = |error: &BrokerError| {
            telemetry::broker_lost(link);
            consumers.troubles.met(Source::Connection(link), error)
        };
        let consumed = retry_until_cancelled(&consumers.stop.soft, lost, async || {
            let replies = consumers.open().await?;
            consumers.stop.soft.run_until_cancelled(consumers.journal.opened()).await;
            let channels = consumers.consume(&replies).await?;
            Ok(Drained { replies, _channels: channels })
        });
        consumed.await
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
        checks::may_publish(&connection, &self.settings).await?;
        let (settings, aside) = (Arc::clone(&self.settings), Arc::clone(&self.aside));
        let replies = Replies::open(connection, settings, aside, self.stop.hard.clone()).await?;
        telemetry::broker_connected(link, self.settings.display_url());
        self.troubles.over(Source::Connection(link));
        Ok(Arc::new(replies))
    }

    /// Consumes every queue until the soft stop, or until the connection is gone.
    async fn consume(
        self: &Arc<Self>,
        replies: &Arc<Replies>,
    ) -> Result<Vec<Option<Arc<Channel>>>, BrokerError> {
        let mut queues = JoinSet::new();
        // The ordinary messages' alone.
        let partitions = if self.tier == Tier::Ordinary { self.settings.partitions } else { 0 };
        for feed in self.tier.feeds().iter().copied().chain(Feed::partitions(partitions)) {
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
        let consumed = tokio::select! {
            consumed = all => consumed,
            error = self.watch(replies) => Err(error),
        };
        // What they have in hand goes on.
        queues.shutdown().await;
        consumed
    }

    /// Says when the broker blocks the connection, until it says nothing any more.
    async fn watch(&self, replies: &Replies) -> BrokerError {
        let blocked = async {
            let mut events = replies.connection().events_listener();
            let mut mark = replies.connection().status().blocked().then(|| self.health.blocked());
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
            error = replies.useless() => error,
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
        let lost = |error: &BrokerError| {
            telemetry::broker_lost(self.tier.link());
            self.troubles.met(Source::Consumer(feed), error)
        };
        let mut is_first = true;
        let consumed = retry_until_cancelled(&self.stop.soft, lost, || {
            let was_first = mem::replace(&mut is_first, false);
            async move {
                let consumed = async {
                    if !was_first {
                        // The queue itself may be gone.
                        declare_for(connection, &self.settings, feed).await?;
                    }
                    self.consume_in_turns(replies, feed).await
                };
                match consumed.await {
                    Err(error) if connection.status().connected() => Err(error),
                    ended => Ok(ended),
                }
            }
        });
        consumed.await.unwrap_or(Ok(None))
    }

    /// Consumes one queue until the soft stop, but not while the database is away.
    async fn consume_in_turns(
        &self,
        replies: &Arc<Replies>,
        feed: Feed,
    ) -> Result<Option<Arc<Channel>>, BrokerError> {
        loop {
            tokio::select! {
                () = self.stop.soft.cancelled() => return Ok(None),
                () = self.database.there() => {}
            }
            let subscription = self.subscribe(replies, feed).await?;
            self.troubles.over(Source::Consumer(feed));
            match self.pump(subscription, feed).await? {
                Pumped::Stopped(channel) => return Ok(Some(channel)),
                Pumped::TurnOver => {}
            }
        }
    }

    /// Takes deliveries in hand until the soft stop, or until the turn is over. Then it cancels the consumer, and takes what the
    /// broker had sent already.
    ///
    /// A worker that stops gives back what has no place. Only then: the broker counts that as a delivery, and two of these
    /// make a suspect of a message. While the database is away such messages wait in hand, at most a prefetch of each queue.
    async fn pump(&self, mut subscription: Subscription, feed: Feed) -> Result<Pumped, BrokerError> {
        let consuming = self.health.consuming(feed);
        let mut in_hand = InHand::nothing(&self.messages);
        let stopped = tokio::select! {
            biased;
            () = self.stop.soft.cancelled() => true,
            () = self.database.lost() => false,
            error = poll_fn(|context| self.flow(&mut subscription, &mut in_hand, feed, context)) => {
                return Err(error);
            }
        };
        drop(consuming);
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
        while let Ok(Some(arrival)) = timeout(limit, subscription.next_late()).await {
            let place = Arc::clone(subscription.progress.places()).try_acquire_owned().ok();
            if stopped && place.is_none() {
                subscription.acks.settle(arrival.delivery.delivery_tag, Disposition::Nack);
            } else {
                self.take(arrival, place, &subscription, feed, &mut late);
            }
        }
        Ok(if stopped { Pumped::Stopped(subscription.channel) } else { Pumped::TurnOver })
    }

    /// Takes in hand what has come, and takes on what is in hand. Ready when the consumer has ended.
    fn flow(
        &self,
        subscription: &mut Subscription,
        in_hand: &mut InHand,
        feed: Feed,
        context: &mut Context<'_>,
    ) -> Poll<BrokerError> {
        let mut taken = false;
        // First, so that what came together is looked up together.
        while let Poll::Ready(next) = subscription.poll_next(context) {
            match next {
                Ok((arrival, place)) => self.take(arrival, Some(place), subscription, feed, in_hand),
                Err(error) => return Poll::Ready(error),
            }
            taken = true;
        }
        // They are answered at once, so they need no place.
        for arrival in subscription.take_overdue(context, |arrival| self.ends_at(feed, arrival)) {
            self.take(arrival, None, subscription, feed, in_hand);
            taken = true;
        }
        if in_hand.go_on(context) || taken {
            subscription.progress.note();
        }
        Poll::Pending
    }

    /// When the message's own time ends. None: it has none, and its time begins when it has a place.
    fn ends_at(&self, feed: Feed, arrival: &Arrival) -> Option<Instant> {
        let (Feed::Messages(kind) | Feed::Partition(kind, _)) = feed else { return None };
        let envelope = Envelope::read(&arrival.delivery.properties, &self.settings.prefix);
        let time = self.settler.handler.time_frame(kind, &envelope, arrival.at, None);
        time.is_of_message().then(|| time.give_up_at())
    }

    fn take(
        &self,
        arrival: Arrival,
        place: Option<Place>,
        subscription: &Subscription,
        feed: Feed,
        in_hand: &mut InHand,
    ) {
        match feed {
            Feed::Messages(kind) | Feed::Partition(kind, _) => {
                let (replies, acks) = (Arc::clone(&subscription.replies), subscription.acks.clone());
                match self.tier.next(ends(&arrival.delivery), self.settings.delivery_limit) {
                    Next::Work => {
                        let origin = Origin::of_put_off(kind, &self.settler.keys, &arrival.delivery);
                        let prefix = &self.settings.prefix;
                        let mut received = Received::new(kind, self.tier, arrival, prefix, replies, acks);
                        if let Some(origin) = origin {
                            received = received.with_origin(origin);
                        }
                        in_hand.take(Arc::clone(&self.settler).process(received), place);
                    }
                    Next::MoveTo(_) | Next::GiveUp => {
                        let (settler, lifeline) =
                            (Arc::clone(&self.settler), self.lifeline(&subscription.channel));
                        in_hand.take(settler.move_away(kind, arrival.delivery, acks, lifeline), place);
                    }
                }
            }
            Feed::Suspects | Feed::Isolated => {
                let (replies, acks) = (Arc::clone(&subscription.replies), subscription.acks.clone());
                let next = self.tier.next(ends(&arrival.delivery), self.settings.delivery_limit);
                let lifeline = self.lifeline(&subscription.channel);
                let settler = Arc::clone(&self.settler);
                let process = settler.process_suspect(self.tier, arrival, replies, acks, lifeline, next);
                in_hand.take(process, place);
            }
            Feed::ParkedPairs => {
                let delivery = arrival.delivery;
                let settlement = Settlement::new(subscription.acks.clone(), delivery.delivery_tag);
                in_hand.take(Arc::clone(&self.restorer).process(delivery, settlement), place);
            }
        }
    }
}

/// Why no more deliveries are taken from a queue.
enum Pumped {
    /// The worker stops; what is in hand is acked on this channel.
    Stopped(Arc<Channel>),
    /// The database is away: what is in hand is finished, and what is not stays with the broker.
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
