//! A dead letter. Any part of it may be missing, or be nonsense.

use std::borrow::Cow;
use std::fmt::{self, Write};

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::options::BasicAckOptions;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use sha2::{Digest, Sha256};

use super::replay::REPLAY_COUNT_HEADER;
use super::seal::{self, Sealed, Unopened};
use crate::broker::outgoing::{DETAIL_HEADER, PUBLISHER_HEADER, REASON_HEADER, TIME_HEADER};
use crate::broker::{Feed, Names};
use crate::contract::MessageKind;
use crate::domain::clock::Timestamp;
use crate::domain::escape::is_printable;
use crate::domain::secret::KeyRing;

/// The broker's header about dead messages: an array, the latest death first.
const DEATHS_HEADER: &str = "x-death";
/// In bytes. Its text has two hex digits for each.
const FINGERPRINT_LEN: usize = 8;

pub struct Letter {
    delivery: Delivery,
    destination: Option<Destination>,
    /// Whether the broker moved it here. Then our headers in it are a publisher's.
    is_brokers: bool,
    /// Whether it came straight from the exchange for requests, by a policy.
    is_unroutable: bool,
}

/// The reason of a message that no queue wanted, and that a policy (`alternate-exchange`) brought here.
pub(super) const UNROUTABLE: &str = "unroutable";

/// Where a letter came from, and goes on replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A kind of message, by the exchange for requests.
    Kind(MessageKind),
    /// Another queue of ours, by its name.
    Queue(String),
}

impl Letter {
    pub(super) fn new(delivery: Delivery, names: &Names) -> Self {
        // Whoever gives up a message publishes it to the exchange of dead letters. An alternate exchange leaves the name.
        let is_unroutable = delivery.exchange.as_str() == names.exchange();
        let is_brokers = !is_unroutable && is_brokers(&delivery, names);
        let destination = destination(&delivery, names, is_brokers);
        Self { delivery, destination, is_brokers, is_unroutable }
    }

    /// Whether it came straight from the exchange for requests.
    pub(super) fn is_unroutable(&self) -> bool {
        self.is_unroutable
    }

    /// Its `message_id`, if that can be typed, else a fingerprint. Two letters with the same `message_id` have the same name.
    pub fn id(&self) -> String {
        id_of(self.properties(), self.body(), self.died_at())
    }

    /// Why it is here, in a word: the broker's (`delivery_limit`, `expired`, …), or ours.
    pub fn reason(&self) -> String {
        if self.is_unroutable {
            return UNROUTABLE.to_owned();
        }
        let reason = match self.death() {
            Some(death) => text_in(death, "reason"),
            None => self.text(REASON_HEADER),
        };
        reason.unwrap_or_else(|| "unknown".to_owned())
    }

    /// Why it is here, in a sentence. None if the broker moved it.
    pub fn detail(&self) -> Option<String> {
        self.text(DETAIL_HEADER).filter(|_| !self.is_brokers && !self.is_unroutable)
    }

    pub fn died_at(&self) -> Option<Timestamp> {
        let Some(death) = self.death() else {
            return Timestamp::parse_rfc3339(&self.text(TIME_HEADER)?).ok();
        };
        match death.inner().get("time")? {
            AMQPValue::Timestamp(secs) => {
                i64::try_from(*secs).ok()?.checked_mul(1000).map(Timestamp::from_millis)
            }
            _ => None,
        }
    }

    /// None: nothing in the letter tells.
    pub fn destination(&self) -> Option<&Destination> {
        self.destination.as_ref()
    }

    /// None: unknown.
    pub fn kind(&self) -> Option<MessageKind> {
        match self.destination {
            Some(Destination::Kind(kind)) => Some(kind),
            Some(Destination::Queue(_)) | None => None,
        }
    }

    /// The AMQP user who published it. The broker checked that at the time.
    pub fn publisher(&self) -> Option<String> {
        let property = self.properties().user_id().as_ref().map(|user| user.as_str().to_owned());
        property.or_else(|| self.text(PUBLISHER_HEADER))
    }

    pub fn replay_count(&self) -> u64 {
        let count = self.headers().and_then(|headers| headers.inner().get(REPLAY_COUNT_HEADER));
        count.and_then(whole_number).unwrap_or(0)
    }

    /// As they are in the queue.
    pub fn properties(&self) -> &BasicProperties {
        &self.delivery.properties
    }

    pub(super) fn routing_key(&self) -> &str {
        self.delivery.routing_key.as_str()
    }

    /// As it is in the queue: sealed, or in clear. A clear body may hold a secret.
    pub fn body(&self) -> &[u8] {
        &self.delivery.data
    }

    /// The original body. May hold a token.
    ///
    /// # Errors
    /// [`Unopened`]: the seal cannot be opened.
    pub fn open(&self, keys: Option<&KeyRing>) -> Result<Cow<'_, [u8]>, Unopened> {
        seal::open(keys, self.routing_key(), self.properties(), self.body())
    }

    /// The key that opens it, by its headers. None: its body is in clear.
    pub fn key_id(&self) -> Option<String> {
        seal::key_id(self.properties())
    }

    /// Seals the letter if its body is in clear and may hold a secret. A publisher's forged seal does not count.
    pub(super) fn sealed(&self, keys: &KeyRing) -> Option<Sealed> {
        let in_clear = !seal::is_sealed(self.properties())
            || matches!(self.open(Some(keys)), Err(Unopened::Tampered(_)));
        let seal = || Sealed::of(keys, self.kind(), self.routing_key(), self.properties(), self.body());
        in_clear.then(seal).flatten()
    }

    /// Whether the broker was there to be told.
    pub(super) async fn ack(&self) -> lapin::Result<bool> {
        self.delivery.acker.ack(BasicAckOptions::default()).await
    }

    fn headers(&self) -> Option<&FieldTable> {
        self.properties().headers().as_ref()
    }

    /// The death that brought it here.
    fn death(&self) -> Option<&FieldTable> {
        self.is_brokers.then(|| last_death(self.headers()?)).flatten()
    }

    fn text(&self, header: &str) -> Option<String> {
        text_in(self.headers()?, header)
    }
}

