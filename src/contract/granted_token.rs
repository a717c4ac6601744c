//! The token of a reply, and its form in a clone URL.

use std::borrow::Cow;
use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, Serializer};

use crate::domain::clock::Timestamp;

/// A token that is handed out. Its JSON also has `userinfo`.
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
struct WrittenToken<'a> {
    /// The access token.
    value: &'a TokenValue,
    /// The user name that git sends beside it.
    username: &'a str,
    /// Both of them as they stand in a clone URL, in front of `@HOST`: `username:value`, percent-encoded.
    userinfo: Userinfo<'a>,
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
        let written = WrittenToken {
            value: &self.value,
            username: &self.username,
            userinfo: Userinfo { username: &self.username, value: &self.value },
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
    value: &'a TokenValue,
}

impl fmt::Display for Userinfo<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encoded = |text| utf8_percent_encode(text, RESERVED);
        write!(f, "{}:{}", encoded(self.username), encoded(self.value.0.expose_secret()))
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

/// An access token on its way to the requester. JSON shows it, `Debug` never does.
#[derive(Clone)]
pub struct TokenValue(pub SecretString);

impl Serialize for TokenValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.expose_secret())
    }
}

impl fmt::Debug for TokenValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

impl JsonSchema for TokenValue {
    fn schema_name() -> Cow<'static, str> {
        "TokenValue".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        String::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use url::Url;

    use super::*;

    fn granted(username: &str, value: &str) -> GrantedToken {
        let time = Timestamp::from_millis(0);
        GrantedToken {
            value: TokenValue(value.into()),
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
}
