//! One publish and its confirm.

use std::pin::Pin;
use std::time::Duration;

use futures_util::TryFutureExt;
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
    /// Whether the broker returns it if no queue takes it.
    pub(super) mandatory: bool,
    pub(super) properties: BasicProperties,
}

impl Publish {
    /// Publishes it over `channel` and waits for its confirm.
    ///
    /// Not an `async fn`: its future would hold everything twice, and every message in hand carries it.
    pub(super) fn over<'a>(
        self,
        channel: &'a Channel,
        body: &'a [u8],
    ) -> impl Future<Output = lapin::Result<Confirmation>> + Send + 'a {
        let Self { exchange, routing_key, mandatory, properties } = self;
        let options = BasicPublishOptions { mandatory, ..BasicPublishOptions::default() };
        channel.basic_publish(exchange, routing_key, options, body, properties).try_flatten()
    }
}

/// Waits for the confirm. Returns the message that the broker sent back meanwhile, if any. Errors call the message `what`.
///
/// Keeps waiting while an alarm blocks the connection: a second publish would arrive twice after the alarm.
pub(super) async fn confirmed(
    connection: &Connection,
    mut publishing: Pin<&mut (impl Future<Output = lapin::Result<Confirmation>> + Send)>,
    what: &'static str,
    limit: Duration,
) -> Result<Option<BasicReturnMessage>, BrokerError> {
    let confirmation = loop {
        match within(limit, || format!("publish {what}"), publishing.as_mut()).await {
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
