//! Reads the body of an answer: what it is, and the fields that are needed.
//!
//! The content type is ignored: providers and proxies send pairs as `text/html`, JSON labelled as a form, and forms
//! without a label. Only the needed fields of a JSON object have to be readable. The object has to be complete, or to
//! hold both tokens; what follows does not matter.

use std::borrow::Cow;

use serde_json::{Map, Value};
use url::form_urlencoded;
use zeroize::Zeroizing;

use super::Body;
use super::members::object;

/// The fields of a pair (RFC 6749, section 5.1, and other names that `issued` knows) and of an error (section 5.2, and
/// what providers use instead), of a login (OpenID Connect Core, section 3.1.3.3), and of a code for a device (RFC 8628,
/// section 3.2).
const FIELDS: [&str; 21] = [
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
    "id_token",
    "device_code",
    "user_code",
    "verification_uri",
    "verification_url",
    "verification_uri_complete",
    "interval",
];

pub(in crate::oauth) enum Content {
    /// The readable [`FIELDS`] of a JSON object or a form.
    Object(Value),
    /// JSON, but not a readable object.
    Garbled,
    /// Something else.
    Page,
    TooLong,
    CutOff,
}

pub(in crate::oauth) fn read_content(body: Body<'_>) -> Content {
    let (bytes, is_whole) = match body {
        Body::Whole(bytes) => (bytes, true),
        Body::CutOff(bytes) => (bytes, false),
        Body::TooLong => return Content::TooLong,
    };
    let text = Zeroizing::new(text(bytes).into_owned());
    let text = text.trim_start();
    if let Some(object) = object(text) {
        let has = |name: &str| object.members.iter().any(|member| member.name == name);
        // A Content-Length that counts characters instead of bytes cuts off the end, maybe after a whole pair.
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
    // An incomplete form may have an incomplete token.
    if !is_whole {
        return Content::CutOff;
    }
    if text.is_empty() || serde_json::from_str::<Value>(text).is_ok() {
        return Content::Garbled;
    }
    let form = read_form(text);
    if ["access_token", "error", "device_code"].iter().any(|name| form.get(name).is_some()) {
        Content::Object(form)
    } else {
        Content::Page
    }
}

/// GitHub's default, if a proxy removed the Accept header.
fn read_form(text: &str) -> Value {
    fields(form_urlencoded::parse(text.trim_end().as_bytes()), |value| {
        Some(Value::String(value.into_owned()))
    })
}

/// Reads only the [`FIELDS`]. If a name is repeated, the last readable value counts.
fn fields<N: AsRef<str> + Into<String>, V>(
    all: impl Iterator<Item = (N, V)>,
    read: impl Fn(V) -> Option<Value>,
) -> Value {
    all.filter(|(name, _)| FIELDS.contains(&name.as_ref()))
        .filter_map(|(name, value)| Some((name.into(), read(value)?)))
        .collect::<Map<_, _>>()
        .into()
}

/// UTF-16 if a byte order mark or zero bytes say so, else UTF-8. Invalid bytes become U+FFFD, which no token contains.
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
