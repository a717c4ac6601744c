//! The stream of the journal of pairs, as it is read.

use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, Consumer};

use super::topology::{short, text};
use super::{BrokerError, Names, connect, declare, take_leave, within};
use crate::domain::clock::Timestamp;
use crate::settings::Broker;

/// Records on their way to one reader.
const PREFETCH: u16 = 200;

/// Reads the journal over a connection of its own, from one record on and without an end.
#[derive(Debug)]
pub struct JournalReader {
    connection: Connection,
    _channel: Channel,
    consumer: Consumer,
    queue: String,
}

/// Where reading begins. The broker sends whole chunks of records, so a few earlier ones may come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFrom {
    /// The oldest record that is left.
    First,
    /// The record with this offset. Beyond the end: what is appended from now on.
    Offset(u64),
    /// What was appended from this date on.
    Date(Timestamp),
}

/// A record, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// Counts the records of this stream, from zero.
    pub offset: u64,
    pub body: Vec<u8>,
}

impl JournalReader {
    /// # Errors
    /// [`BrokerError`].
    pub async fn open(settings: &Broker, name: &str, from: ReadFrom) -> Result<Self, BrokerError> {
        let queue = Names::new(&settings.prefix).journal();
        let limit = settings.operation_timeout;
        let connection = connect(settings, name).await?;
        declare(&connection, settings).await?;
        let channel =
            within(limit, || "open a channel for the journal".to_owned(), connection.create_channel())
                .await?;
        // A stream gives nothing without it.
        let qos = channel.basic_qos(PREFETCH, BasicQosOptions::default());
        within(limit, || format!("set the prefetch of {queue}"), qos).await?;
        let mut arguments = FieldTable::default();
        let start = match from {
            ReadFrom::First => text("first"),
            ReadFrom::Offset(offset) => AMQPValue::LongLongInt(i64::try_from(offset).unwrap_or(i64::MAX)),
            ReadFrom::Date(at) => AMQPValue::Timestamp(u64::try_from(at.as_millis() / 1_000).unwrap_or(0)),
        };
        arguments.insert("x-stream-offset".into(), start);
        let consume =
            channel.basic_consume(short(&queue)?, short(name)?, BasicConsumeOptions::default(), arguments);
        let consumer = within(limit, || format!("read {queue}"), consume).await?;
        Ok(Self { connection, _channel: channel, consumer, queue })
    }

    /// The next record. Waits until there is one.
    ///
    /// # Errors
    /// [`BrokerError`]: the stream or the connection is gone.
    pub async fn next(&mut self) -> Result<Appended, BrokerError> {
        loop {
            let delivery = match self.consumer.next().await {
                Some(Ok(delivery)) => delivery,
                Some(Err(error)) => {
                    return Err(BrokerError::Amqp { action: format!("read {}", self.queue), error });
                }
                None => return Err(BrokerError::Cancelled { queue: self.queue.clone() }),
            };
            // An ack is a credit for the next one: nothing is removed.
            let ack = delivery.acker.ack(BasicAckOptions::default()).await;
            ack.map_err(|error| BrokerError::Amqp { action: format!("read {}", self.queue), error })?;
            let headers = delivery.properties.headers().as_ref();
            let offset = headers.and_then(|headers| match headers.inner().get("x-stream-offset") {
                Some(AMQPValue::LongLongInt(offset)) => u64::try_from(*offset).ok(),
                _ => None,
            });
            // The broker sets it on every record.
            if let Some(offset) = offset {
                return Ok(Appended { offset, body: delivery.data });
            }
        }
    }

    /// Before the worker ends.
    pub async fn close(self) {
        take_leave(&self.connection).await;
    }
}
