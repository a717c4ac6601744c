//! Publishing events: with a confirm, not mandatory, over a channel of their own.
//!
//! The connection counts as good without that channel. The broker closes the channel if there is no exchange of events, or no
//! permission to publish to it, and dead letters go on all the same.

use std::pin::pin;
use std::sync::Arc;

use lapin::BasicProperties;
use lapin::types::ShortString;
use uuid::Uuid;

use super::{AGAIN, BrokerError, Names, Publisher, Wire};
use crate::broker::confirmed::{Publish, confirmed};
use crate::broker::outgoing::PERSISTENT;
use crate::contract::Event;
use crate::retry::retry_forever;
use crate::telemetry;

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventFate {
    /// The broker confirmed it, whether anybody listens or not.
    Published,
    /// The broker is there and does not take it.
    Unwanted,
    /// The worker stopped first.
    Stopped,
}

impl Publisher {
    /// Publishes an event and waits for the broker's confirm, over a new connection if this one breaks, and until an alarm is
    /// over. After a lost confirm the event is published twice, with the same `message_id`.
    pub async fn event(&self, event: &Event) -> EventFate {
        tokio::select! {
            biased;
            () = self.hard_stop.cancelled() => EventFate::Stopped,
            fate = self.retry_event(event) => fate,
        }
    }

    async fn retry_event(&self, event: &Event) -> EventFate {
        let body = event.encode();
        let message_id = Uuid::new_v4().to_string();
        let (body, message_id) = (&body, &message_id);
        retry_forever(AGAIN, |_| async move {
            let Some(up) = self.wire_up().await else { return Some(EventFate::Stopped) };
            let error = match self.try_event(&up, event.name(), message_id, body).await {
                Ok(()) => return Some(EventFate::Published),
                Err(error) => error,
            };
            telemetry::event_not_published(&error);
            if is_refusal(&error) {
                return Some(EventFate::Unwanted);
            }
            self.suspect(&up, &error);
            None
        })
        .await
    }

    async fn try_event(
        &self,
        wire: &Arc<Wire>,
        name: &'static str,
        message_id: &str,
        body: &[u8],
    ) -> Result<(), BrokerError> {
        let exchange = Names::new(&self.settings.prefix).events();
        let too_long = |what: &str| BrokerError::TooLong { what: format!("the name {what}") };
        let properties = BasicProperties::default()
            .with_type(name.into())
            .with_content_type("application/json".into())
            .with_message_id(ShortString::try_new(message_id).map_err(|_| too_long(message_id))?)
            .with_delivery_mode(PERSISTENT);
        let message = Publish {
            exchange: ShortString::try_new(exchange.as_str()).map_err(|_| too_long(&exchange))?,
            routing_key: name.into(),
            mandatory: false,
            properties,
        };
        let channel = self.own_channel(&wire.connection, &wire.events).await?;
        let (publishing, limit) = (pin!(message.over(&channel, body)), self.settings.operation_timeout);
        confirmed(&wire.connection, publishing, "an event", limit).await.map(drop)
    }
}

/// The broker is there and does not want it: no exchange of events, no right to publish to it.
fn is_refusal(error: &BrokerError) -> bool {
    match error {
        BrokerError::Amqp { error, .. } => error.is_amqp_soft_error(),
        BrokerError::TooLong { .. } => true,
        BrokerError::Connect { .. }
        | BrokerError::Timeout { .. }
        | BrokerError::Url { .. }
        | BrokerError::Closed
        | BrokerError::Cancelled { .. }
        | BrokerError::NoAcks { .. }
        | BrokerError::NoDeadLetters { .. }
        | BrokerError::NoQueue { .. }
        | BrokerError::NoQuorum { .. }
        | BrokerError::NoHashExchange { .. }
        | BrokerError::Refused { .. } => false,
    }
}
