//! Exchanges and queues: what there is, and how it is declared.

mod partitions;
mod policies;

use std::fmt;
use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{Channel, Connection, ExchangeKind};

pub use self::policies::policies;
use super::{BrokerError, within};
use crate::contract::MessageKind;
use crate::settings::{Broker, QueueArguments, Topology};

/// The delivery limit of dead letters, parked pairs and waiting messages. The broker would drop a message that is taken and given
/// back this often.
const KEEPING_DELIVERY_LIMIT: i64 = 1_000_000_000;

/// In bytes. Some ten thousand records.
const JOURNAL_SEGMENT_BYTES: i64 = 10_000_000;

/// A queue that a worker consumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feed {
    /// The messages of a kind.
    Messages(MessageKind),
    /// One partition of a kind's messages.
    Partition(MessageKind, u8),
    /// Refreshed pairs that their worker could not store.
    ParkedPairs,
    /// Messages that may end their worker, a few at a time.
    Suspects,
    /// The same, one at a time.
    Isolated,
}

impl Feed {
    /// Parked pairs come first: a request may need one.
    pub const ALL: [Self; 7] = [
        Self::ParkedPairs,
        Self::Messages(MessageKind::TokenRequest),
        Self::Messages(MessageKind::WorkspaceStart),
        Self::Messages(MessageKind::TokenStore),
        Self::Messages(MessageKind::TokenReport),
        Self::Suspects,
        Self::Isolated,
    ];

    /// What it consumes beside, where each kind of message has so many partitions.
    pub fn partitions(count: u16) -> impl Iterator<Item = Self> {
        let indexes = (0..count).map_while(|index| u8::try_from(index).ok());
        indexes.flat_map(|index| MessageKind::PARTITIONED.map(|kind| Self::Partition(kind, index)))
    }
}

/// As in consumer tags, logs and `/readyz`.
impl fmt::Display for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Messages(kind) => kind.fmt(f),
            Self::Partition(kind, index) => write!(f, "{kind}.{index}"),
            Self::ParkedPairs => f.write_str("parked.pair"),
            Self::Suspects => f.write_str("suspects"),
            Self::Isolated => f.write_str("isolated"),
        }
    }
}

/// The names of exchanges and queues under a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    prefix: String,
}

impl Names {
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// The direct exchange for requests.
    pub fn exchange(&self) -> &str {
        &self.prefix
    }

    pub fn queue(&self, feed: Feed) -> String {
        match feed {
            Feed::Messages(kind) => kind.queue(&self.prefix),
            Feed::Partition(kind, index) => format!("{}.{index}", kind.queue(&self.prefix)),
            Feed::ParkedPairs => self.parked_pairs(),
            Feed::Suspects => format!("{}.suspects", self.prefix),
            Feed::Isolated => format!("{}.isolated", self.prefix),
        }
    }

    /// The exchange that spreads a kind's messages over its partitions. It has the name of the kind's queue.
    pub fn hash_exchange(&self, kind: MessageKind) -> String {
        kind.queue(&self.prefix)
    }

    /// The kind of message in a queue of this name, partitions included.
    pub fn kind_in(&self, queue: &str) -> Option<MessageKind> {
        MessageKind::ALL.into_iter().find(|kind| match queue.strip_prefix(&kind.queue(&self.prefix)) {
            Some("") => true,
            Some(rest) => rest.strip_prefix('.').is_some_and(|index| index.parse::<u8>().is_ok()),
            None => false,
        })
    }

    /// The queue of refreshed pairs that their worker could not store.
    pub fn parked_pairs(&self) -> String {
        format!("{}.parked-pairs", self.prefix)
    }

    /// The stream of the journal of pairs.
    pub fn journal(&self) -> String {
        format!("{}.pairs", self.prefix)
    }

    /// The exchange of messages that wait before the next try, and the queue bound to it. The routing key is the queue that
    /// they go back to.
    pub fn again(&self) -> String {
        format!("{}.again", self.prefix)
    }

    /// The topic exchange for events.
    pub fn events(&self) -> String {
        format!("{}.events", self.prefix)
    }

    /// The dead-letter exchange, and the queue bound to it.
    pub fn dead_letters(&self) -> String {
        format!("{}.dead-letters", self.prefix)
    }
}

/// Declares the topology, checks that it is there, or leaves it, as the setting says.
///
/// # Errors
/// [`BrokerError`] with the name of the exchange or queue. Other arguments than ours are an error, too. Then the operator
/// migrates the queue, or sets `broker.topology` to `passive`.
pub async fn declare(connection: &Connection, settings: &Broker) -> Result<(), BrokerError> {
    work(connection, settings, Mode::of(settings), None).await
}

/// The same for one subscription. If a broker loses hundreds of partitions at once, each consumer declares only its own.
///
/// # Errors
/// As [`declare`].
pub async fn declare_for(connection: &Connection, settings: &Broker, feed: Feed) -> Result<(), BrokerError> {
    work(connection, settings, Mode::of(settings), Some(feed)).await
}

