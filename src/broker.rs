//! RabbitMQ: topology, connections and their recovery, confirmed mandatory publishing.
//!
//! One kind of connection carries requests, their replies and their acks (`replies.rs` says why all three). Another carries dead
//! letters, parked pairs and events, so that their errors cost no request its connection. `lapin`'s own recovery is off, because
//! it turns some channel errors into a consumer that hangs for ever. The user of a connection watches it and opens a new one.

pub mod checks;
mod confirmed;
mod connection;
pub mod dead_letters;
mod diagnosis;
pub mod events;
mod journal;
mod nodes;
mod outgoing;
mod parked;
mod publisher;
pub mod quorum;
mod replies;
mod topology;
mod troubles;
mod version;

use std::future::Future;
use std::time::Duration;

use lapin::ErrorKind;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use tokio::time::timeout;

pub use self::connection::{connect, take_leave};
pub use self::diagnosis::{Diagnosis, Difference, Login, Permission, Permissions};
pub use self::journal::{Appended, JournalReader, ReadFrom};
pub use self::outgoing::{DeadLetter, MovedMessage, MovedTo, ORIGIN_HEADER, OutgoingReply};
pub use self::parked::ParkedQueue;
pub use self::publisher::{EventFate, NotMoved, Publisher, Stopped};
pub use self::replies::{Aside, Patience, Replies, Told, Unanswered};
pub use self::topology::{Feed, Names, declare, declare_for, policies};
pub use self::troubles::{Source, Troubles};
pub use self::version::version;
use crate::domain::problem::Problem;
use crate::retry::Backoff;

/// The waits between two tries to reach the broker, or to publish.
pub const AGAIN: Backoff = Backoff::doubling(Duration::from_millis(100), Duration::from_secs(2));

/// The same where the broker refuses what an operator must mend.
const AFTER_A_REFUSAL: Backoff = Backoff::doubling(Duration::from_secs(1), Duration::from_secs(15));

/// What can go wrong between us and the broker.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// No connection came about.
    #[error("{}", diagnosis.problem(login))]
    Connect { diagnosis: Box<Diagnosis>, login: Box<Login> },
    /// The broker or the connection failed. The library's error is no `source`: its words are not for operators.
    #[error("cannot {action}: {}", diagnosis::plainly(error))]
    Amqp { action: String, error: lapin::Error },
    /// There was no answer.
    #[error("cannot {action}: no answer within {} s", after.as_secs())]
    Timeout { action: String, after: Duration },
    /// The client library cannot read the URL.
    #[error("{url} is not a URL of a broker: {reason}")]
    Url {
        /// The URL, without its password.
        url: String,
        reason: String,
    },
    /// The broker does not know the type of exchange that spreads messages over partitions.
    #[error("cannot declare exchange {exchange}: the broker has no exchanges of the type x-consistent-hash")]
    NoHashExchange { exchange: String },
    /// A name is longer than AMQP can carry.
    #[error("{what} is longer than 255 bytes")]
    TooLong { what: String },
    /// The stream of deliveries ended: the broker cancelled the consumer.
    #[error("the broker cancelled the consumer of {queue}")]
    Cancelled { queue: String },
    /// The connection, or a channel of it, is closed.
    #[error("the connection or a channel is closed")]
    Closed,
    /// A queue takes and gives nothing: its nodes cannot agree.
    #[error("queue {queue} has no quorum")]
    NoQuorum { queue: String },
    /// Acks do not reach the broker.
    #[error("the task that acks what comes from {queue} ended")]
    NoAcks { queue: String },
    /// The dead-letter queue is not there.
    #[error("the broker returned a message for the dead letters: exchange {exchange} routes it nowhere")]
    NoDeadLetters { exchange: String },
    /// A queue is not there.
    #[error("the broker returned a message: there is no queue {queue}")]
    NoQueue { queue: String },
    /// The broker refused to keep a message.
    #[error("the broker refused (basic.nack) {what}")]
    Refused { what: &'static str },
}

impl BrokerError {
    /// Why the broker closed the channel, if it did: something is missing, locked or refused. The connection lives on.
    pub fn soft_error(&self) -> Option<&AMQPSoftError> {
        match self.protocol_error()? {
            AMQPErrorKind::Soft(error) => Some(error),
            AMQPErrorKind::Hard(_) => None,
        }
    }

    /// What an operator reads of it. `login` is whose connection it was, where the error does not know that better.
    pub fn problem(&self, login: &Login) -> Problem {
        match self {
            Self::Connect { diagnosis, login } => diagnosis.problem(login),
            _ => Diagnosis::of(self).problem(login),
        }
    }

    /// Why the broker closed the connection, if it did.
    fn hard_error(&self) -> Option<&AMQPHardError> {
        match self.protocol_error()? {
            AMQPErrorKind::Hard(error) => Some(error),
            AMQPErrorKind::Soft(_) => None,
        }
    }

    /// Whether the broker failed by itself.
    fn is_internal(&self) -> bool {
        matches!(self.hard_error(), Some(AMQPHardError::INTERNALERROR))
    }

    fn protocol_error(&self) -> Option<&AMQPErrorKind> {
        let Self::Amqp { error, .. } = self else { return None };
        let ErrorKind::ProtocolError(error) = error.kind() else { return None };
        Some(error.kind())
    }
}

/// Waits for an AMQP call, with a limit: a blocked or half-dead connection never answers.
pub async fn within<T>(
    limit: Duration,
    action: impl Fn() -> String,
    call: impl Future<Output = lapin::Result<T>>,
) -> Result<T, BrokerError> {
    match timeout(limit, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(BrokerError::Amqp { action: action(), error }),
        Err(_) => Err(BrokerError::Timeout { action: action(), after: limit }),
    }
}
