//! A queue that is consumed: with what prefetch, and where it is a partition, with what priority.
//!
//! Every worker consumes every partition. The broker delivers to the consumer with the highest priority that has room, and
//! a worker's priority is a hash of its name and the partition's index. So each partition has one preferred worker, and the
//! others stand by. The workers need not agree on it. `docs/partitions.md` has the consequences.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::StreamExt;
use futures_util::stream::{self, Chain, Fuse, Iter};
use lapin::message::Delivery;
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Consumer};
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tokio_util::sync::PollSemaphore;

use super::acks::Acks;
use super::arrivals::{Arrival, Arrivals};
use super::consume::Consumers;
use super::in_hand::Place;
use crate::app::admin::Progress;
use crate::broker::{BrokerError, Feed, Names, Replies, within};

/// Parked pairs in hand at once.
const PREFETCH_PARKED_PAIRS: u16 = 64;

/// A worker that is first in a quarter of the partitions can fill its places from these alone.
const PARTITIONS_THAT_FILL_IT: u32 = 4;

/// A queue that is consumed.
pub(super) struct Subscription {
    /// Closed when the last one who may still ack on it lets go.
    pub(super) channel: Arc<Channel>,
    pub(super) replies: Arc<Replies>,
    pub(super) acks: Acks,
    /// What came before the queue was consumed, and what comes since.
    deliveries: Fuse<Chain<Iter<std::option::IntoIter<lapin::Result<Delivery>>>, Consumer>>,
    /// What came and has no place yet: no more than the prefetch.
    waiting: Arrivals,
    /// Why nothing comes any more.
    ended: Option<BrokerError>,
    pub(super) tag: ShortString,
    pub(super) queue: String,
    pub(super) progress: Arc<Progress>,
    places: PollSemaphore,
}

impl Subscription {
    /// The next delivery, and a place for it. While all places are taken, the delivery waits unsettled.
    pub(super) fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<(Arrival, Place), BrokerError>> {
        if self.acks.is_closed() {
            return Poll::Ready(Err(BrokerError::NoAcks { queue: self.queue.clone() }));
        }
        if self.waiting.is_empty() {
            self.receive(context);
        }
        if self.waiting.is_empty() {
            return match self.ended.take() {
                Some(error) => Poll::Ready(Err(error)),
                None => Poll::Pending,
            };
        }
        let Poll::Ready(place) = self.places.poll_acquire(context) else {
            // The time of a message begins when it comes, and not when it gets a place.
            self.receive(context);
            return Poll::Pending;
        };
        Poll::Ready(match (self.waiting.pop(), place) {
            (Some(arrival), Some(place)) => Ok((arrival, place)),
            // Nobody closes the semaphore, and something waits.
            (None, _) | (_, None) => Err(BrokerError::Cancelled { queue: self.queue.clone() }),
        })
    }

    /// Messages whose time is over before they have a place ([`Arrivals::take_overdue`]).
    pub(super) fn take_overdue(
        &mut self,
        context: &mut Context<'_>,
        ends_at: impl Fn(&Arrival) -> Option<Instant>,
    ) -> Vec<Arrival> {
        if self.waiting.is_empty() { Vec::new() } else { self.waiting.take_overdue(context, ends_at) }
    }

    /// Takes what has come. `context` is woken when more comes.
    fn receive(&mut self, context: &mut Context<'_>) {
        while let Poll::Ready(next) = self.deliveries.poll_next_unpin(context) {
            let error = match next {
                Some(Ok(delivery)) => {
                    self.waiting.push(delivery);
                    continue;
                }
                Some(Err(error)) => {
                    BrokerError::Amqp { action: format!("consume queue {}", self.queue), error }
                }
                None => BrokerError::Cancelled { queue: self.queue.clone() },
            };
            // The first one says why.
            self.ended.get_or_insert(error);
            return;
        }
    }

    /// What the broker had sent when its consumer was cancelled, one after the other.
    pub(super) async fn next_late(&mut self) -> Option<Arrival> {
        match self.waiting.pop() {
            Some(arrival) => Some(arrival),
            None => self.deliveries.next().await?.ok().map(Arrival::now),
        }
    }
}

impl Consumers {
    pub(super) async fn subscribe(
        &self,
        replies: &Arc<Replies>,
        feed: Feed,
    ) -> Result<Subscription, BrokerError> {
        let connection = replies.connection();
        let limit = self.settings.operation_timeout;
        let queue = Names::new(&self.settings.prefix).queue(feed);
        let channel =
            within(limit, || format!("open a channel for queue {queue}"), connection.create_channel())
                .await?;
        // Before consuming, or the broker sends everything it has.
        let qos = channel.basic_qos(self.prefetch(feed), BasicQosOptions::default());
        within(limit, || format!("set the prefetch of queue {queue}"), qos).await?;
        let channel = Arc::new(channel);
        let acks = Acks::open(Arc::clone(connection), Arc::clone(&channel), &self.messages);
        let before = self.move_suspects_away(feed, &queue, &channel, &acks).await?;
        let tag = ShortString::try_new(format!("{}-{feed}", self.instance))
            .map_err(|_| BrokerError::TooLong { what: "the consumer tag".into() })?;
        let name = ShortString::try_new(queue.as_str())
            .map_err(|_| BrokerError::TooLong { what: format!("the name {queue}") })?;
        let mut arguments = FieldTable::default();
        if let Feed::Partition(_, index) = feed {
            arguments.insert("x-priority".into(), AMQPValue::LongInt(priority(&self.instance, index)));
        }
        let consume = channel.basic_consume(name, tag.clone(), BasicConsumeOptions::default(), arguments);
        let consumer = within(limit, || format!("consume queue {queue}"), consume).await?;
        let deliveries = stream::iter(before.map(Ok)).chain(consumer).fuse();
        let progress = self.health.watch(feed, self.in_hand(feed));
        let places = PollSemaphore::new(Arc::clone(progress.places()));
        let replies = Arc::clone(replies);
        let (waiting, ended) = (Arrivals::default(), None);
        Ok(Subscription { channel, replies, acks, deliveries, waiting, ended, tag, queue, progress, places })
    }

