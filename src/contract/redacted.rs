//! A body as an operator may see it: without secrets (invariant 6).

use serde_json::{Map, Value, json};
use url::Url;

use super::clone_url::CloneUrl;
use super::decode::MAX_BODY_BYTES;
use super::unknown_field::is_a_name;
use crate::domain::clock::Timestamp;
use crate::domain::escape::is_printable;
use crate::domain::text::{Host, ShortText, UserId, Username, WorkspaceId};

/// A body without any value that is a secret, or could be one.
#[derive(Debug, Clone, PartialEq)]
pub enum RedactedBody {
    /// A JSON object. Fields of the contract keep their valid values, other values become placeholders.
    Object(Value),
    /// Anything else, described but not shown.
    Other(String),
}

impl RedactedBody {
    /// Removes what must not be shown.
    pub fn of(body: &[u8]) -> Self {
        if body.len() > MAX_BODY_BYTES {
            return Self::Other(format!("larger than a message may be ({MAX_BODY_BYTES} bytes)"));
        }
        let text = match std::str::from_utf8(body) {
            Ok("") => return Self::Other("empty".to_owned()),
            Ok(text) => text,
            Err(_) if body.starts_with(b"\x1f\x8b") => return Self::Other("gzip, not JSON".to_owned()),
            Err(error) => {
                return Self::Other(format!("not UTF-8 (at byte {})", error.valid_up_to()));
            }
        };
        match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => {
                let secrets = secrets(&fields);
                Self::Object(Value::Object(object(&fields, &|name, value| field(name, value, &secrets))))
            }
            Ok(other) => Self::Other(format!("JSON, but no object: {}", described(&other))),
            Err(error) => Self::Other(format!("not JSON (line {}, column {})", error.line(), error.column())),
        }
    }
}

/// The fields that hold tokens.
fn secrets(fields: &Map<String, Value>) -> Vec<String> {
    let token = fields.get("token").and_then(Value::as_object);
    let of_pair = ["value", "refresh_token"].into_iter().filter_map(|name| token?.get(name)?.as_str());
    of_pair.filter(|secret| !secret.is_empty()).map(str::to_owned).collect()
}

fn object(fields: &Map<String, Value>, show: &dyn Fn(&str, &Value) -> Value) -> Map<String, Value> {
    let mut shown = Map::new();
    let mut nameless = 0;
    for (name, value) in fields {
        if is_a_name(name) {
            shown.insert(name.clone(), show(name, value));
        } else {
            nameless += 1;
        }
    }
    if nameless > 0 {
        shown.insert("…".to_owned(), json!(format!("[not shown: {nameless} more]")));
    }
    shown
}

fn field(name: &str, value: &Value, secrets: &[String]) -> Value {
    let text = |is_right: fn(&str) -> bool| match value {
        Value::String(text) if is_right(text) && is_harmless(text, secrets) => value.clone(),
        other => hidden(other),
    };
    match (name, value) {
        (_, Value::Null) => Value::Null,
        ("user_id", _) => text(|text| UserId::try_from(text).is_ok()),
        ("host", _) => text(|text| Host::try_from(text).is_ok()),
        ("workspace_id", _) => text(|text| WorkspaceId::try_from(text).is_ok()),
        ("auth_id" | "auth_name", _) => text(|text| ShortText::try_from(text).is_ok()),
        ("username", _) => text(|text| Username::try_from(text).is_ok()),
        ("expires_at" | "refresh_token_expires_at", _) => text(|text| Timestamp::parse_rfc3339(text).is_ok()),
        ("requested_lifetime_secs", Value::Number(_) | Value::Bool(_)) => value.clone(),
        ("repositories", Value::Array(urls)) => urls.iter().map(|url| repository(url, secrets)).collect(),
        ("scopes", Value::Array(scopes)) => scopes.iter().map(|scope| self::scope(scope, secrets)).collect(),
        ("token", Value::Object(fields)) => {
            // Only the pair's own fields: a user has no place in it.
            let of_pair = |name: &str, value: &Value| match name {
                "username" | "scopes" | "expires_at" | "refresh_token_expires_at" => {
                    field(name, value, secrets)
                }
                _ => hidden(value),
            };
            Value::Object(object(fields, &of_pair))
        }
        _ => hidden(value),
    }
}

/// Scopes are short words (RFC 6749). A longer text is not a scope.
fn scope(scope: &Value, secrets: &[String]) -> Value {
    match scope {
        Value::String(text)
            if text.len() <= 64
                && text.bytes().all(|byte| byte.is_ascii_graphic())
                && is_harmless(text, secrets) =>
        {
            scope.clone()
        }
        other => hidden(other),
    }
}

