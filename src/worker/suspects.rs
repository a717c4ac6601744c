//! SUSPECTS: messages that may crash a worker or its connection, kept away from the others.
//!
//! When a connection or a worker ends, the broker redelivers everything that was in hand, and counts each redelivery. A message that
//! ends its connection every time would push all others over the delivery limit. So a message that was in hand at two such ends
//! moves to a queue that is consumed a few at a time, over a connection of its own. If that connection ends too, its messages
//! move to a third queue, which is consumed one at a time. Innocent messages are answered there. A message that crashes its
//! worker even alone becomes a dead letter once it reaches the delivery limit.

mod front;
mod moving;

pub(super) use self::moving::Lifeline;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::broker::{Feed, ORIGIN_HEADER};
use crate::contract::MessageKind;
use crate::domain::secret::{Binding, ExposeSecret, KeyRing};
use crate::limits::bulkhead::{Queue, SUSPECTS_IN_HAND};
use crate::telemetry::{Link, SuspectMoved};

/// A message is a suspect once it was in hand when this many connections or workers ended.
const ENDS_OF_A_SUSPECT: u64 = 2;

/// The deliveries of a message before it is isolated: two among all messages, one among suspects.
const DELIVERIES_BEFORE_ISOLATION: u64 = ENDS_OF_A_SUSPECT + 1;

/// Which messages a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tier {
    /// Messages on their first or second delivery.
    Ordinary,
    /// Suspects, a few at a time.
    Suspects,
    Isolated,
}

/// What to do about a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Work,
    MoveTo(Feed),
    /// It was in hand alone when too many connections or workers ended.
    GiveUp,
}

impl Tier {
    pub(super) const ALL: [Self; 3] = [Self::Ordinary, Self::Suspects, Self::Isolated];

    /// What a worker consumes in this tier, beside partitions.
    pub(super) fn feeds(self) -> &'static [Feed] {
        match self {
            Self::Ordinary => &[
                Feed::ParkedPairs,
                Feed::Messages(MessageKind::TokenRequest),
                Feed::Messages(MessageKind::WorkspaceStart),
                Feed::Messages(MessageKind::TokenStore),
                Feed::Messages(MessageKind::TokenReport),
            ],
            Self::Suspects => &[Feed::Suspects],
            Self::Isolated => &[Feed::Isolated],
        }
    }

    /// How many suspects of this tier may be in hand at once.
    pub(super) const fn prefetch(self) -> u16 {
        match self {
            Self::Ordinary | Self::Suspects => SUSPECTS_IN_HAND,
            Self::Isolated => 1,
        }
    }

    /// The feed whose prefetch a message of this kind counts against.
    pub(super) const fn queue(self, kind: MessageKind) -> Queue {
        match self {
            Self::Ordinary => Queue::Messages(kind),
            Self::Suspects => Queue::Suspects,
            Self::Isolated => Queue::Isolated,
        }
    }

    /// The connection, in logs and metrics.
    pub(super) const fn link(self) -> Link {
        match self {
            Self::Ordinary => Link::Consume,
            Self::Suspects => Link::Suspects,
            Self::Isolated => Link::Isolated,
        }
    }

    /// What to do about a message of this tier that was in hand at so many ends.
    pub(super) const fn next(self, ends: u64, delivery_limit: u32) -> Next {
        match self {
            Self::Ordinary if ends >= ENDS_OF_A_SUSPECT => Next::MoveTo(Feed::Suspects),
            Self::Suspects if ends > 0 => Next::MoveTo(Feed::Isolated),
            Self::Isolated if ends + DELIVERIES_BEFORE_ISOLATION > delivery_limit as u64 => Next::GiveUp,
            Self::Ordinary | Self::Suspects | Self::Isolated => Next::Work,
        }
    }
}

/// The label in metrics of a suspect that is moved there.
pub(super) const fn moved_to(feed: Feed) -> SuspectMoved {
    match feed {
        Feed::Isolated => SuspectMoved::Isolated,
        Feed::Suspects | Feed::Messages(_) | Feed::Partition(..) | Feed::ParkedPairs => {
            SuspectMoved::Suspects
        }
    }
}

/// How many connections or workers ended while this message of the queue was in hand. The header counts only if the broker marks the
/// message as redelivered: a publisher can write the header, but not that mark.
pub(super) fn ends(delivery: &Delivery) -> u64 {
    let count = |headers: &FieldTable| match headers.inner().get("x-delivery-count")? {
        AMQPValue::LongLongInt(count) => u64::try_from(*count).ok(),
        AMQPValue::LongInt(count) => u64::try_from(*count).ok(),
        AMQPValue::LongUInt(count) => Some(u64::from(*count)),
        AMQPValue::ShortInt(count) => u64::try_from(*count).ok(),
        AMQPValue::ShortShortInt(count) => u64::try_from(*count).ok(),
        AMQPValue::ShortShortUInt(count) => Some(u64::from(*count)),
        AMQPValue::ShortUInt(count) => Some(u64::from(*count)),
        _ => None,
    };
    let counted = delivery.properties.headers().as_ref().and_then(count);
    if delivery.redelivered { counted.unwrap_or(0) } else { 0 }
}

/// What a message was before it was moved. Sealed, so that no publisher can forge its `user_id` or its count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    pub(super) kind: MessageKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) publisher: Option<String>,
    /// When its `expiration` ends, in ms since the epoch; the broker removes that property while the message waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) deadline_ms: Option<i64>,
    /// How often it has been put off.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) put_off: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// What an origin is bound to: its own message.
