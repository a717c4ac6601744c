//! The token of a reply, in clear or sealed, and its form in a clone URL.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, Serializer};
use zeroize::Zeroizing;

use crate::domain::clock::Timestamp;
use crate::domain::sealed_box::PublicKey;

/// A token that is handed out. Its JSON also has `userinfo`; where the token is sealed, that lies in the box with it.
#[derive(Debug)]
pub struct GrantedToken {
    /// The access token.
    pub value: TokenValue,
    /// The user name that git sends beside it.
    pub username: String,
    /// The scopes it was granted.
    pub scopes: Vec<String>,
    /// When this pair was stored.
    pub updated_at: Timestamp,
    /// When it expires; null: never.
    pub expires_at: Option<Timestamp>,
    /// Until then it is not refreshed opportunistically.
    pub reserved_until: Timestamp,
}

/// The token in the reply's JSON. Built while it is written, so that no token is copied.
#[derive(Serialize, JsonSchema)]
#[schemars(description = "A token that is handed out, in clear or sealed.", extend("oneOf" = [
    {"title": "Clear", "description": "A token in clear.", "required": ["value", "userinfo"], "properties": {"sealed": false}},
    {"title": "Sealed", "description": "A token that only the requester can open.", "required": ["sealed"], "properties": {"value": false, "userinfo": false}},
]))]
struct WrittenToken<'a> {
    /// The access token.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    value: Option<Written<'a>>,
    /// In place of `value` and `userinfo`, where the request has a `reply_public_key`: a sealed box (libsodium's
    /// `crypto_box_seal`, in base64) over a JSON object, whose schema is `token.sealed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    sealed: Option<&'a str>,
    /// The user name that git sends beside it.
    username: &'a str,
    /// Both of them as they stand in a clone URL, in front of `@HOST`: `username:value`, percent-encoded.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    userinfo: Option<Userinfo<'a>>,
    /// The scopes it was granted.
    scopes: &'a [String],
    /// When this pair was stored.
    updated_at: Timestamp,
    /// When it expires; null: never.
    expires_at: Option<Timestamp>,
    /// Until then it is not refreshed opportunistically.
    reserved_until: Timestamp,
}

impl Serialize for GrantedToken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (value, sealed) = match &self.value {
            TokenValue::Clear(value) => (Some(value), None),
            TokenValue::Sealed(SealedToken(text)) => (None, Some(text.as_str())),
        };
        let written = WrittenToken {
            value: value.map(Written),
            sealed,
            username: &self.username,
            userinfo: value.map(|value| Userinfo { username: &self.username, value }),
            scopes: &self.scopes,
            updated_at: self.updated_at,
            expires_at: self.expires_at,
            reserved_until: self.reserved_until,
        };
        written.serialize(serializer)
    }
}

impl JsonSchema for GrantedToken {
    fn schema_name() -> Cow<'static, str> {
        "GrantedToken".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        WrittenToken::json_schema(generator)
    }
}

/// The characters that need no escape in a URL's user info: `unreserved` of RFC 3986, section 2.3. A token may hold any
/// other printable character: unescaped, `x@evil.example/` would make the URL of another host.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

struct Userinfo<'a> {
    username: &'a str,
    value: &'a SecretString,
}

impl fmt::Display for Userinfo<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encoded = |text| utf8_percent_encode(text, RESERVED);
        write!(f, "{}:{}", encoded(self.username), encoded(self.value.expose_secret()))
    }
}

impl Serialize for Userinfo<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for Userinfo<'_> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Userinfo".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        String::json_schema(generator)
    }
}

/// An access token on its way to the requester.
#[derive(Debug)]
pub enum TokenValue {
    /// The broker sees it.
    Clear(SecretString),
    /// Only the requester opens it.
    Sealed(SealedToken),
}

/// A sealed box in base64, over a [`SealedContent`].
#[derive(Debug)]
pub struct SealedToken(String);

/// What is sealed in a reply: the fields that are left out of `token`, and whose token it is. So a token of another user, which
/// somebody put into this reply, is noticed.
#[derive(Serialize, JsonSchema)]
pub struct SealedContent<'a> {
    /// The user of the reply.
    user_id: &'a str,
    /// The host of the reply.
    host: &'a str,
    /// The access token.
    #[schemars(with = "String")]
    value: Written<'a>,
    /// User name and token as they stand in a clone URL, in front of `@HOST`: `username:value`, percent-encoded.
    userinfo: Userinfo<'a>,
}

