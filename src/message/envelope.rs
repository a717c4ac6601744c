//! The AMQP properties that the contract gives a meaning.

use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, ShortString};

use crate::clock::Timestamp;

/// A `reply_to` that starts so is RabbitMQ's direct reply-to: no queue, and never published to as `mandatory`,
/// because up to 4.1 the broker returns such a message although it arrives.
pub const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// What the properties of a request say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Envelope {
    /// The queue the reply goes to.
    pub reply_to: Option<String>,
    /// Copied to the reply: `correlation_id`, else `message_id`.
    pub correlation_id: Option<String>,
    /// W3C trace context, copied to the reply.
    pub traceparent: Option<String>,
    /// The AMQP user who published: the broker checked it, where it is there.
    pub publisher: Option<String>,
    /// How long the publisher waits, from `expiration`.
    pub time_to_live: Option<Duration>,
    /// When it was published, to the second, where the publisher says.
    pub published_at: Option<Timestamp>,
}

impl Envelope {
    /// Reads the properties. One that is empty counts as absent.
    pub fn read(properties: &BasicProperties) -> Self {
        let correlation_id =
            text(properties.correlation_id().as_ref()).or_else(|| text(properties.message_id().as_ref()));
        Self {
            reply_to: text(properties.reply_to().as_ref()).map(str::to_owned),
            correlation_id: correlation_id.map(str::to_owned),
            traceparent: traceparent(properties),
            publisher: text(properties.user_id().as_ref()).map(str::to_owned),
            // The broker refuses an expiration that is no number of milliseconds.
            time_to_live: text(properties.expiration().as_ref())
                .and_then(|ms| ms.parse().ok())
                .map(Duration::from_millis),
            published_at: properties
                .timestamp()
                .and_then(|secs| i64::try_from(secs).ok()?.checked_mul(1000))
                .map(Timestamp::from_millis),
        }
    }
}

fn text(property: Option<&ShortString>) -> Option<&str> {
    property.map(ShortString::as_str).filter(|text| !text.is_empty())
}

fn traceparent(properties: &BasicProperties) -> Option<String> {
    let text = match properties.headers().as_ref()?.inner().get("traceparent")? {
        AMQPValue::LongString(text) => str::from_utf8(text.as_bytes()).ok()?,
        AMQPValue::ShortString(text) => text.as_str(),
        _ => return None,
    };
    // A W3C traceparent has 55 characters; anything much longer is not one and is not carried around.
    (text.len() <= 255).then(|| text.to_owned())
}