/// Looks at what is there, and declares nothing new: with [`Topology::Declare`], whether what is there is as [`declare`]
/// would want it.
///
/// # Errors
/// As [`declare`].
pub(super) async fn compare(connection: &Connection, settings: &Broker) -> Result<(), BrokerError> {
    let mode = match Mode::of(settings) {
        Some(Mode::Declare) => Some(Mode::Compare(connection)),
        mode => mode,
    };
    work(connection, settings, mode, None).await
}

/// For everything, or for one subscription.
async fn work(
    connection: &Connection,
    settings: &Broker,
    mode: Option<Mode<'_>>,
    feed: Option<Feed>,
) -> Result<(), BrokerError> {
    let Some(mode) = mode else { return Ok(()) };
    let limit = settings.operation_timeout;
    // A channel of its own: a missing or different queue closes it.
    let channel = open_channel(connection, limit).await?;
    let delivery_limit = match settings.queue_arguments {
        QueueArguments::Declare => Some(settings.delivery_limit.into()),
        QueueArguments::Policy => None,
    };
    let names = Names::new(&settings.prefix);
    let dead_letters = dead_letter_arguments(settings);
    let retry_delay = settings.retry_delay;
    let journal = settings.journal_max_age;
    let declarer =
        Declarer { channel, limit, mode, names, delivery_limit, dead_letters, retry_delay, journal };
    match feed {
        None => {
            declarer.contract().await?;
            declarer.partitions(settings.partitions).await?;
        }
        Some(Feed::Messages(_) | Feed::ParkedPairs | Feed::Suspects | Feed::Isolated) => {
            declarer.contract().await?;
        }
        Some(Feed::Partition(kind, index)) => declarer.partition(kind, index).await?,
    }
    let close = declarer.channel.close(200, "topology is there".into());
    within(limit, || "close the channel of the topology".to_owned(), close).await
}

/// What is done about each exchange and queue.
#[derive(Debug, Clone, Copy)]
enum Mode<'a> {
    Declare,
    /// It must be there.
    Find,
    /// If it is there, it must be as [`Mode::Declare`] wants it. Looked for over channels of their own.
    Compare(&'a Connection),
}

impl Mode<'_> {
    /// None: nothing is done.
    const fn of(settings: &Broker) -> Option<Self> {
        match settings.topology {
            Topology::Declare => Some(Self::Declare),
            Topology::Passive => Some(Self::Find),
            Topology::None => None,
        }
    }
}

async fn open_channel(connection: &Connection, limit: Duration) -> Result<Channel, BrokerError> {
    within(limit, || "open a channel for the topology".to_owned(), connection.create_channel()).await
}

struct Declarer<'a> {
    channel: Channel,
    limit: Duration,
    mode: Mode<'a>,
    names: Names,
    /// None: a policy sets it.
    delivery_limit: Option<i64>,
    dead_letters: FieldTable,
    retry_delay: Duration,
    /// How long the journal keeps its records. Zero: there is none.
    journal: Duration,
}

