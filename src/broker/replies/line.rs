//! One publish of a reply.

use std::pin::pin;
use std::time::Duration;

use lapin::types::ShortString;
use lapin::{Channel, Confirmation, Connection};
use tokio::time::{Instant, timeout_at};

use super::{OutgoingReply, Patience, Replies};
use crate::broker::BrokerError;
use crate::broker::confirmed::Publish;
use crate::limits::bulkhead::STALLED_AFTER;
use crate::telemetry::{self, ReplyGivenUp};

/// The channel that replies are published over.
pub(super) struct Line<'a> {
    pub(super) connection: &'a Connection,
    pub(super) channel: &'a Channel,
    /// Checks the connection if nothing comes for long.
    pub(super) caretaker: Option<&'a Replies>,
}

/// The outcome of one publish.
pub(super) enum Tried {
    /// The broker has confirmed it.
    Taken,
    /// Confirmed, with a returned message that has no queue: this one, or another one under way.
    Returned,
    /// The queue refuses it (`basic.nack`), and may take it later.
    Refused,
    /// Given up.
    GivenUp(ReplyGivenUp),
    /// The channel or the connection ended meanwhile.
    Broken(BrokerError),
    /// There was no channel.
    NoConnection(BrokerError),
}

impl Line<'_> {
    /// Publishes a reply. After each `silence` without an answer the caretaker checks the connection.
    pub(super) async fn publish(
        &self,
        reply: &OutgoingReply<'_>,
        body: &[u8],
        silence: Duration,
        patience: &mut impl Patience,
    ) -> Tried {
        let message = match reply.message() {
            Ok(message) => message,
            // The name came over AMQP, so it fits into AMQP.
            Err(error) => return Tried::Broken(error),
        };
        let mut publishing = pin!(message.over(self.channel, body));
        let mut looked_at = Instant::now();
        loop {
            let patient_until = Instant::now() + STALLED_AFTER.min(silence);
            let confirmation = match timeout_at(patient_until, publishing.as_mut()).await {
                Ok(confirmation) => confirmation,
                // A second publish would arrive twice after the alarm.
                Err(_) if self.connection.status().blocked() => continue,
                Err(_) => {
                    let now = Instant::now();
                    if patience(now).is_none_or(|until| until <= now) {
                        return Tried::GivenUp(ReplyGivenUp::Unconfirmed);
                    }
                    if let Some(caretaker) = self.caretaker.filter(|_| looked_at.elapsed() >= silence) {
                        let action = "publish a reply".to_owned();
                        let silent = BrokerError::Timeout { action, after: silence };
                        Box::pin(caretaker.look_after(&silent)).await;
                        looked_at = Instant::now();
                    }
                    continue;
                }
            };
            return match confirmation {
                Ok(Confirmation::Ack(returned)) => {
                    let Some(returned) = returned else { return Tried::Taken };
                    let reply_type = returned.properties.kind().as_ref().map_or("", ShortString::as_str);
                    telemetry::reply_unroutable(reply_type);
                    Tried::Returned
                }
                Ok(Confirmation::Nack(_) | Confirmation::NotRequested) => Tried::Refused,
                Err(error) => {
                    Tried::Broken(BrokerError::Amqp { action: "publish a reply".to_owned(), error })
                }
            };
        }
    }
}

impl OutgoingReply<'_> {
    fn message(&self) -> Result<Publish, BrokerError> {
        Ok(Publish {
            exchange: ShortString::default(),
            routing_key: self.routing_key()?,
            mandatory: self.mandatory(),
            properties: self.properties(),
        })
    }
}
