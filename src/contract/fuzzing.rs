//! Fuzzing: what publishers send.

#![allow(clippy::missing_panics_doc, reason = "to panic is how a fuzzer reports")]

use std::borrow::Cow;

use lapin::protocol::basic::parse_properties;
use serde_json::Value;

use super::{
    CloneUrl, Envelope, MessageKind, RedactedBody, ReplyTo, Repository, Request, UnknownFields, decode,
    decode_noting, holds_no_secret,
};
use crate::domain::escape::is_printable;
use crate::domain::secret::ExposeSecret;
use crate::domain::secret::fuzzing::{MARK, assert_untold};
use crate::domain::text::Host;

/// The input is a kind of message and a body.
pub fn messages(input: &[u8]) {
    let Some((kind, body)) = input.split_first() else { return };
    let kind = MessageKind::ALL[usize::from(*kind) % MessageKind::ALL.len()];
    let mut unknown = UnknownFields::default();
    match decode_noting(kind, body, &mut unknown) {
        Err(refused) => {
            assert_untold(&refused.reason, MARK);
            assert!(is_printable(&refused.reason), "{:?}", refused.reason);
            assert!(refused.reason.len() < 1024, "{}", refused.reason);
        }
        Ok(request) => a_request(kind, body, &request),
    }
    let shown = match RedactedBody::of(body) {
        RedactedBody::Object(shown) => shown.to_string(),
        RedactedBody::Other(told) => told,
    };
    let Ok(fields @ Value::Object(_)) = serde_json::from_slice::<Value>(body) else {
        assert_untold(&shown, MARK);
        return;
    };
    let token = fields["token"]["value"].as_str();
    if let Some(token) = token.filter(|token| token.contains(MARK) && !is_a_key(&fields, token)) {
        assert_untold(&shown, token);
        assert!(!holds_no_secret(Some(kind), body), "it holds a token");
    }
}

fn a_request(kind: MessageKind, body: &[u8], request: &Request) {
    // The same message as another program would write it. Some ignored values are no JSON that others read: 1e999.
    if let Ok(value) = serde_json::from_slice::<Value>(body) {
        let again = decode(kind, value.to_string().as_bytes()).map(|request| format!("{request:?}"));
        assert_eq!(again, Ok(format!("{request:?}")));
    }
    assert!(Host::try_from(request.host().unwrap_or("no.host")).is_ok());
    if let Request::Store(store) = request {
        let token = store.token.value.expose_secret();
        assert!(!token.contains(MARK) || !format!("{:?}", store.token.value).contains(token));
    }
}

/// Whether a text is part of the name of a field, at any depth: names are shown.
fn is_a_key(value: &Value, text: &str) -> bool {
    match value {
        Value::Object(fields) => {
            fields.iter().any(|(name, value)| name.contains(text) || is_a_key(value, text))
        }
        Value::Array(items) => items.iter().any(|item| is_a_key(item, text)),
        _ => false,
    }
}

/// Bytes: a property has 255 of them at most, and those that are not UTF-8 are shown as three each.
const MAX_TEXT: usize = 3 * 255;

/// The input is what a broker sends: properties in AMQP's format.
pub fn properties(input: &[u8]) {
    let Ok((_, properties)) = parse_properties(input) else { return };
    let envelope = Envelope::read(&properties, "fuzz");
    match &envelope.reply_to {
        Some(ReplyTo::Queue(_)) => {
            let name = envelope.reply_to.as_ref().map_or("", ReplyTo::as_str);
            assert!(!name.starts_with("amq.") && !name.starts_with("fuzz.") && name != "fuzz", "{name}");
        }
        Some(direct @ ReplyTo::Direct(_)) => assert!(direct.as_str().starts_with("amq.rabbitmq.reply-to.")),
        None => {}
    }
    assert!(envelope.reply_to.is_none() || envelope.unanswerable.is_none(), "{envelope:?}");
    let texts = [
        envelope.reply_to.as_ref().map(ReplyTo::as_str),
        envelope.request_id(),
        envelope.traceparent.as_deref(),
        envelope.publisher.as_deref().filter(|_| envelope.unusable.is_none()),
    ];
    for text in texts.into_iter().flatten() {
        assert!(text.len() <= MAX_TEXT && is_printable(text), "{text:?}");
    }
    if let Some(unanswerable) = envelope.unanswerable {
        assert_untold(&unanswerable.to_string(), MARK);
    }
}

/// The input is a clone URL.
pub fn clone_urls(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let Ok(url) = CloneUrl::try_from(Cow::Borrowed(text)) else {
        assert_eq!(Repository::from(Cow::Borrowed(text)), Repository::Unreadable);
        return;
    };
    let host = url.host().as_str();
    assert!(!host.contains(|sign: char| "@/?#\\%<>^| ".contains(sign) || sign.is_whitespace()), "{host}");
    assert!(host.is_ascii() && !host.contains(|sign: char| sign.is_ascii_uppercase()), "{host}");
    // Nobody gets into the host by what stands before it.
    let authority = text.split_once("://").map_or(text, |(_, rest)| rest);
    let authority = authority.split(['/', '\\', '?', '#']).next().unwrap_or_default();
    if let Some((user, rest)) = authority.rsplit_once('@')
        && user.contains(MARK)
        && !rest.contains(MARK)
        && rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:".contains(&byte))
        && text.contains("://")
    {
        assert_untold(host, MARK);
    }
    // A host that was read is read again from a URL that is made of it.
    let again = CloneUrl::try_from(Cow::Owned(format!("https://{host}/owner/repo")));
    assert_eq!(again.as_ref().map(|url| url.host().as_str()), Ok(host));
}