/// A clone URL without its user info, which may hold a password, and without query and fragment.
fn repository(url: &Value, secrets: &[String]) -> Value {
    let without_user = |text: &str| -> Option<String> {
        CloneUrl::try_from(std::borrow::Cow::Borrowed(text)).ok()?;
        if !text.contains("://") {
            return Some(text.rsplit('@').next()?.to_owned());
        }
        let mut url = Url::parse(text).ok()?;
        url.set_username("").ok()?;
        url.set_password(None).ok()?;
        url.set_query(None);
        url.set_fragment(None);
        Some(url.into())
    };
    let shown = url.as_str().and_then(without_user);
    let shown = shown.filter(|text| is_harmless(text, secrets) && is_printable(text));
    shown.map_or_else(|| hidden(url), Value::String)
}

fn is_harmless(text: &str, secrets: &[String]) -> bool {
    !secrets.iter().any(|secret| text.contains(secret.as_str()))
}

fn hidden(value: &Value) -> Value {
    Value::String(format!("[not shown: {}]", described(value)))
}

fn described(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "true or false".to_owned(),
        Value::Number(_) => "a number".to_owned(),
        Value::String(text) => format!("a string of {} bytes", text.len()),
        Value::Array(items) => format!("an array of {}", items.len()),
        Value::Object(fields) => format!("an object of {}", fields.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "s3cret-token";

    fn shown(body: &str) -> Value {
        match RedactedBody::of(body.as_bytes()) {
            RedactedBody::Object(value) => value,
            RedactedBody::Other(hint) => panic!("{hint}"),
        }
    }

    #[test]
    fn what_the_contract_knows_is_shown_and_tokens_are_not() {
        let body = json!({
            "user_id": "u-1", "host": "git.example.org", "auth_id": "jdoe", "auth_name": "J. Doe",
            "token": {
                "value": SECRET, "refresh_token": "another-s3cret", "username": "x-token-auth",
                "scopes": ["repo", "read:user"], "expires_at": "2020-01-01T00:00:00Z",
            },
        });
        let mut expected = body.clone();
        expected["token"]["value"] = json!("[not shown: a string of 12 bytes]");
        expected["token"]["refresh_token"] = json!("[not shown: a string of 14 bytes]");
        assert_eq!(shown(&body.to_string()), expected);
        let body = json!({"workspace_id": "w", "user_id": "u", "requested_lifetime_secs": 0,
            "repositories": ["git@github.com:o/r.git", "https://git.example.org:7990/p/r.git"]});
        let mut expected = body.clone();
        expected["repositories"][0] = json!("github.com:o/r.git");
        assert_eq!(shown(&body.to_string()), expected);
    }

    #[test]
    fn a_secret_is_shown_nowhere() {
        for body in [
            r#"{"user_id":{"id":"s3cret-token"},"host":"s3cret-token/x"}"#,
            r#"{"token":"s3cret-token"}"#,
            r#"{"token":["s3cret-token"]}"#,
            r#"{"token":{"value":["s3cret-token"],"user_id":"s3cret-token","later":"s3cret-token"}}"#,
            r#"{"token":{"value":"s3cret-token"},"user_id":"s3cret-token","auth_name":"my s3cret-token"}"#,
            r#"{"token":{"refresh_token":"s3cret-token","scopes":["s3cret-token"]}}"#,
            r#"{"token":{"scopes":"s3cret-token","expires_at":"s3cret-token"}}"#,
            r#"{"requested_lifetime_secs":"s3cret-token","acess_token":"s3cret-token"}"#,
            r#"{"s3cret-token":1,"token":{"s3cret-token":{}}}"#,
            r#"{"repositories":["https://jdoe:s3cret-token@git.example.org/p?t=s3cret-token#s3cret-token"]}"#,
            r#"{"repositories":["s3cret-token","ssh://s3cret-token@h/p",["s3cret-token"]]}"#,
            r#"{"repositories":"s3cret-token"}"#,
            r#""s3cret-token""#,
            r#"["s3cret-token"]"#,
            "s3cret-token",
            "{\"user_id\":\"s3cret-token",
        ] {
            let shown = format!("{:?}", RedactedBody::of(body.as_bytes()));
            assert!(!shown.contains("s3cret"), "{body}: {shown}");
        }
    }

    #[test]
    fn a_misspelt_field_is_seen() {
        for key in ["usr_id", "userId"] {
            let body = json!({key: "u-1"}).to_string();
            assert_eq!(shown(&body), json!({key: "[not shown: a string of 3 bytes]"}));
        }
    }

    #[test]
    fn of_what_is_no_object_there_is_a_hint() {
        for (body, hint) in [
            (&b""[..], "empty"),
            (b"\x1f\x8b\x08", "gzip, not JSON"),
            (b"{\"a\":\"\xff\"}", "not UTF-8 (at byte 6)"),
            (b"{\"a\":", "not JSON (line 1, column 5)"),
            (b"[1,2]", "JSON, but no object: an array of 2"),
        ] {
            assert_eq!(RedactedBody::of(body), RedactedBody::Other(hint.to_owned()));
        }
        let large = vec![b' '; MAX_BODY_BYTES + 1];
        assert!(matches!(RedactedBody::of(&large), RedactedBody::Other(hint) if hint.contains("larger")));
    }
}
