//! Publishing a dead letter again.

use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection};

use super::letter::{Destination, Letter, is_ours};
use super::seal::{Unopened, content_type_before};
use crate::broker::confirmed::confirming_channel;
use crate::broker::outgoing::carried_on_as;
use crate::broker::topology::short;
use crate::broker::{BrokerError, Names, connect, within};
use crate::domain::secret::KeyRing;
use crate::settings::Broker;

/// Header: how often a message was replayed.
pub const REPLAY_COUNT_HEADER: &str = "x-tokenkeeper-replay-count";

/// Publishes dead letters again over a connection of its own. While the broker blocks that one, published letters can still be
/// acked on the other.
#[derive(Debug)]
pub struct Replayer {
    settings: Broker,
    /// What opens sealed letters.
    keys: Option<KeyRing>,
    names: Names,
    connection: Connection,
    /// One publish at a time, so that a returned message is the published one.
    channel: Option<Channel>,
}

/// Why a letter was not replayed. It stays.
#[derive(Debug, thiserror::Error)]
pub enum Unreplayed {
    /// Nothing in the letter tells where it came from.
    #[error("nothing in it tells which queue it came from")]
    NoDestination,
    #[error(transparent)]
    Sealed(#[from] Unopened),
    /// No queue would have taken it.
    #[error(
        "no queue takes it from exchange `{exchange}` with the routing key {routing_key}: run a worker, which declares it"
    )]
    Unroutable { exchange: String, routing_key: String },
    /// The broker refuses this letter.
    #[error("the broker does not take it")]
    Refused(#[source] BrokerError),
    /// The broker is away, or takes nothing. Other letters would fail, too.
    #[error(transparent)]
    Broken(BrokerError),
}

impl Replayer {
    /// Connects. Without keys, sealed letters are not replayed.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub async fn connect(settings: &Broker, keys: Option<KeyRing>) -> Result<Self, BrokerError> {
        let connection = connect(settings, "tokenkeeper dead replay").await?;
        let names = Names::new(&settings.prefix);
        Ok(Self { settings: settings.clone(), keys, names, connection, channel: None })
    }

    /// Publishes a letter to where it came from. On success the broker has put it into a queue.
    ///
    /// # Errors
    /// [`Unreplayed`]: the letter must stay. After [`Unreplayed::Broken`] it may have been published all the same.
    pub async fn replay(&mut self, letter: &Letter) -> Result<(), Unreplayed> {
        let destination = letter.destination().ok_or(Unreplayed::NoDestination)?;
        let (exchange, routing_key) = match destination {
            Destination::Kind(kind) => (self.names.exchange(), kind.routing_key()),
            Destination::Queue(queue) => ("", queue.as_str()),
        };
        let body = letter.open(self.keys.as_ref())?;
        let unroutable =
            || Unreplayed::Unroutable { exchange: exchange.to_owned(), routing_key: routing_key.to_owned() };
        let names = short(exchange).and_then(|exchange| Ok((exchange, short(routing_key)?)));
        let (to_exchange, with_key) = names.map_err(Unreplayed::Refused)?;
        let channel = match self.channel.take() {
            Some(channel) if channel.status().connected() => channel,
            _ => confirming_channel(&self.connection, &self.settings).await.map_err(Unreplayed::Broken)?,
        };
        let confirmed = publish(&channel, to_exchange, with_key, &body, properties(letter));
        let limit = self.settings.operation_timeout;
        let confirmation = within(limit, || format!("publish to exchange {exchange}"), confirmed).await;
        match confirmation {
            Ok(confirmation) => {
                self.channel = Some(channel);
                match confirmation {
                    Confirmation::Ack(None) => Ok(()),
                    Confirmation::Ack(Some(_)) => Err(unroutable()),
                    Confirmation::Nack(_) | Confirmation::NotRequested => {
                        Err(Unreplayed::Refused(BrokerError::Refused { what: "the message" }))
                    }
                }
            }
            // The broker closed the channel over this message. The next message gets a new one.
            Err(error) => match error.soft_error() {
                Some(lapin::protocol::AMQPSoftError::NOTFOUND) => Err(unroutable()),
                Some(_) => Err(Unreplayed::Refused(error)),
                None => Err(Unreplayed::Broken(error)),
            },
        }
    }

    /// The broker takes no messages at present, because its memory or disk is full.
    pub fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// Closes the connection.
    pub async fn close(self) {
        let close = self.connection.close(200, "done".into());
        // Every publish was confirmed.
        drop(within(self.settings.operation_timeout, || "close the connection".to_owned(), close).await);
    }
}

async fn publish(
    channel: &Channel,
    exchange: ShortString,
    routing_key: ShortString,
    body: &[u8],
    properties: BasicProperties,
) -> lapin::Result<Confirmation> {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let published = channel.basic_publish(exchange, routing_key, options, body, properties);
    published.await?.await
}

/// The original properties, without those that would make the message die again or go astray. By `expiration` and `timestamp`
/// it would be too old already. `CC` would route it to further queues, which have had it.
pub(super) fn properties(letter: &Letter) -> BasicProperties {
    let stays_behind = |header: &str| {
        is_ours(header) || matches!(header, "CC" | "BCC" | "x-delivery-count" | "x-acquired-count")
    };
    let mut headers = FieldTable::default();
    for (name, value) in letter.properties().headers().iter().flat_map(FieldTable::inner) {
        if !stays_behind(name.as_str()) {
            headers.insert(name.clone(), value.clone());
        }
    }
    let count = i64::try_from(letter.replay_count()).unwrap_or(i64::MAX).saturating_add(1);
    headers.insert(REPLAY_COUNT_HEADER.into(), AMQPValue::LongLongInt(count));
    carried_on_as(letter.properties(), content_type_before(letter.properties()).as_ref(), headers)
}