/// As [`Letter::id`], of a letter with these properties and this body as they are in the queue.
pub(in crate::broker) fn id_of(
    properties: &BasicProperties,
    body: &[u8],
    died_at: Option<Timestamp>,
) -> String {
    match properties.message_id().as_ref().map(ShortString::as_str) {
        Some(id) if !id.is_empty() && is_printable(id) => id.to_owned(),
        _ => fingerprint(properties, body, died_at),
    }
}

/// Of everything that looking at the letter does not change: the broker counts deliveries in a header. Twins that died at
/// the same time have the same fingerprint.
fn fingerprint(properties: &BasicProperties, body: &[u8], died_at: Option<Timestamp>) -> String {
    let texts = [
        properties.content_type(),
        properties.correlation_id(),
        properties.reply_to(),
        properties.kind(),
        properties.app_id(),
    ];
    let mut digest = Sha256::new();
    let mut add = |part: &[u8]| {
        digest.update(part.len().to_le_bytes());
        digest.update(part);
    };
    add(body);
    for text in texts {
        add(text.as_ref().map_or("", ShortString::as_str).as_bytes());
    }
    add(&properties.timestamp().unwrap_or(0).to_le_bytes());
    add(&died_at.map_or(0, Timestamp::as_millis).to_le_bytes());
    digest.finalize().iter().take(FINGERPRINT_LEN).fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl fmt::Debug for Letter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Letter")
            .field("id", &self.id())
            .field("reason", &self.reason())
            .field("destination", &self.destination)
            .field("bytes", &self.body().len())
            .finish_non_exhaustive()
    }
}

/// Whether we or the broker write this header about a message's death or its seal.
pub fn is_ours(header: &str) -> bool {
    seal::is_of_seal(header)
        || matches!(header, REASON_HEADER | DETAIL_HEADER | TIME_HEADER)
        || is_of_death(header)
}

/// Whether the broker writes this header when it moves a message. A letter that a worker lays here has none of them, so that no
/// publisher can give it another reason.
pub(in crate::broker) fn is_of_death(header: &str) -> bool {
    header == DEATHS_HEADER || header.starts_with("x-first-death-") || header.starts_with("x-last-death-")
}

/// Whether the broker moved it here. A message that was put off has died too: in the queue where it waited.
fn is_brokers(delivery: &Delivery, names: &Names) -> bool {
    let death = delivery.properties.headers().as_ref().and_then(last_death);
    death.is_some_and(|death| text_in(death, "queue").is_none_or(|queue| queue != names.again()))
}

/// A publisher can write any header. So headers only choose among our own queues: an exchange that a message names could be
/// anybody's.
fn destination(delivery: &Delivery, names: &Names, is_brokers: bool) -> Option<Destination> {
    let kind_of = |name: &str| MessageKind::ALL.into_iter().find(|kind| kind.routing_key() == name);
    let headers = delivery.properties.headers().as_ref();
    let queue = headers.and_then(last_death).and_then(|death| text_in(death, "queue"));
    let of_queue = queue.and_then(|queue| {
        // A letter from a partition goes to the queue of its kind: the partition may be gone.
        match names.kind_in(&queue) {
            Some(kind) => Some(Destination::Kind(kind)),
            None if queue == names.dead_letters() => None,
            None => {
                let ours = queue.strip_prefix(names.exchange()).is_some_and(|rest| rest.starts_with('.'));
                ours.then_some(Destination::Queue(queue))
            }
        }
    });
    let by_key = || {
        let key = delivery.routing_key.as_str();
        let parked = names.queue(Feed::ParkedPairs);
        kind_of(key).map(Destination::Kind).or_else(|| (key == parked).then_some(Destination::Queue(parked)))
    };
    let by_type = || kind_of(delivery.properties.kind().as_ref()?.as_str()).map(Destination::Kind);
    // Our own dead letters have their kind as routing key.
    if is_brokers { of_queue.or_else(by_key) } else { by_key() }.or_else(by_type)
}

fn last_death(headers: &FieldTable) -> Option<&FieldTable> {
    match headers.inner().get(DEATHS_HEADER)? {
        AMQPValue::FieldArray(deaths) => match deaths.as_slice().first()? {
            AMQPValue::FieldTable(death) => Some(death),
            _ => None,
        },
        _ => None,
    }
}

pub(super) fn text_in(table: &FieldTable, name: &str) -> Option<String> {
    match table.inner().get(name)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        AMQPValue::ShortString(text) => Some(text.as_str().to_owned()),
        _ => None,
    }
}

fn whole_number(value: &AMQPValue) -> Option<u64> {
    match value {
        AMQPValue::LongLongInt(number) => u64::try_from(*number).ok(),
        AMQPValue::LongInt(number) => u64::try_from(*number).ok(),
        AMQPValue::LongUInt(number) => Some(u64::from(*number)),
        AMQPValue::ShortInt(number) => u64::try_from(*number).ok(),
        AMQPValue::ShortUInt(number) => Some(u64::from(*number)),
        AMQPValue::ShortShortInt(number) => u64::try_from(*number).ok(),
        AMQPValue::ShortShortUInt(number) => Some(u64::from(*number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