impl Declarer<'_> {
    /// What the contract names, the parked pairs and the suspects.
    async fn contract(&self) -> Result<(), BrokerError> {
        let dead_letters = self.names.dead_letters();
        self.exchange(&dead_letters, ExchangeKind::Fanout).await?;
        self.queue(&dead_letters, self.dead_letters.clone()).await?;
        self.bind(&dead_letters, &dead_letters, "").await?;
        // Workers publish to it by its name, so it needs no binding.
        self.queue(&self.names.parked_pairs(), keeping_arguments()).await?;
        if !self.journal.is_zero() {
            self.queue(&self.names.journal(), journal_arguments(self.journal)).await?;
        }
        for feed in [Feed::Suspects, Feed::Isolated] {
            self.queue(&self.names.queue(feed), self.work_arguments()).await?;
        }
        if !self.retry_delay.is_zero() {
            let again = self.names.again();
            self.exchange(&again, ExchangeKind::Fanout).await?;
            self.queue(&again, waiting_arguments(self.retry_delay)).await?;
            self.bind(&again, &again, "").await?;
        }
        self.exchange(&self.names.events(), ExchangeKind::Topic).await?;
        self.exchange(self.names.exchange(), ExchangeKind::Direct).await?;
        for kind in MessageKind::ALL {
            let queue = self.names.queue(Feed::Messages(kind));
            self.queue(&queue, self.work_arguments()).await?;
            self.bind(&queue, self.names.exchange(), kind.routing_key()).await?;
        }
        Ok(())
    }

    async fn exchange(&self, name: &str, kind: ExchangeKind) -> Result<(), BrokerError> {
        if let Mode::Compare(connection) = self.mode {
            let apart = open_channel(connection, self.limit).await?;
            if is_missing(self.exchange_over(&apart, name, kind.clone(), true).await)? {
                return Ok(());
            }
        }
        self.exchange_over(&self.channel, name, kind, matches!(self.mode, Mode::Find)).await
    }

    async fn exchange_over(
        &self,
        channel: &Channel,
        name: &str,
        kind: ExchangeKind,
        passive: bool,
    ) -> Result<(), BrokerError> {
        let options = ExchangeDeclareOptions { durable: true, passive, ..ExchangeDeclareOptions::default() };
        let call = channel.exchange_declare(short(name)?, kind, options, FieldTable::default());
        within(self.limit, || format!("{} exchange {name}", verb(passive)), call).await
    }

    async fn queue(&self, name: &str, arguments: FieldTable) -> Result<(), BrokerError> {
        if let Mode::Compare(connection) = self.mode {
            let apart = open_channel(connection, self.limit).await?;
            if is_missing(self.queue_over(&apart, name, arguments.clone(), true).await)? {
                return Ok(());
            }
        }
        self.queue_over(&self.channel, name, arguments, matches!(self.mode, Mode::Find)).await
    }

    async fn queue_over(
        &self,
        channel: &Channel,
        name: &str,
        arguments: FieldTable,
        passive: bool,
    ) -> Result<(), BrokerError> {
        let options = QueueDeclareOptions { durable: true, passive, ..QueueDeclareOptions::default() };
        let call = channel.queue_declare(short(name)?, options, arguments);
        within(self.limit, || format!("{} queue {name}", verb(passive)), call).await.map(drop)
    }

    /// AMQP has no passive bind: with `passive` the operator vouches for the bindings.
    async fn bind(&self, queue: &str, exchange: &str, routing_key: &str) -> Result<(), BrokerError> {
        match self.mode {
            Mode::Declare => {}
            Mode::Find | Mode::Compare(_) => return Ok(()),
        }
        let call = self.channel.queue_bind(
            short(queue)?,
            short(exchange)?,
            short(routing_key)?,
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        within(self.limit, || format!("bind queue {queue} to exchange {exchange}"), call).await
    }

    /// Quorum queues: they survive a node, and count deliveries. At-least-once dead-lettering needs `reject-publish`.
    fn work_arguments(&self) -> FieldTable {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), text("quorum"));
        if let Some(limit) = self.delivery_limit {
            arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(limit));
        }
        arguments.insert("x-dead-letter-exchange".into(), text(&self.names.dead_letters()));
        arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
        arguments.insert("x-overflow".into(), text("reject-publish"));
        arguments
    }
}

fn is_missing(found: Result<(), BrokerError>) -> Result<bool, BrokerError> {
    match found {
        Ok(()) => Ok(false),
        Err(error) if error.soft_error() == Some(&AMQPSoftError::NOTFOUND) => Ok(true),
        Err(error) => Err(error),
    }
}

const fn verb(passive: bool) -> &'static str {
    if passive { "find" } else { "declare" }
}

/// Not for a policy to change: without the argument, brokers from 4.0 on drop a message that was given back 20 times.
fn keeping_arguments() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("quorum"));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(KEEPING_DELIVERY_LIMIT));
    arguments
}

/// After its wait a message goes to the queue that its routing key names, by the default exchange. At-least-once: no message
/// is lost on the way.
fn waiting_arguments(delay: Duration) -> FieldTable {
    let mut arguments = keeping_arguments();
    let millis = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
    arguments.insert("x-message-ttl".into(), AMQPValue::LongLongInt(millis));
    arguments.insert("x-dead-letter-exchange".into(), text(""));
    arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
    arguments.insert("x-overflow".into(), text("reject-publish"));
    arguments
}

/// A stream: what was read stays, until it is too old. Its age is checked for whole segments, so small ones keep it from growing.
fn journal_arguments(max_age: Duration) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("stream"));
    arguments.insert("x-max-age".into(), text(&format!("{}s", max_age.as_secs())));
    arguments.insert("x-stream-max-segment-size-bytes".into(), AMQPValue::LongLongInt(JOURNAL_SEGMENT_BYTES));
    arguments
}

/// No queue is behind the dead letters: a letter dropped by their bounds is gone.
fn dead_letter_arguments(settings: &Broker) -> FieldTable {
    let mut arguments = keeping_arguments();
    if settings.queue_arguments == QueueArguments::Policy {
        return arguments;
    }
    if settings.dead_letters_max_length > 0 {
        arguments
            .insert("x-max-length".into(), AMQPValue::LongLongInt(settings.dead_letters_max_length.into()));
        arguments.insert("x-overflow".into(), text("drop-head"));
    }
    if !settings.dead_letters_max_age.is_zero() {
        let millis = i64::try_from(settings.dead_letters_max_age.as_millis()).unwrap_or(i64::MAX);
        arguments.insert("x-message-ttl".into(), AMQPValue::LongLongInt(millis));
    }
    arguments
}

pub(super) fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(value))
}

pub(super) fn short(name: &str) -> Result<ShortString, BrokerError> {
    ShortString::try_new(name).map_err(|_| BrokerError::TooLong { what: format!("the name {name}") })
}
