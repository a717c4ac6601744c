//! Partitions: a consistent-hash exchange a kind, and the quorum queues that it spreads users over.

use lapin::ExchangeKind;
use lapin::protocol::AMQPHardError;

use super::{Declarer, Feed};
use crate::broker::BrokerError;
use crate::contract::MessageKind;

/// What the plugin `rabbitmq_consistent_hash_exchange` calls its exchanges.
const CONSISTENT_HASH: &str = "x-consistent-hash";

/// A binding's routing key says how large a part of the users its queue gets: the same one for all.
const WEIGHT: &str = "1";

impl Declarer<'_> {
    /// The exchange and the first `count` partitions of each kind that has some.
    ///
    /// In ascending order, whoever declares them: the exchange numbers its queues in the order they are bound, so a user
    /// has the same partition for each kind, and with it the same worker.
    pub(super) async fn partitions(&self, count: u16) -> Result<(), BrokerError> {
        if count == 0 {
            return Ok(());
        }
        for kind in MessageKind::PARTITIONED {
            self.hash_exchange(kind).await?;
            for index in (0..count).map_while(|index| u8::try_from(index).ok()) {
                self.partition_queue(kind, index).await?;
            }
        }
        Ok(())
    }

    /// One partition of a kind, and its exchange.
    pub(super) async fn partition(&self, kind: MessageKind, index: u8) -> Result<(), BrokerError> {
        self.hash_exchange(kind).await?;
        self.partition_queue(kind, index).await
    }

    async fn hash_exchange(&self, kind: MessageKind) -> Result<(), BrokerError> {
        let exchange = self.names.hash_exchange(kind);
        let declared = self.exchange(&exchange, ExchangeKind::Custom(CONSISTENT_HASH.to_owned())).await;
        declared.map_err(|error| without_plugin(error, exchange))
    }

    async fn partition_queue(&self, kind: MessageKind, index: u8) -> Result<(), BrokerError> {
        let queue = self.names.queue(Feed::Partition(kind, index));
        self.queue(&queue, self.work_arguments()).await?;
        self.bind(&queue, &self.names.hash_exchange(kind), WEIGHT).await
    }
}

/// An exchange of a type that the broker does not know costs the connection. Its own words name no remedy.
fn without_plugin(error: BrokerError, exchange: String) -> BrokerError {
    match error.hard_error() {
        Some(AMQPHardError::COMMANDINVALID) => BrokerError::NoHashExchange { exchange },
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use lapin::ErrorKind;
    use lapin::protocol::{AMQPError, AMQPErrorKind, AMQPSoftError};

    use super::*;

    fn answered(kind: AMQPErrorKind, text: &str) -> BrokerError {
        let error = ErrorKind::ProtocolError(AMQPError::new(kind, text.into())).into();
        BrokerError::Amqp { action: "declare exchange tk.token-requests".to_owned(), error }
    }

    #[test]
    fn a_broker_without_the_plugin_is_told_from_other_trouble() {
        // As RabbitMQ 3.10 says it, closing the connection.
        let unknown = answered(
            AMQPErrorKind::Hard(AMQPHardError::COMMANDINVALID),
            "COMMAND_INVALID - unknown exchange type 'x-consistent-hash'",
        );
        let error = without_plugin(unknown, "tk.token-requests".to_owned()).to_string();
        assert!(error.contains("no exchanges of the type x-consistent-hash"), "{error}");
        for other in [
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED),
            AMQPErrorKind::Hard(AMQPHardError::CONNECTIONFORCED),
        ] {
            let error = without_plugin(answered(other, "as it was"), "tk.token-requests".to_owned());
            assert!(error.to_string().contains("as it was"), "{error}");
        }
    }
}
