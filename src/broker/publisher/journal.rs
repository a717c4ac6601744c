//! Appending to the journal of pairs: many at once, each with its confirm.

use std::pin::pin;

use lapin::BasicProperties;
use lapin::types::ShortString;

use super::{BrokerError, Names, Publisher, short_name};
use crate::broker::confirmed::{Publish, confirmed};
use crate::broker::outgoing::PERSISTENT;

impl Publisher {
    /// Appends a record, and waits until the broker has it. Waits for a connection before, but tries once.
    ///
    /// # Errors
    /// [`BrokerError`]: nobody knows whether the broker has it. A record that stands in the journal twice does no harm.
    pub async fn append(&self, record: &[u8]) -> Result<(), BrokerError> {
        let Some(wire) = self.wire_up().await else { return Err(BrokerError::Closed) };
        let queue = Names::new(&self.settings.prefix).journal();
        let message = Publish {
            exchange: ShortString::default(),
            routing_key: short_name(&queue)?,
            mandatory: true,
            properties: BasicProperties::default()
                .with_content_type("application/json".into())
                .with_delivery_mode(PERSISTENT),
        };
        let appended = async {
            let channel = self.own_channel(&wire.connection, &wire.journal).await?;
            let (publishing, limit) = (pin!(message.over(&channel, record)), self.settings.operation_timeout);
            match confirmed(&wire.connection, publishing, "a record of the journal", limit).await? {
                None => Ok(()),
                Some(_) => Err(BrokerError::NoQueue { queue }),
            }
        };
        appended.await.inspect_err(|error| self.suspect(&wire, error))
    }
}
