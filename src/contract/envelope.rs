//! The AMQP properties that have a meaning in the contract.

use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, ShortString};

use super::event::Event;
use super::reply_to::{ReplyTo, UnfitReplyTo};
use super::request::MessageKind;
use crate::domain::clock::Timestamp;
use crate::domain::escape::is_printable;

/// The AMQP `type` of a refreshed pair that its worker could not store.
pub const PARKED_PAIR_TYPE: &str = "parked.pair";

/// What the properties of a request say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Envelope {
    /// Where the reply goes. Also None if a reply could do harm there: see `unanswerable`.
    pub reply_to: Option<ReplyTo>,
    /// Why this message gets no reply.
    pub unanswerable: Option<Unanswerable>,
    /// Copied to the reply, byte for byte: `correlation_id`, else `message_id`.
    pub correlation_id: Option<ShortString>,
    /// W3C trace context, copied to the reply.
    pub traceparent: Option<String>,
    /// The AMQP user who published, if set; the broker checks it.
    pub publisher: Option<String>,
    /// How long the publisher waits, from `expiration`.
    pub time_to_live: Option<Duration>,
    /// From `timestamp`: whole seconds.
    pub published_at: Option<Timestamp>,
    /// The first property that breaks the contract, and how.
    pub unusable: Option<&'static str>,
}

/// Why a message gets no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unanswerable {
    /// A reply there could be taken for a request, or break the connection.
    #[error("property reply_to: {0}")]
    ReplyTo(UnfitReplyTo),
    /// The message is one of ours that came back. A reply to it could come back as well.
    #[error("property type: names a reply, an event or a parked pair, so this is no request")]
    NoRequest,
}

impl Envelope {
    /// `prefix`: the start of our own queues' names. An empty property counts as absent.
    pub fn read(properties: &BasicProperties, prefix: &str) -> Self {
        let given = |id: &&ShortString| !id.as_str().is_empty();
        let ids = [properties.correlation_id(), properties.message_id()];
        let correlation_id = ids.into_iter().filter_map(Option::as_ref).find(given);
        let reply_to =
            text(properties.reply_to().as_ref()).map(|name| ReplyTo::read(name, prefix)).transpose();
        let is_ours = text(properties.kind().as_ref()).is_some_and(is_type_of_ours);
        let (reply_to, unanswerable) = match reply_to {
            _ if is_ours => (None, Some(Unanswerable::NoRequest)),
            Ok(reply_to) => (reply_to, None),
            Err(unfit) => (None, Some(Unanswerable::ReplyTo(unfit))),
        };
        let unusable = unusable(properties);
        Self {
            reply_to,
            unanswerable,
            // A refused value is not repeated.
            correlation_id: correlation_id.filter(|_| unusable.is_none()).cloned(),
            traceparent: traceparent(properties),
            publisher: text(properties.user_id().as_ref()).map(str::to_owned),
            // The broker itself refuses an expiration that is not a number of milliseconds.
            time_to_live: text(properties.expiration().as_ref())
                .and_then(|ms| ms.parse().ok())
                .map(Duration::from_millis),
            published_at: properties
                .timestamp()
                .and_then(|secs| i64::try_from(secs).ok()?.checked_mul(1000))
                .map(Timestamp::from_millis),
            unusable,
        }
    }
}

impl Envelope {
    /// How logs name the request.
    pub fn request_id(&self) -> Option<&str> {
        self.correlation_id.as_ref().map(ShortString::as_str)
    }
}

/// Texts that go into replies, logs and dead letters, or select an access rule.
fn unusable(properties: &BasicProperties) -> Option<&'static str> {
    let checked = [
        (properties.correlation_id(), "property correlation_id: must not contain control characters"),
        (properties.message_id(), "property message_id: must not contain control characters"),
        (properties.user_id(), "property user_id: must not contain control characters"),
    ];
    let wrong = |text: &Option<ShortString>| text.as_ref().is_some_and(|text| !is_printable(text.as_str()));
    checked.into_iter().find(|(text, _)| wrong(text)).map(|(_, reason)| reason)
}

/// Whether a worker publishes messages with this AMQP `type`.
fn is_type_of_ours(name: &str) -> bool {
    MessageKind::ALL.iter().any(|kind| kind.reply_type() == name)
        || Event::NAMES.contains(&name)
        || name == PARKED_PAIR_TYPE
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
    // A W3C traceparent has 55 characters. A bad one is dropped and the request is answered: the publisher's tracing library
    // wrote it, not the publisher.
    (text.len() <= 255 && is_printable(text)).then(|| text.to_owned())
}
