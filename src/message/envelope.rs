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
        let text = |value: &Option<ShortString>| {
            value.as_ref().map(ShortString::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
        };
        Self {
            reply_to: text(properties.reply_to()),
            correlation_id: text(properties.correlation_id()).or_else(|| text(properties.message_id())),
            traceparent: traceparent(properties),
            publisher: text(properties.user_id()),
            // The broker refuses an expiration that is no number of milliseconds.
            time_to_live: text(properties.expiration())
                .and_then(|ms| ms.parse().ok())
                .map(Duration::from_millis),
            published_at: properties
                .timestamp()
                .and_then(|secs| i64::try_from(secs).ok()?.checked_mul(1000))
                .map(Timestamp::from_millis),
        }
    }
}

fn traceparent(properties: &BasicProperties) -> Option<String> {
    let header = properties.headers().as_ref()?.inner().get("traceparent")?;
    match header {
        AMQPValue::LongString(text) => String::from_utf8(text.as_bytes().to_vec()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str().to_owned()),
        _ => None,
    }
    // A W3C traceparent has 55 characters; anything much longer is not one and is not carried around.
    .filter(|text| text.len() <= 255)
}