    /// How many messages may be in hand at once: of this queue, or of all partitions of a kind together.
    fn in_hand(&self, feed: Feed) -> u16 {
        match feed {
            Feed::Messages(kind) | Feed::Partition(kind, _) => self.prefetch.prefetch(kind),
            Feed::ParkedPairs => PREFETCH_PARKED_PAIRS,
            Feed::Suspects | Feed::Isolated => self.tier.prefetch(),
        }
    }

    /// How many messages the broker sends before the first of them is settled.
    fn prefetch(&self, feed: Feed) -> u16 {
        match feed {
            Feed::Partition(..) => of_a_partition(self.in_hand(feed), self.settings.partitions),
            Feed::Messages(_) | Feed::ParkedPairs | Feed::Suspects | Feed::Isolated => self.in_hand(feed),
        }
    }
}

/// The prefetch of one of so many partitions, of which a worker may have `in_hand` messages in hand together. What
/// the broker sends beyond that waits in the worker, so it must not be much. One of several partitions gets at most half, so
/// that a flood for one user leaves places to the others.
fn of_a_partition(in_hand: u16, partitions: u16) -> u16 {
    let part = u32::from(in_hand) * PARTITIONS_THAT_FILL_IT / u32::from(partitions.max(1));
    let most = if partitions > 1 { in_hand.div_ceil(2) } else { in_hand };
    u16::try_from(part).unwrap_or(u16::MAX).min(most).max(1)
}

/// A worker's priority in the partitions of this index, the same for each kind of message: the first 24 bits of the
/// SHA-256 of `NAME/INDEX`. This is rendezvous hashing: a worker that comes takes partitions over from all the others
/// alike, and those of one that goes are spread over all the others.
fn priority(worker: &str, index: u8) -> i32 {
    let [first, second, third, ..]: [u8; 32] = Sha256::digest(format!("{worker}/{index}")).into();
    i32::from_be_bytes([0, first, second, third])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The one that the broker delivers to.
    fn first(workers: &[String], index: u8) -> usize {
        (0..workers.len()).max_by_key(|number| priority(&workers[*number], index)).unwrap()
    }

    #[test]
    fn the_priority_of_a_worker_is_the_same_in_every_version() {
        assert_eq!(
            [0, 1, 63].map(|index| priority("tokenkeeper-1", index)),
            [4_305_822, 4_546_313, 9_105_084]
        );
    }

    proptest! {
        #[test]
        fn partitions_move_to_the_worker_that_comes_and_no_other_ones_do(
            workers in proptest::collection::hash_set("tokenkeeper-[0-9a-f]{32}", 2..10),
            index: u8,
        ) {
            let workers: Vec<String> = workers.into_iter().collect();
            let (newcomer, others) = workers.split_last().unwrap();
            let now = &workers[first(&workers, index)];
            prop_assert!(now == newcomer || *now == others[first(others, index)]);
        }

        #[test]
        fn a_partition_s_prefetch_is_at_most_the_kind_s_and_at_least_one(in_hand in 1_u16.., partitions in 1_u16..=64) {
            let prefetch = of_a_partition(in_hand, partitions);
            prop_assert!((1..=in_hand).contains(&prefetch));
            let (all, in_hand) = (u32::from(prefetch) * u32::from(partitions), u32::from(in_hand));
            prop_assert!(all <= (in_hand * PARTITIONS_THAT_FILL_IT).max(u32::from(partitions)));
        }
    }

    #[test]
    fn the_partitions_are_spread_evenly_over_any_number_of_workers() {
        const PARTITIONS: u8 = 64;
        const SETS: usize = 200;
        for count in 2..=8 {
            let mut shares = Vec::new();
            for set in 0..SETS {
                let workers: Vec<String> =
                    (0..count).map(|number| format!("set-{set}-worker-{number}")).collect();
                let mut share = vec![0_usize; count];
                (0..PARTITIONS).for_each(|index| share[first(&workers, index)] += 1);
                shares.extend(share);
            }
            // As if each partition drew lots: a binomial distribution.
            let (draws, chance) = (f64::from(PARTITIONS), 1.0 / f64::from(u32::try_from(count).unwrap()));
            let (mean, variance) = (draws * chance, draws * chance * (1.0 - chance));
            let off = |share: &usize| (f64::from(u32::try_from(*share).unwrap()) - mean).powi(2);
            let spread =
                shares.iter().map(off).sum::<f64>() / f64::from(u32::try_from(shares.len()).unwrap());
            assert!((0.8..1.2).contains(&(spread / variance)), "{count} workers: {spread}, not {variance}");
        }
    }

    #[test]
    fn a_quarter_of_the_partitions_fills_a_workers_places_and_one_of_several_at_most_half() {
        let of_each = [1, 2, 4, 8, 64].map(|partitions| of_a_partition(512, partitions));
        assert_eq!(of_each, [512, 256, 256, 256, 32]);
        assert_eq!(of_a_partition(1, 64), 1);
    }
}
