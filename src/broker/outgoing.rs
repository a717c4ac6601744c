//! What the worker publishes: replies, dead letters and moved messages.

use lapin::BasicProperties;
use lapin::protocol::basic::gen_properties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::dead_letters::{Sealed, id_of, is_of_death, without_seal};
use super::topology::text;
use super::{BrokerError, Feed};
use crate::contract::{Envelope, MessageKind, ReplyTo};
use crate::domain::clock::Timestamp;
use crate::domain::escape;
use crate::domain::secret::KeyRing;
use crate::telemetry;

/// Header: why a message is in the dead letters, in a word.
pub(super) const REASON_HEADER: &str = "x-tokenkeeper-reason";
/// Header: the same in a sentence.
pub(super) const DETAIL_HEADER: &str = "x-tokenkeeper-detail";
/// Header: since when, as an RFC 3339 date.
pub(super) const TIME_HEADER: &str = "x-tokenkeeper-time";
/// Header: the AMQP user who published. The property `user_id` cannot be kept, because the broker compares it with our own.
pub(super) const PUBLISHER_HEADER: &str = "x-tokenkeeper-publisher";

/// Header of a moved message (a suspect, or one that is put off): its kind and publisher, sealed. The broker vouched for the
/// publisher of the original, but does not for a message that a worker publishes again.
pub const ORIGIN_HEADER: &str = "x-tokenkeeper-origin";

/// AMQP `delivery_mode` of a message that survives the broker.
pub(super) const PERSISTENT: u8 = 2;

/// A reply, ready to be published.
#[derive(Debug, Clone)]
pub struct OutgoingReply<'a> {
    pub reply_to: &'a ReplyTo,
    pub reply_type: &'static str,
    pub envelope: &'a Envelope,
    /// The worker must know whether a queue took the reply. Then nothing else is published meanwhile, so that a return is exact.
    pub exact: bool,
}

impl OutgoingReply<'_> {
    /// The broker returns the reply if no queue takes it.
    pub(super) fn mandatory(&self) -> bool {
        !self.is_direct()
    }

    /// Only the broker can judge a direct reply-to.
    pub(super) fn is_direct(&self) -> bool {
        match self.reply_to {
            ReplyTo::Queue(_) => false,
            ReplyTo::Direct(_) => true,
        }
    }

    pub(super) fn routing_key(&self) -> Result<ShortString, BrokerError> {
        short(self.reply_to.as_str(), "reply_to")
    }

    pub(super) fn properties(&self) -> BasicProperties {
        let mut properties = BasicProperties::default()
            .with_type(self.reply_type.into())
            .with_content_type("application/json".into());
        if let Some(id) = &self.envelope.correlation_id {
            properties = properties.with_correlation_id(id.clone());
        }
        if let Some(trace) = &self.envelope.traceparent {
            let mut headers = FieldTable::default();
            headers.insert("traceparent".into(), AMQPValue::LongString(trace.as_str().into()));
            properties = properties.with_headers(headers);
        }
        properties
    }
}

/// A message for the dead letters, as it came, with the reason in its headers. Sealed, unless it is known to hold no secret.
#[derive(Debug, Clone)]
pub struct DeadLetter<'a> {
    pub routing_key: &'a str,
    pub properties: &'a BasicProperties,
    /// Why, in a word.
    pub reason: &'static str,
    /// Why, in a sentence. Repeats nothing of the body.
    pub detail: &'a str,
    pub at: Timestamp,
}

impl DeadLetter<'_> {
    /// The properties to publish, in a frame of at most `frame_max` bytes: the broker closes the connection over a larger
    /// frame. If the original headers leave no room, they are dropped.
    pub(super) fn properties(&self, sealed: Option<&Sealed>, frame_max: u32) -> BasicProperties {
        let marked = |properties| match sealed {
            Some(sealed) => sealed.mark(properties),
            None => properties,
        };
        let headers = without_seal(self.properties.headers().clone().unwrap_or_default());
        let whole = marked(self.with_headers(headers, self.detail));
        if fits(&whole, frame_max) {
            return whole;
        }
        let detail = format!("{} (its own headers were too large to be kept beside this)", self.detail);
        marked(self.with_headers(FieldTable::default(), &detail))
    }

    /// The broker has it, with these properties and this body.
    pub(super) fn published(&self, properties: &BasicProperties, body: &[u8]) {
        let id = id_of(properties, body, Some(self.at));
        telemetry::dead_lettered(self.kind(), self.reason, &id, self.detail);
    }

    /// The body to publish, if it differs from the original.
    pub(super) fn sealed(&self, keys: &KeyRing, body: &[u8]) -> Option<Sealed> {
        Sealed::of(keys, self.kind(), self.routing_key, self.properties, body)
    }

    /// None: unknown.
    fn kind(&self) -> Option<MessageKind> {
        MessageKind::ALL.into_iter().find(|kind| kind.routing_key() == self.routing_key)
    }

    fn with_headers(&self, headers: FieldTable, detail: &str) -> BasicProperties {
        let mut headers = without(headers, |name| name == ORIGIN_HEADER || is_of_death(name));
        headers.insert(REASON_HEADER.into(), text(self.reason));
        headers.insert(DETAIL_HEADER.into(), text(&escape::line(detail)));
        headers.insert(TIME_HEADER.into(), text(&self.at.to_string()));
        carried_on_with_time(self.properties, headers)
    }
}

/// Where to move a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MovedTo {
    /// A queue that workers consume.
    Queue(Feed),
    /// The queue where it waits before it goes back to the queue of its kind.
    Again(MessageKind),
}

