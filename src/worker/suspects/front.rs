//! The suspects at the front of a queue, before it is consumed.

use std::sync::Arc;

use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::BasicGetOptions;
use lapin::types::ShortString;

use super::{Lifeline, Next, ends};
use crate::broker::{BrokerError, Feed, within};
use crate::worker::acks::Acks;
use crate::worker::consume::Consumers;

impl Consumers {
    /// Takes the suspects from the front of a queue, one at a time, before anything else is in hand. A suspect whose delivery
    /// ends the connection then takes no other message along. Returns the first delivery that is no suspect.
    ///
    /// Parked pairs and isolated messages are never moved away. Moreover, a delivery by `basic.get` does not count towards the
    /// prefetch, so two isolated messages would be in hand at once.
    pub(in crate::worker) async fn move_suspects_away(
        &self,
        feed: Feed,
        queue: &str,
        channel: &Arc<Channel>,
        acks: &Acks,
    ) -> Result<Option<Delivery>, BrokerError> {
        if matches!(feed, Feed::ParkedPairs | Feed::Isolated) {
            return Ok(None);
        }
        let limit = self.settings.operation_timeout;
        while !self.stop.soft.is_cancelled() {
            let name = ShortString::try_new(queue)
                .map_err(|_| BrokerError::TooLong { what: format!("the name {queue}") })?;
            let get = channel.basic_get(name, BasicGetOptions::default());
            let Some(got) = within(limit, || format!("consume queue {queue}"), get).await? else { break };
            let delivery = got.delivery;
            let next = self.tier.next(ends(&delivery), self.settings.delivery_limit);
            let (settler, acks) = (Arc::clone(&self.settler), acks.clone());
            match (feed, next) {
                (Feed::ParkedPairs | Feed::Isolated, _) | (_, Next::Work) => return Ok(Some(delivery)),
                (Feed::Messages(kind) | Feed::Partition(kind, _), Next::MoveTo(_) | Next::GiveUp) => {
                    settler.move_away(kind, delivery, acks, self.lifeline(channel)).await;
                }
                (Feed::Suspects, Next::MoveTo(_) | Next::GiveUp) => {
                    settler.move_suspect(delivery, acks, self.lifeline(channel), next).await;
                }
            }
        }
        Ok(None)
    }

    pub(in crate::worker) fn lifeline(&self, channel: &Arc<Channel>) -> Lifeline {
        Lifeline { channel: Arc::clone(channel), limit: self.settings.operation_timeout }
    }
}
