//! The queue of parked pairs, as a command looks at it. Workers consume it meanwhile.

use std::time::Duration;

use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicGetOptions, QueueDeclareOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::FieldTable;
use lapin::{Channel, Connection};

use super::topology::short;
use super::{BrokerError, Names, connect, within};
use crate::settings::Broker;

/// The pairs that were ready when it was opened, one after the other. Those that are not removed go back in the end, however
/// that comes.
#[derive(Debug)]
pub struct ParkedQueue {
    settings: Broker,
    queue: String,
    connection: Connection,
    /// None: there is no such queue.
    channel: Option<Channel>,
    left: u32,
}

impl ParkedQueue {
    pub async fn open(settings: &Broker) -> Result<Self, BrokerError> {
        let queue = Names::new(&settings.prefix).parked_pairs();
        let connection = connect(settings, "tokenkeeper keys").await?;
        let mut parked = Self { settings: settings.clone(), queue, connection, channel: None, left: 0 };
        match parked.ready().await {
            Ok(ready) => {
                parked.left = ready;
                parked.channel = Some(parked.new_channel().await?);
                Ok(parked)
            }
            Err(error) if error.soft_error() == Some(&AMQPSoftError::NOTFOUND) => Ok(parked),
            Err(error) => Err(error),
        }
    }

    /// The next pair, or None after the last one.
    pub async fn next(&mut self) -> Result<Option<Delivery>, BrokerError> {
        let Some(channel) = self.channel.as_ref().filter(|_| self.left > 0) else { return Ok(None) };
        self.left -= 1;
        let get = channel.basic_get(short(&self.queue)?, BasicGetOptions::default());
        let got = within(self.limit(), || format!("read queue {}", self.queue), get).await?;
        Ok(got.map(|message| message.delivery))
    }

    /// Removes a pair that [`ParkedQueue::next`] gave out.
    pub async fn remove(&self, pair: &Delivery) -> Result<(), BrokerError> {
        let ack = pair.acker.ack(BasicAckOptions::default());
        if within(self.limit(), || "ack a parked pair".to_owned(), ack).await? {
            Ok(())
        } else {
            Err(BrokerError::Cancelled { queue: self.queue.clone() })
        }
    }

    /// Gives the other pairs back.
    pub async fn close(self) -> Result<(), BrokerError> {
        let close = self.connection.close(200, "done".into());
        within(self.limit(), || "close the connection".to_owned(), close).await
    }

    async fn ready(&self) -> Result<u32, BrokerError> {
        let channel = self.new_channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declare = channel.queue_declare(short(&self.queue)?, passive, FieldTable::default());
        let found = within(self.limit(), || format!("find queue {}", self.queue), declare).await?;
        Ok(found.message_count())
    }

    async fn new_channel(&self) -> Result<Channel, BrokerError> {
        within(self.limit(), || "open a channel".to_owned(), self.connection.create_channel()).await
    }

    fn limit(&self) -> Duration {
        self.settings.operation_timeout
    }
}