/// A message to move to another queue of ours.
#[derive(Debug, Clone)]
pub struct MovedMessage<'a> {
    pub to: MovedTo,
    pub properties: &'a BasicProperties,
    /// Headers that tell where it came from.
    pub origin: &'a str,
}

impl MovedMessage<'_> {
    /// As it came, with `expiration` and `timestamp`, in a frame of at most `frame_max` bytes. If the original headers leave
    /// no room, they are dropped. In the waiting queue `expiration` would end the wait early, so it is left out there.
    pub(super) fn properties(&self, frame_max: u32) -> BasicProperties {
        let headers = self.properties.headers().clone().unwrap_or_default();
        let whole = self.with_headers(headers);
        if fits(&whole, frame_max) {
            return whole;
        }
        self.with_headers(FieldTable::default())
    }

    fn with_headers(&self, headers: FieldTable) -> BasicProperties {
        // The broker's counts in the old queue mean nothing in the next one.
        let mut headers = without(headers, |name| name == "x-delivery-count" || is_of_death(name));
        headers.insert(ORIGIN_HEADER.into(), text(self.origin));
        let to = carried_on(self.properties, headers);
        let to = match self.to {
            MovedTo::Queue(_) => {
                copy(to, self.properties.expiration().as_ref(), BasicProperties::with_expiration)
            }
            MovedTo::Again(_) => to,
        };
        copy(to, self.properties.timestamp().as_ref(), BasicProperties::with_timestamp)
    }
}

/// Whether these properties fit into a frame of `frame_max` bytes.
pub(super) fn fits(properties: &BasicProperties, frame_max: u32) -> bool {
    header_frame_len(properties) <= u64::from(frame_max)
}

/// The size of the frame with these properties, in bytes.
fn header_frame_len(properties: &BasicProperties) -> u64 {
    // Type, channel, size and end of the frame; class, weight and body size of the header.
    const AROUND: u64 = 8 + 12;
    let written = gen_properties(properties)(Vec::new().into());
    // Properties that cannot be written do not fit.
    written.map_or(u64::MAX, |written| written.into_inner().1.saturating_add(AROUND))
}

/// The properties of a message that is published again: persistent, with these headers.
///
/// Copied one by one. `user_id` must stay behind, because the broker compares it with our own; a header holds it instead.
/// `expiration` must stay behind, because the message would expire before anybody looks.
pub(super) fn carried_on(from: &BasicProperties, headers: FieldTable) -> BasicProperties {
    carried_on_as(from, from.content_type().as_ref(), headers)
}

/// The same with this content type.
pub(super) fn carried_on_as(
    from: &BasicProperties,
    content_type: Option<&ShortString>,
    headers: FieldTable,
) -> BasicProperties {
    // These headers would make the broker route the message to further queues, with our permissions.
    let mut headers = without(headers, |name| matches!(name, "CC" | "BCC"));
    if let Some(publisher) = from.user_id() {
        headers.insert(PUBLISHER_HEADER.into(), text(&escape::line(publisher.as_str())));
    }
    let mut to = BasicProperties::default().with_headers(headers).with_delivery_mode(PERSISTENT);
    to = copy(to, content_type, BasicProperties::with_content_type);
    to = copy(to, from.content_encoding().as_ref(), BasicProperties::with_content_encoding);
    to = copy(to, from.correlation_id().as_ref(), BasicProperties::with_correlation_id);
    to = copy(to, from.reply_to().as_ref(), BasicProperties::with_reply_to);
    to = copy(to, from.message_id().as_ref(), BasicProperties::with_message_id);
    to = copy(to, from.kind().as_ref(), BasicProperties::with_type);
    copy(to, from.app_id().as_ref(), BasicProperties::with_app_id)
}

fn without(headers: FieldTable, stays_behind: impl Fn(&str) -> bool) -> FieldTable {
    if !headers.inner().keys().any(|name| stays_behind(name.as_str())) {
        return headers;
    }
    let mut kept = FieldTable::default();
    for (name, value) in headers.inner().iter().filter(|(name, _)| !stays_behind(name.as_str())) {
        kept.insert(name.clone(), value.clone());
    }
    kept
}

/// The same for a message that stays a dead letter: it keeps its `timestamp`.
pub(super) fn carried_on_with_time(from: &BasicProperties, headers: FieldTable) -> BasicProperties {
    copy(carried_on(from, headers), from.timestamp().as_ref(), BasicProperties::with_timestamp)
}

fn copy<T: Clone>(
    to: BasicProperties,
    value: Option<&T>,
    with: impl FnOnce(BasicProperties, T) -> BasicProperties,
) -> BasicProperties {
    match value {
        Some(value) => with(to, value.clone()),
        None => to,
    }
}

fn short(text: &str, what: &str) -> Result<ShortString, BrokerError> {
    ShortString::try_new(text).map_err(|_| BrokerError::TooLong { what: format!("the property {what}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_raw_in_the_headers_that_a_dead_letter_gets() {
        let nasty = "x\u{1b}[2J\r\n\u{9b}\u{202e}";
        let properties = BasicProperties::default().with_user_id(nasty.into());
        let letter = DeadLetter {
            routing_key: "token.request",
            properties: &properties,
            reason: "invalid_request",
            detail: nasty,
            at: Timestamp::from_millis(0),
        };
        let properties = letter.properties(None, u32::MAX);
        let headers = properties.headers().as_ref().expect("headers").inner();
        for name in [DETAIL_HEADER, PUBLISHER_HEADER] {
            assert_eq!(headers[name], text(r"x\u001b[2J\u000d\u000a\u009b\u202e"), "{name}");
        }
    }
}
