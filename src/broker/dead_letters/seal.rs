//! Dead letters that may hold a secret are sealed with the key ring before they are published (invariant 6). So the queue, its
//! backup and the broker's disk show no token.
//!
//! A body keeps its length, because it may have the broker's maximum already. A header holds the seal, which opens the body
//! together with the key. It opens only as the body of its own message.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use lapin::BasicProperties;
use lapin::types::{FieldTable, ShortString};

use super::letter::text_in;
use crate::broker::topology::text;
use crate::contract::{MessageKind, holds_no_secret};
use crate::domain::secret::{Binding, BodySeal, KeyRing, OpenError, is_key_id};

/// Header of a sealed letter: the id of the key, a colon, and the seal in base64.
const SEALED_HEADER: &str = "x-tokenkeeper-sealed";
/// Header: the original content type, if there was one.
const CONTENT_TYPE_HEADER: &str = "x-tokenkeeper-content-type";
/// Content type of a sealed letter.
const SEALED_CONTENT_TYPE: &str = "application/vnd.tokenkeeper.sealed";

/// Why a sealed letter cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Unopened {
    #[error(
        "its body is sealed with key `{0}`, and there are no encryption keys here: set `encryption.keys` (TOKENKEEPER_KEYS)"
    )]
    NoKeys(String),
    /// The key ring lacks this key.
    #[error("its body is sealed with key `{0}`, which is not among the configured encryption keys")]
    UnknownKey(String),
    /// The bytes are not what was sealed.
    #[error(
        "its body does not open with key `{0}`: another key has the same id, or the letter or its headers were changed"
    )]
    Tampered(String),
}

pub(in crate::broker) struct Sealed {
    /// Published in place of the body.
    pub(in crate::broker) body: Vec<u8>,
    note: String,
}

impl Sealed {
    /// Seals the body of a message, unless it is known that it holds no secret.
    pub(in crate::broker) fn of(
        keys: &KeyRing,
        kind: Option<MessageKind>,
        routing_key: &str,
        properties: &BasicProperties,
        body: &[u8],
    ) -> Option<Self> {
        (!holds_no_secret(kind, body)).then(|| {
            let mut body = body.to_vec();
            let (key_id, seal) = keys.seal_body(&mut body, bound_to(routing_key, properties));
            Self { body, note: format!("{key_id}:{}", BASE64.encode(seal)) }
        })
    }

    /// The properties of the sealed message.
    pub(in crate::broker) fn mark(&self, properties: BasicProperties) -> BasicProperties {
        let mut headers = properties.headers().clone().unwrap_or_default();
        headers.insert(SEALED_HEADER.into(), text(&self.note));
        if let Some(content_type) = properties.content_type() {
            headers.insert(CONTENT_TYPE_HEADER.into(), text(content_type.as_str()));
        }
        properties.with_headers(headers).with_content_type(SEALED_CONTENT_TYPE.into())
    }
}

/// Whether this header is about a seal. A publisher's own does not count.
pub(in crate::broker) fn is_of_seal(header: &str) -> bool {
    matches!(header, SEALED_HEADER | CONTENT_TYPE_HEADER)
}

pub(super) fn content_type_before(properties: &BasicProperties) -> Option<ShortString> {
    if note_of(properties).is_none() {
        return properties.content_type().clone();
    }
    ShortString::try_new(text_in(properties.headers().as_ref()?, CONTENT_TYPE_HEADER)?).ok()
}

/// Whether this message is sealed, by its headers.
pub(super) fn is_sealed(properties: &BasicProperties) -> bool {
    note_of(properties).is_some()
}

/// The key that it is sealed with, by its headers. None: it is in clear.
pub(super) fn key_id(properties: &BasicProperties) -> Option<String> {
    note_of(properties).map(|(key_id, _)| key_id)
}

/// The original body of a dead letter, sealed or not.
///
/// # Errors
/// [`Unopened`], with the name of a missing key.
pub fn open<'a>(
    keys: Option<&KeyRing>,
    routing_key: &str,
    properties: &BasicProperties,
    body: &'a [u8],
) -> Result<Cow<'a, [u8]>, Unopened> {
    let Some((key_id, seal)) = note_of(properties) else { return Ok(Cow::Borrowed(body)) };
    let Some(keys) = keys else { return Err(Unopened::NoKeys(key_id)) };
    let mut opened = body.to_vec();
    match keys.open_body(&key_id, &seal, &mut opened, bound_to(routing_key, properties)) {
        Ok(()) => Ok(Cow::Owned(opened)),
        Err(OpenError::UnknownKey(key_id)) => Err(Unopened::UnknownKey(key_id)),
        Err(OpenError::Tampered(key_id) | OpenError::Format1(key_id)) => Err(Unopened::Tampered(key_id)),
    }
}

/// The header's parts, if we could have written it.
fn note_of(properties: &BasicProperties) -> Option<(String, BodySeal)> {
    let note = text_in(properties.headers().as_ref()?, SEALED_HEADER)?;
    let (key_id, seal) = note.split_once(':').filter(|(key_id, _)| is_key_id(key_id))?;
    Some((key_id.to_owned(), BASE64.decode(seal).ok()?.try_into().ok()?))
}

