//! The body of an answer: what it is and the fields that anybody reads, however it is wrapped.
//!
//! The body decides, and not its label: providers, and what stands before them, send pairs as `text/html`, JSON labelled
//! as a form and forms labelled as nothing. Of a JSON object only the fields that are needed have to be readable, and
//! only its own end has to be there, or both tokens: a body that breaks off or goes on behind them is an answer.

use std::borrow::Cow;

use serde_json::{Map, Value};
use url::form_urlencoded;
use zeroize::Zeroizing;

use super::Body;
use super::members::object;

/// The fields that are read: of a pair (RFC 6749, section 5.1, and the other names that `issued` knows), and of an error
/// (section 5.2, and what stands in its place).
const FIELDS: [&str; 14] = [
    "access_token",
    "refresh_token",
    "expires_in",
    "refresh_token_expires_in",
    "refresh_expires_in",
    "scope",
    "scopes",
    "error",
    "error_code",
    "error_description",
    "errors",
    "code",
    "message",
    "suberror",
];

/// What a body turned out to be.
pub(super) enum Content {
    /// A JSON object, or a form read as one: the [`FIELDS`] that are in it and can be read.
    Object(Value),
    /// Meant to be a JSON object.
    Garbled,
    /// Something else.
    Page,
    TooLong,
    CutOff,
}

pub(super) fn read_content(body: Body<'_>) -> Content {
    let (bytes, is_whole) = match body {
        Body::Whole(bytes) => (bytes, true),
        Body::CutOff(bytes) => (bytes, false),
        Body::TooLong => return Content::TooLong,
    };
    let text = Zeroizing::new(text(bytes).into_owned());
    let text = text.trim_start();
    if let Some(object) = object(text) {
        let has = |name: &str| object.members.iter().any(|member| member.name == name);
        // A length that counts characters for bytes cuts the end off, behind a pair of which nothing is missing.
        let is_enough = object.is_whole || has("access_token") && has("refresh_token");
        return match (is_enough, is_whole) {
            (true, _) => {
                let members = object.members.iter().map(|member| (member.name, member.value));
                Content::Object(fields(members, |value| serde_json::from_str(value).ok()))
            }
            (false, true) => Content::Garbled,
            (false, false) => Content::CutOff,
        };
    }
    // Without its end, a form may be without the end of a token.
    if !is_whole {
        return Content::CutOff;
    }
    if text.is_empty() || serde_json::from_str::<Value>(text).is_ok() {
        return Content::Garbled;
    }
    let form = read_form(text);
    if form.get("access_token").is_some() || form.get("error").is_some() {
        Content::Object(form)
    } else {
        Content::Page
    }
}

/// GitHub's default, where something on the way took the Accept header off.
fn read_form(text: &str) -> Value {
    fields(form_urlencoded::parse(text.trim_end().as_bytes()), |value| {
        Some(Value::String(value.into_owned()))
    })
}

/// Nothing but the [`FIELDS`] is read. Of two fields of one name the last one that can be read counts.
fn fields<N: AsRef<str> + Into<String>, V>(
    all: impl Iterator<Item = (N, V)>,
    read: impl Fn(V) -> Option<Value>,
) -> Value {
    all.filter(|(name, _)| FIELDS.contains(&name.as_ref()))
        .filter_map(|(name, value)| Some((name.into(), read(value)?)))
        .collect::<Map<_, _>>()
        .into()
}

/// UTF-16 where a byte order mark or the zeros say so, else UTF-8. What cannot be read in another field shows as U+FFFD, which
/// no token has.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    let utf_16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let (pairs, _) = bytes.as_chunks();
        let units = pairs.iter().map(|pair| unit(*pair));
        Cow::Owned(
            char::decode_utf16(units).map(|sign| sign.unwrap_or(char::REPLACEMENT_CHARACTER)).collect(),
        )
    };
    match bytes {
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8_lossy(rest),
        [0xff, 0xfe, rest @ ..] => utf_16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf_16(rest, u16::from_be_bytes),
        [1..=u8::MAX, 0, ..] => utf_16(bytes, u16::from_le_bytes),
        [0, 1..=u8::MAX, ..] => utf_16(bytes, u16::from_be_bytes),
        _ => String::from_utf8_lossy(bytes),
    }
}
