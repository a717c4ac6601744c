//! RabbitMQ: topology, connections and their recovery, confirmed mandatory publishing.
//!
//! Two connections, because the broker blocks a publishing one while an alarm is on, and acks on the other one
//! must go on. Neither recovers by itself: `lapin`'s own recovery turns some channel errors into a consumer that
//! hangs for ever, so whoever uses a connection watches it and makes it anew.

mod connection;
mod outgoing;
mod publisher;
mod topology;

use std::future::Future;
use std::time::Duration;

use tokio::time::timeout;

pub use self::connection::connect;
pub use self::outgoing::{DeadLetter, OutgoingReply};
pub use self::publisher::{EventFate, Publisher, Stopped};
pub use self::topology::{Feed, Names, declare};
use crate::retry::Backoff;

/// The waits between two tries to reach the broker, or to publish.
pub const AGAIN: Backoff = Backoff {
    initial_interval: Duration::from_millis(100),
    max_interval: Duration::from_secs(2),
    multiplier: 2.0,
    jitter: 0.5,
};

/// What can go wrong between us and the broker.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The broker, or the way to it, said no.
    #[error("cannot {action}: {source}")]
    Amqp {
        /// What was tried, on what.
        action: String,
        /// What came back.
        #[source]
        source: lapin::Error,
    },
    /// Nothing came back.
    #[error("cannot {action}: no answer within {} s", after.as_secs())]
    Timeout {
        /// What was tried, on what.
        action: String,
        /// How long was waited.
        after: Duration,
    },
    /// The URL is none that the client library reads.
    #[error("{url} is not a URL of a broker: {reason}")]
    Url {
        /// The URL, without its password.
        url: String,
        /// Why.
        reason: String,
    },
    /// A name is longer than AMQP can carry.
    #[error("{what} is longer than 255 bytes")]
    TooLong {
        /// What has the name.
        what: String,
    },
    /// The stream of deliveries ended: the broker cancelled the consumer.
    #[error("the broker cancelled the consumer of {queue}")]
    Cancelled {
        /// Which queue.
        queue: String,
    },
    /// The dead-letter queue is not there.
    #[error("the broker returned a message for the dead letters: exchange {exchange} routes it nowhere")]
    NoDeadLetters {
        /// The exchange.
        exchange: String,
    },
    /// A queue is not there.
    #[error("the broker returned a message: there is no queue {queue}")]
    NoQueue {
        /// Which one.
        queue: String,
    },
    /// The broker refused to keep a message.
    #[error("the broker refused (basic.nack) {what}")]
    Refused {
        /// Which message.
        what: &'static str,
    },
}

/// Waits for an AMQP call, but not for ever: a blocked or half-dead connection answers never.
pub async fn within<T>(
    limit: Duration,
    action: impl Fn() -> String,
    call: impl Future<Output = lapin::Result<T>>,
) -> Result<T, BrokerError> {
    match timeout(limit, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(BrokerError::Amqp { action: action(), source }),
        Err(_) => Err(BrokerError::Timeout { action: action(), after: limit }),
    }
}
