use std::time::Duration;

use super::nodes::Nodes;
use super::reader::Reader;
use super::tls;
use crate::private_file::FileRule;
use crate::tls::LinkTls;

/// RabbitMQ.
#[derive(Debug, Clone)]
pub struct Broker {
    /// Where it is: `amqp://` or `amqps://`.
    pub nodes: Nodes,
    /// How the links to them are protected.
    pub tls: LinkTls,
    /// First part of the name of every exchange and queue.
    pub prefix: String,
    /// What the worker does about exchanges and queues at start.
    pub topology: Topology,
    /// Who sets delivery limit and bounds of the queues.
    pub queue_arguments: QueueArguments,
    /// Partitions of each kind of message but `token.report`, so that one user's messages meet in one worker. 0: none.
    pub partitions: u16,
    /// The oldest dead letters beyond this number are dropped. 0: any number.
    pub dead_letters_max_length: u32,
    /// How long a dead letter is kept. Zero: for ever.
    pub dead_letters_max_age: Duration,
    /// How often the broker redelivers a message before it goes to the dead letters.
    pub delivery_limit: u32,
    /// How long a message waits that failed for now, if its publisher cannot be told. Zero: the broker delays it (delayed
    /// retries of quorum queues, from RabbitMQ 4.3).
    pub retry_delay: Duration,
    /// How often such a message is tried again before it goes to the dead letters.
    pub retry_limit: u32,
    /// How long the journal of pairs keeps a record: as old as the oldest backup that one would restore. Zero: no journal.
    pub journal_max_age: Duration,
    /// How often each side says that it lives, unless the URL says another time (`?heartbeat=`). Who was silent for twice this
    /// time counts as gone.
    pub heartbeat: Duration,
    /// Limit for connecting, TLS and the AMQP handshake included. Each node, and each address of its name, has a share of it.
    pub connect_timeout: Duration,
    /// Limit for every AMQP operation. Without it an operation on a blocked connection waits for ever.
    pub operation_timeout: Duration,
}

/// What the worker does about exchanges and queues at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// Declare them.
    Declare,
    /// Check that they are there. An operator declares them.
    Passive,
    /// Do nothing: the broker's user may not even check.
    None,
}

/// Who sets what an operator may want to change of a queue that exists: its delivery limit, length and age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueArguments {
    /// The worker, when it declares the queue. Another value needs another queue.
    Declare,
    /// A policy at the broker, which holds at once for queues that exist.
    Policy,
}

impl Broker {
    /// The URL as logs and errors show it: without its password.
    pub fn display_url(&self) -> &str {
        self.nodes.redacted()
    }

    pub(super) fn read(from: &mut Reader, files: FileRule) -> Self {
        let nodes = Nodes::read(from, files);
        let tls = tls::broker(from, &nodes, files);
        Self {
            nodes,
            tls,
            prefix: from
                .text("broker.prefix", is_prefix, PREFIX_SHAPE)
                .unwrap_or_else(|| "tokenkeeper".to_owned()),
            topology: from.choice(
                "broker.topology",
                &[("declare", Topology::Declare), ("passive", Topology::Passive), ("none", Topology::None)],
                Topology::Declare,
            ),
            queue_arguments: from.choice(
                "broker.queue_arguments",
                &[("declare", QueueArguments::Declare), ("policy", QueueArguments::Policy)],
                QueueArguments::Declare,
            ),
            // Each partition is three quorum queues, and RabbitMQ 3.10 reserves three file handles for a quorum queue. On
            // a broker with 1,024 files 256 partitions block every new connection. 64 leave a third of the files.
            partitions: from.integer("broker.partitions", 0..=64, 0),
            dead_letters_max_length: from.integer("broker.dead_letters_max_length", 0..=1_000_000_000, 0),
            // The broker counts milliseconds in 32 bits.
            dead_letters_max_age: from.seconds("broker.dead_letters_max_age_secs", 0..=4_294_967, 0),
            delivery_limit: from.integer("broker.delivery_limit", 1..=1_000, 5),
            retry_delay: from.seconds("broker.retry_delay_secs", 0..=3_600, 5),
            retry_limit: from.integer("broker.retry_limit", 1..=1_000_000, 100),
            journal_max_age: from.seconds("broker.journal_max_age_secs", 0..=31_536_000, 7 * 24 * 60 * 60),
            // A node that does not answer is left after eight to ten seconds.
            heartbeat: from.seconds("broker.heartbeat_secs", 1..=300, 4),
            connect_timeout: from.seconds("broker.connect_timeout_secs", 1..=300, 10),
            operation_timeout: from.seconds("broker.operation_timeout_secs", 1..=300, 10),
        }
    }
}

const PREFIX_SHAPE: &str =
    "1 to 100 letters, digits, `-`, `_` or `.`, and not begin with `amq.`, which the broker keeps for itself";

fn is_prefix(text: &str) -> bool {
    (1..=100).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !text.starts_with("amq.")
}