/// Identifies a message: no two messages have the same.
fn bound_to(routing_key: &str, properties: &BasicProperties) -> Binding {
    let of = |property: &Option<ShortString>| property.as_ref().map_or("", ShortString::as_str).to_owned();
    let parts = [
        "dead_letter".to_owned(),
        routing_key.to_owned(),
        of(properties.message_id()),
        of(properties.correlation_id()),
        of(properties.kind()),
    ];
    let format_1 = parts.iter().flat_map(|part| [&part.len().to_be_bytes()[..], part.as_bytes()].concat());
    let binding = Binding::new("dead_letter", "body").also_in_format_1(format_1.collect::<Vec<u8>>());
    parts[1..].iter().fold(binding, |binding, part| binding.text(part))
}

/// Removes seal headers. Before we have written any, they are a publisher's own.
pub(in crate::broker) fn without_seal(headers: FieldTable) -> FieldTable {
    if !headers.inner().keys().any(|name| is_of_seal(name.as_str())) {
        return headers;
    }
    let mut kept = FieldTable::default();
    for (name, value) in headers.inner().iter().filter(|(name, _)| !is_of_seal(name.as_str())) {
        kept.insert(name.clone(), value.clone());
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::secret::ExposeSecret;

    fn ring(id: &str) -> KeyRing {
        KeyRing::parse(KeyRing::generate(id).expose_secret()).unwrap()
    }

    fn came_with() -> BasicProperties {
        BasicProperties::default()
            .with_message_id("m-1".into())
            .with_correlation_id("c-1".into())
            .with_content_type("application/json".into())
    }

    const BODY: &[u8] = br#"{"token":{"value":"s3cret"}}"#;

    #[test]
    fn a_sealed_body_opens_as_the_body_of_its_own_message_alone() {
        let keys = ring("k1");
        let sealed = Sealed::of(&keys, None, "token.request", &came_with(), BODY).expect("it has a token");
        let properties = sealed.mark(came_with());
        assert_eq!(sealed.body.len(), BODY.len(), "as long as it was");
        assert!(!sealed.body.windows(6).any(|word| word == b"s3cret"));
        assert_eq!(properties.content_type().as_ref().unwrap().as_str(), SEALED_CONTENT_TYPE);
        assert_eq!(content_type_before(&properties), Some("application/json".into()));
        let opened = |key: &str, properties: &BasicProperties, body: &[u8]| {
            open(Some(&keys), key, properties, body).map(Cow::into_owned)
        };
        assert_eq!(opened("token.request", &properties, &sealed.body).as_deref(), Ok(BODY));
        let tampered = Err(Unopened::Tampered("k1".into()));
        assert_eq!(opened("token.store", &properties, &sealed.body), tampered);
        assert_eq!(
            opened("token.request", &properties.clone().with_message_id("m-2".into()), &sealed.body),
            tampered
        );
        assert_eq!(
            opened("token.request", &properties.clone().with_correlation_id("c".into()), &sealed.body),
            tampered
        );
        assert_eq!(
            opened("token.request", &properties.clone().with_type("t".into()), &sealed.body),
            tampered
        );
        for position in 0..sealed.body.len() {
            let mut changed = sealed.body.clone();
            changed[position] ^= 1;
            assert_eq!(opened("token.request", &properties, &changed), tampered, "byte {position}");
        }
        assert_eq!(opened("token.request", &properties, &sealed.body[1..]), tampered);
        assert_eq!(open(None, "token.request", &properties, BODY), Err(Unopened::NoKeys("k1".into())));
        assert_eq!(
            open(Some(&ring("k2")), "token.request", &properties, BODY),
            Err(Unopened::UnknownKey("k1".into()))
        );
    }

    #[test]
    fn a_body_of_nothing_is_sealed_and_opened_too() {
        let keys = ring("k1");
        let sealed =
            Sealed::of(&keys, Some(MessageKind::TokenStore), "token.store", &came_with(), b"").unwrap();
        let properties = sealed.mark(BasicProperties::default().with_message_id("m-1".into()));
        let elsewhere = open(Some(&keys), "token.store", &properties, &sealed.body);
        assert_eq!(elsewhere, Err(Unopened::Tampered("k1".into())));
        let properties = sealed.mark(came_with());
        assert_eq!(open(Some(&keys), "token.store", &properties, &sealed.body).as_deref(), Ok(&b""[..]));
    }

    #[test]
    fn a_header_that_we_could_not_have_written_says_nothing() {
        for note in [
            "",
            "k1",
            "k1:",
            "k 1:AAAA",
            "k1:AAAA",
            &format!("{}:{}", "k".repeat(65), BASE64.encode([0; 41])),
        ] {
            let mut headers = FieldTable::default();
            headers.insert(SEALED_HEADER.into(), text(note));
            headers.insert("kept".into(), text("x"));
            let properties = came_with().with_headers(headers.clone());
            assert!(!is_sealed(&properties), "{note}");
            assert_eq!(open(None, "token.store", &properties, BODY).as_deref(), Ok(BODY));
            let kept = without_seal(headers);
            assert!(kept.contains_key("kept") && !kept.contains_key(SEALED_HEADER));
        }
    }
}