fn bound_to(body: &[u8]) -> Binding {
    let digest = BASE64.encode(Sha256::digest(body));
    Binding::new("message", "origin").text(&digest).also_in_format_1(format!("suspect/{digest}"))
}

impl Origin {
    /// The origin of a message from the queue of its kind, which may have been put off before.
    pub(super) fn of(kind: MessageKind, keys: &KeyRing, delivery: &Delivery) -> Self {
        Self::of_put_off(kind, keys, delivery).unwrap_or_else(|| {
            let publisher = delivery.properties.user_id().as_ref().map(|user| user.as_str().to_owned());
            Self { kind, publisher, deadline_ms: None, put_off: 0 }
        })
    }

    /// The origin of a message that was put off and is back in the queue of its kind. None: it was not put off.
    pub(super) fn of_put_off(kind: MessageKind, keys: &KeyRing, delivery: &Delivery) -> Option<Self> {
        Self::open(keys, delivery).filter(|origin| origin.kind == kind)
    }

    /// The value of the header. None only if it had no JSON form, and every origin has one.
    pub(super) fn seal(&self, keys: &KeyRing, body: &[u8]) -> Option<String> {
        let text = serde_json::to_string(self).ok()?;
        let sealed = keys.seal(&text.into(), bound_to(body));
        Some(format!("{}:{}", sealed.key_id, BASE64.encode(&sealed.bytes)))
    }

    /// The origin of a message that was moved. None: no worker with one of these keys wrote one.
    pub(super) fn open(keys: &KeyRing, delivery: &Delivery) -> Option<Self> {
        let header = match delivery.properties.headers().as_ref()?.inner().get(ORIGIN_HEADER)? {
            AMQPValue::LongString(text) => str::from_utf8(text.as_bytes()).ok()?,
            _ => return None,
        };
        let (key_id, sealed) = header.split_once(':')?;
        let opened = keys.open(key_id, &BASE64.decode(sealed).ok()?, bound_to(&delivery.data)).ok()?;
        serde_json::from_str(opened.expose_secret()).ok()
    }
}

#[cfg(test)]
mod tests {
    use lapin::BasicProperties;

    use super::*;

    #[test]
    fn a_message_is_delivered_as_often_as_its_limit_allows_whatever_tier_it_is_in() {
        for limit in 2..20 {
            let (mut tier, mut ends, mut worked_on) = (Tier::Ordinary, 0, 0);
            loop {
                match tier.next(ends, limit) {
                    Next::Work => (worked_on, ends) = (worked_on + 1, ends + 1),
                    Next::MoveTo(Feed::Suspects) => (tier, ends) = (Tier::Suspects, 0),
                    Next::MoveTo(Feed::Isolated) => (tier, ends) = (Tier::Isolated, 0),
                    Next::MoveTo(_) => panic!("there is no other tier"),
                    Next::GiveUp => break,
                }
            }
            // The limit counts the deliveries after the first one.
            assert_eq!(worked_on, limit + 1);
        }
    }

    #[test]
    fn a_message_that_was_in_hand_beside_it_is_never_given_up() {
        // It was in hand at any number of ends before it is alone, and at none from then on.
        assert_eq!(Tier::Ordinary.next(40, 5), Next::MoveTo(Feed::Suspects));
        assert_eq!(Tier::Suspects.next(40, 5), Next::MoveTo(Feed::Isolated));
        assert_eq!(Tier::Isolated.next(0, 5), Next::Work);
    }

    fn delivery(redelivered: bool, headers: FieldTable, body: &[u8]) -> Delivery {
        let mut delivery = Delivery::mock(1, "".into(), "".into(), redelivered, body.to_vec());
        delivery.properties = BasicProperties::default().with_headers(headers);
        delivery
    }

    #[test]
    fn a_publisher_cannot_make_a_message_a_suspect() {
        let mut headers = FieldTable::default();
        headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(7));
        assert_eq!(ends(&delivery(false, headers.clone(), b"{}")), 0);
        assert_eq!(ends(&delivery(true, headers, b"{}")), 7);
        assert_eq!(ends(&delivery(true, FieldTable::default(), b"{}")), 0);
    }

    #[test]
    fn an_origin_is_believed_only_of_the_message_that_it_was_written_for() {
        let keys = KeyRing::parse(KeyRing::generate("k").expose_secret()).unwrap();
        let publisher = Some("login".to_owned());
        let origin = Origin { kind: MessageKind::TokenStore, publisher, deadline_ms: Some(1), put_off: 2 };
        let header = origin.seal(&keys, b"{}").unwrap();
        assert!(!header.contains("login"));
        let with = |header: &str, body: &[u8]| {
            let mut headers = FieldTable::default();
            headers.insert(ORIGIN_HEADER.into(), AMQPValue::LongString(header.into()));
            Origin::open(&keys, &delivery(false, headers, body))
        };
        assert_eq!(with(&header, b"{}"), Some(origin));
        assert_eq!(with(&header, b"{ }"), None);
        for forged in ["", ":", "k:", "k:AAAA", "other:AAAA", "{\"kind\":\"token.store\"}"] {
            assert_eq!(with(forged, b"{}"), None, "{forged}");
        }
    }
}