impl<'a> SealedContent<'a> {
    pub const fn new(user_id: &'a str, host: &'a str, username: &'a str, value: &'a SecretString) -> Self {
        Self { user_id, host, value: Written(value), userinfo: Userinfo { username, value } }
    }

    /// Seals it to the requester's key.
    #[allow(clippy::expect_used, clippy::missing_panics_doc, reason = "every field has a JSON form")]
    pub fn seal(&self, to: &PublicKey) -> SealedToken {
        // Room for all of it: a buffer that grows leaves copies behind.
        let texts = [self.user_id, self.host, self.userinfo.username, self.value.0.expose_secret()];
        let longest = texts.map(str::len).iter().sum::<usize>() * 6 + 64;
        let mut content = Zeroizing::new(Vec::with_capacity(longest));
        serde_json::to_writer(&mut *content, self).expect("it has a JSON form");
        SealedToken(BASE64.encode(to.seal(&content)))
    }
}

/// A secret that JSON shows.
struct Written<'a>(&'a SecretString);

impl Serialize for Written<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.expose_secret())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use url::Url;

    use super::*;
    use crate::domain::sealed_box::SecretKey;

    fn granted(username: &str, value: &str) -> GrantedToken {
        let time = Timestamp::from_millis(0);
        GrantedToken {
            value: TokenValue::Clear(value.into()),
            username: username.to_owned(),
            scopes: Vec::new(),
            updated_at: time,
            expires_at: None,
            reserved_until: time,
        }
    }

    #[test]
    fn no_user_name_and_no_token_moves_the_host_of_a_clone_url() {
        let every_sign: String = (' '..='~').collect();
        for (username, value) in [
            ("x-token-auth", "bb-at_0123.4~5"),
            ("x-token-auth", "x@evil.example/"),
            ("x@evil.example/", "t"),
            ("jdoe:x", "a:b"),
            ("x", "t\\@evil.example#?"),
            // Of an older row.
            ("J. Doe\r\n\u{202e}é", "a b"),
            (&every_sign, &every_sign),
        ] {
            let written: Value = serde_json::to_value(granted(username, value)).unwrap();
            let userinfo = written["userinfo"].as_str().unwrap();
            let url = Url::parse(&format!("https://{userinfo}@git.example.org/p/r")).unwrap();
            assert_eq!((url.host_str(), url.path()), (Some("git.example.org"), "/p/r"), "{userinfo}");
            // One name and one password: no colon but the one between them.
            let (before, behind) = userinfo.split_once(':').unwrap();
            let decoded =
                |part| percent_encoding::percent_decode_str(part).decode_utf8().unwrap().into_owned();
            assert_eq!((decoded(before), decoded(behind)), (username.to_owned(), value.to_owned()));
            let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte);
            assert!(before.bytes().chain(behind.bytes()).all(unreserved), "{userinfo}");
        }
    }

    #[test]
    fn a_token_is_written_and_not_shown() {
        let token = granted("x-token-auth", "s3cret/token");
        let written = serde_json::to_value(&token).unwrap();
        assert_eq!(
            (&written["value"], &written["userinfo"]),
            (&"s3cret/token".into(), &"x-token-auth:s3cret%2Ftoken".into())
        );
        assert!(!format!("{token:?}").contains("s3cret"));
    }

    #[test]
    fn a_sealed_token_stands_nowhere_but_in_its_box() {
        let (secret, other) = (SecretKey::generate(), SecretKey::generate());
        let value = SecretString::from("s3cret/token");
        let content = SealedContent::new("u-1", "git.example.org", "x-token-auth", &value);
        let token = GrantedToken {
            value: TokenValue::Sealed(content.seal(&secret.public_key())),
            ..granted("x-token-auth", "unused")
        };

        let written = serde_json::to_value(&token).unwrap();

        assert_eq!((&written["value"], &written["userinfo"]), (&Value::Null, &Value::Null));
        assert!(!written.to_string().contains("s3cret"), "{written}");
        let sealed = BASE64.decode(written["sealed"].as_str().unwrap()).unwrap();
        let opened: Value = serde_json::from_slice(&secret.open(&sealed).unwrap()).unwrap();
        let expected = json!({
            "user_id": "u-1", "host": "git.example.org", "value": "s3cret/token",
            "userinfo": "x-token-auth:s3cret%2Ftoken",
        });
        assert_eq!(opened, expected);
        assert!(other.open(&sealed).is_none());
    }
}
