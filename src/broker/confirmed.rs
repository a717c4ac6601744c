//! One publish and its confirm.

use std::pin::pin;
use std::time::Duration;

use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, Connection};

use super::{BrokerError, within};
use crate::settings::Broker;

/// A message on its way out.
pub(super) struct Publish {
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    /// Whether the broker is asked to give it back where nobody would get it.
    pub(super) mandatory: bool,
    pub(super) properties: BasicProperties,
    /// What errors call it.
    pub(super) what: &'static str,
}

/// Publishes a message and waits for its confirm; gives back a message that the broker returned meanwhile.
///
/// While the broker blocks the connection (memory or disk alarm) the confirm is waited for: what is published once more
/// would arrive twice when the alarm is over.
pub(super) async fn publish(
    connection: &Connection,
    channel: &Channel,
    message: Publish,
    body: &[u8],
    limit: Duration,
) -> Result<Option<BasicReturnMessage>, BrokerError> {
    let Publish { exchange, routing_key, mandatory, properties, what } = message;
    let options = BasicPublishOptions { mandatory, ..BasicPublishOptions::default() };
    let mut confirmed =
        pin!(async { channel.basic_publish(exchange, routing_key, options, body, properties).await?.await });
    let confirmation = loop {
        match within(limit, || format!("publish {what}"), confirmed.as_mut()).await {
            Err(BrokerError::Timeout { .. }) if connection.status().blocked() => {}
            confirmation => break confirmation?,
        }
    };
    match confirmation {
        Confirmation::Ack(returned) => Ok(returned),
        Confirmation::Nack(_) | Confirmation::NotRequested => Err(BrokerError::Refused { what }),
    }
}

/// Opens a channel on which every publish is confirmed.
pub(super) async fn confirming_channel(
    connection: &Connection,
    settings: &Broker,
) -> Result<Channel, BrokerError> {
    let limit = settings.operation_timeout;
    let channel =
        within(limit, || "open a channel for publishing".to_owned(), connection.create_channel()).await?;
    // Without this every confirm looks like success.
    let select = channel.confirm_select(ConfirmSelectOptions::default());
    within(limit, || "ask for publisher confirms".to_owned(), select).await?;
    Ok(channel)
}
