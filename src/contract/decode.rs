//! Decodes bodies into requests, and says what is wrong with a body.

use serde::de::DeserializeOwned;
use serde_json::error::Category;
use serde_json::{Map, Value};

use super::request::{MessageKind, NoStatus, Request};
use crate::domain::text::{Host, UserId, WorkspaceId};
use crate::domain::token::MAX_TOKEN_LEN;

/// Largest body of any message, in bytes: a `token.store` with a pair of the longest tokens.
pub const MAX_BODY_BYTES: usize = 64 * 1024 + 2 * MAX_TOKEN_LEN;

pub const fn max_body_bytes(kind: MessageKind) -> usize {
    match kind {
        MessageKind::TokenStore => MAX_BODY_BYTES,
        MessageKind::TokenRequest | MessageKind::WorkspaceStart | MessageKind::TokenReport => 64 * 1024,
    }
}

/// Every reply has this field, and no request does.
const STATUS: &str = "status";

/// A body that breaks the contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct InvalidRequest {
    /// Names the wrong field and says what would be right. Repeats nothing that the publisher sent.
    pub reason: String,
    /// The fields that could be read all the same.
    pub echo: Box<Echo>,
    /// False for a reply of ours that came back. It gets no reply.
    pub is_request: bool,
}

impl InvalidRequest {
    /// No field of the body can be read.
    fn unreadable(reason: String) -> Self {
        Self { reason, echo: Box::default(), is_request: true }
    }
}

/// The fields that a reply repeats, so that the requester can tell its requests apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Echo {
    pub user_id: Option<String>,
    pub host: Option<String>,
    pub workspace_id: Option<String>,
}

impl Echo {
    pub fn of(request: &Request) -> Self {
        let workspace_id = match request {
            Request::WorkspaceStart(request) => Some(request.workspace_id.to_string()),
            Request::Token(_) | Request::Store(_) | Request::Report(_) => None,
        };
        Self {
            user_id: Some(request.user_id().to_owned()),
            host: request.host().map(str::to_owned),
            workspace_id,
        }
    }

    /// Reads what it can of a broken body. Only a valid user, host and workspace are taken: anything else in their places may
    /// be a secret.
    pub fn read(body: &[u8]) -> Self {
        Self::of_fields(&fields(body))
    }

    fn of_fields(fields: &Map<String, Value>) -> Self {
        let text = |name: &str| fields.get(name).and_then(Value::as_str);
        Self {
            user_id: text("user_id").filter(|&text| UserId::try_from(text).is_ok()).map(str::to_owned),
            host: text("host").filter(|&text| Host::try_from(text).is_ok()).map(str::to_owned),
            workspace_id: text("workspace_id")
                .filter(|&text| WorkspaceId::try_from(text).is_ok())
                .map(str::to_owned),
        }
    }
}

/// Empty if the body is not a JSON object, or too large to look at.
fn fields(body: &[u8]) -> Map<String, Value> {
    if body.len() > MAX_BODY_BYTES {
        return Map::default();
    }
    serde_json::from_slice(body).unwrap_or_default()
}

///
/// # Errors
/// [`InvalidRequest`], with a reason that names the field.
pub fn decode(kind: MessageKind, body: &[u8]) -> Result<Request, InvalidRequest> {
    let most = max_body_bytes(kind);
    if body.len() > most {
        let reason = format!("the body has {} bytes; at most {most} are taken", body.len());
        return Err(InvalidRequest::unreadable(reason));
    }
    // The whole body, because serde does not check what it skips.
    let Ok(body) = std::str::from_utf8(body) else {
        let reason = "the body is not UTF-8".to_owned();
        return Err(InvalidRequest::unreadable(reason));
    };
    // Serde also reads a struct from an array. The contract has only objects.
    if !matches!(body.trim_ascii_start().bytes().next(), None | Some(b'{')) {
        let reason = "the body must be a JSON object".to_owned();
        return Err(InvalidRequest::unreadable(reason));
    }
    let request = match kind {
        MessageKind::TokenRequest => serde_json::from_str(body).map(Request::Token),
        MessageKind::WorkspaceStart => serde_json::from_str(body).map(Request::WorkspaceStart),
        MessageKind::TokenStore => serde_json::from_str(body).map(Request::Store),
        MessageKind::TokenReport => serde_json::from_str(body).map(Request::Report),
    };
    request.map_err(|error| {
        let fields = fields(body.as_bytes());
        let is_request = !fields.contains_key(STATUS);
        let reason = match error.classify() {
            _ if !is_request => format!("{STATUS}: {}", NoStatus::REFUSAL),
            Category::Data => wrong_field(kind, body),
            Category::Io | Category::Syntax | Category::Eof => not_json(&error),
        };
        InvalidRequest { reason, echo: Box::new(Echo::of_fields(&fields)), is_request }
    })
}

/// Reads the body again and tracks the place of the error. Only a bad message pays for that.
fn wrong_field(kind: MessageKind, body: &str) -> String {
    use super::request::{ReportRequest, StoreRequest, TokenRequest, WorkspaceStartRequest};
    match kind {
        MessageKind::TokenRequest => place_of_error::<TokenRequest>(body),
        MessageKind::WorkspaceStart => place_of_error::<WorkspaceStartRequest>(body),
        MessageKind::TokenStore => place_of_error::<StoreRequest>(body),
        MessageKind::TokenReport => place_of_error::<ReportRequest>(body),
    }
}

fn place_of_error<T: DeserializeOwned>(body: &str) -> String {
    match serde_path_to_error::deserialize::<_, T>(&mut serde_json::Deserializer::from_str(body)) {
        Err(error) => match error.path().to_string() {
            root if root == "." => without_values(&error.inner().to_string()),
            path => format!("{path}: {}", without_values(&error.inner().to_string())),
        },
        // The value is good, so the text after it is wrong.
        Ok(_) => "there is something behind the JSON object".to_owned(),
    }
}

/// Cuts the input out of a serde message ("invalid type: string \"…\", expected u64"): it may be a misplaced token.
fn without_values(message: &str) -> String {
    let (text, _position) = message.rsplit_once(" at line ").unwrap_or((message, ""));
    let repeats_input = text.starts_with("invalid type:") || text.starts_with("invalid value:");
    match text.rsplit_once(", expected ") {
        Some((_, expected)) if repeats_input => format!("must be {expected}"),
        _ if repeats_input => "has a wrong type or value".to_owned(),
        _ => text.to_owned(),
    }
}

fn not_json(error: &serde_json::Error) -> String {
    format!("the body is not JSON (line {}, column {})", error.line(), error.column())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(kind: MessageKind, body: &str) -> String {
        decode(kind, body.as_bytes()).expect_err("must be refused").reason
    }

    #[test]
    fn a_good_request_is_read_and_unknown_fields_are_ignored() {
        for whole in ["86400", "86400.0", "8.64e4"] {
            let body = format!(
                r#"{{"user_id":"u-1","host":"h.example.org","requested_lifetime_secs":{whole},"later":[1]}}"#
            );
            let Ok(Request::Token(request)) = decode(MessageKind::TokenRequest, body.as_bytes()) else {
                panic!("{whole} is not read")
            };
            assert_eq!(request.user_id.as_str(), "u-1");
            assert_eq!(request.requested_lifetime_secs.unwrap().duration().as_secs(), 86400);
        }
    }

    #[test]
    fn the_reason_names_the_field_and_what_would_be_right() {
        use MessageKind::{TokenRequest, TokenStore, WorkspaceStart};
        for (kind, body, expected) in [
            (TokenRequest, "", "the body is not JSON (line 1, column 0)"),
            (TokenRequest, "{", "the body is not JSON (line 1, column 1)"),
            (TokenRequest, r#"["u","h"]"#, "the body must be a JSON object"),
            (TokenRequest, "7", "the body must be a JSON object"),
            (TokenStore, r#"{"user_id":"u","host":"h","token":["t"]}"#, "token: must be an object"),
            (TokenRequest, r#"{"host":"h"}"#, "missing field `user_id`"),
            (TokenRequest, r#"{"user_id":"u"}"#, "missing field `host`"),
            (TokenRequest, r#"{"user_id":7,"host":"h"}"#, "user_id: must be a string"),
            (TokenRequest, r#"{"user_id":"","host":"h"}"#, "user_id: must be 1 to 255 characters"),
            (
                TokenRequest,
                r#"{"user_id":"a\u0000b","host":"h"}"#,
                "user_id: must not contain control characters",
            ),
            (
                TokenRequest,
                r#"{"user_id":"u","host":"https://h/"}"#,
                "host: must be a bare host name, with a port where there is one, like bitbucket.example.org:7990",
            ),
            (
                TokenRequest,
                r#"{"user_id":"u","host":"h","requested_lifetime_secs":0}"#,
                "requested_lifetime_secs: must be 1 to 86400 seconds",
            ),
            (
                TokenRequest,
                r#"{"user_id":"u","host":"h","requested_lifetime_secs":86401}"#,
                "requested_lifetime_secs: must be 1 to 86400 seconds",
            ),
            (
                TokenRequest,
                r#"{"user_id":"u","host":"h","requested_lifetime_secs":-1}"#,
                "requested_lifetime_secs: must be 1 to 86400 seconds",
            ),
            (
                TokenRequest,
                r#"{"user_id":"u","host":"h","requested_lifetime_secs":"5m"}"#,
                "requested_lifetime_secs: must be a whole number",
            ),
            (
                TokenRequest,
                r#"{"user_id":"u","host":"h","requested_lifetime_secs":300.5}"#,
                "requested_lifetime_secs: must be a whole number",
            ),
            (
                TokenRequest,
                r#"{"user_id":"u","host":"h","requested_lifetime_secs":1e300}"#,
                "requested_lifetime_secs: must be 1 to 86400 seconds",
            ),
            (TokenRequest, r#"{"user_id":"u","host":"h","user_id":"v"}"#, "duplicate field `user_id`"),
            (
                WorkspaceStart,
                r#"{"workspace_id":"w","user_id":"u","repositories":[]}"#,
                "repositories: must be 1 to 16 clone URLs",
            ),
            (
                WorkspaceStart,
                r#"{"workspace_id":"w","user_id":"u","repositories":["x",7]}"#,
                "repositories[1]: must be a string",
            ),
            (
                TokenStore,
                r#"{"user_id":"u","host":"h","token":{"value":""}}"#,
                "token.value: must be 1 to 32768 bytes",
            ),
            (
                TokenStore,
                r#"{"user_id":"u","host":"h","token":{"value":"a","expires_at":"soon"}}"#,
                "token.expires_at: not an RFC 3339 date like 2020-01-01T01:05:00.000Z: premature end of input",
            ),
        ] {
            assert_eq!(reason(kind, body), expected, "{body}");
        }
    }

    #[test]
    fn a_body_that_is_not_utf_8_is_refused_also_where_the_field_is_ignored() {
        for body in [
            &b"{\"user_id\":\"\xff\",\"host\":\"h\"}"[..],
            b"{\"user_id\":\"u\",\"host\":\"h\",\"x\":\"\xc3\"}",
        ] {
            let error = decode(MessageKind::TokenRequest, body).unwrap_err();
            assert_eq!(error.reason, "the body is not UTF-8");
        }
    }

    #[test]
    fn a_body_that_has_a_status_is_a_reply_and_no_request_whatever_else_is_in_it() {
        for body in [
            r#"{"status":"ok","user_id":"u","host":"h","token":{"value":"t"}}"#,
            r#"{"user_id":"u","host":"h","token":{"value":"t"},"status":null}"#,
            r#"{"user_id":"u","host":"h","token":{"value":"t"},"st\u0061tus":{"later":[1]}}"#,
            r#"{"status":"error","user_id":7,"workspace_id":"w","repositories":["https://h/r"]}"#,
            r#"{"workspace_id":"w","user_id":"u","repositories":["https://h/r"],"status":"ok","status":"ok"}"#,
            r#"{"status":"ok"}"#,
        ] {
            for kind in MessageKind::ALL {
                let refused = decode(kind, body.as_bytes()).unwrap_err();
                assert!(!refused.is_request, "{kind}: {body}");
                assert_eq!(refused.reason, "status: stands in replies alone, so this is no request");
            }
        }
        for body in [
            r#"{"user_id":"u","host":"h","token":{"value":"t","status":"ok"}}"#,
            r#"{"user_id":"u","host":"h","token":{"value":"t"},"Status":1}"#,
        ] {
            assert!(decode(MessageKind::TokenStore, body.as_bytes()).is_ok(), "{body}");
        }
        assert!(decode(MessageKind::TokenRequest, br#"{"user_id":7,"host":"h"}"#).unwrap_err().is_request);
    }

    #[test]
    fn what_stands_behind_the_object_and_too_large_a_body_are_told() {
        let behind = reason(MessageKind::TokenRequest, r#"{"user_id":"u","host":"h"} x"#);
        assert_eq!(behind, "the body is not JSON (line 1, column 28)");
        let large = format!(r#"{{"user_id":"u","host":"h","x":"{}"}}"#, "y".repeat(MAX_BODY_BYTES));
        assert!(reason(MessageKind::TokenRequest, &large).contains("at most 65536"));
        assert!(reason(MessageKind::TokenStore, &large).contains("at most 131072"));
        let longest = "t".repeat(MAX_TOKEN_LEN);
        let login = format!(
            r#"{{"user_id":"u","host":"h","token":{{"value":"{longest}","refresh_token":"{longest}"}}}}"#
        );
        assert!(decode(MessageKind::TokenStore, login.as_bytes()).is_ok());
    }

    #[test]
    fn user_and_host_are_echoed_where_they_could_be_read() {
        let body = br#"{"user_id":"u-1","host":"h","requested_lifetime_secs":0}"#;
        let error = decode(MessageKind::TokenRequest, body).unwrap_err();
        assert_eq!(error.echo.user_id.as_deref(), Some("u-1"));
        assert_eq!(error.echo.host.as_deref(), Some("h"));
        let error = decode(MessageKind::TokenRequest, br#"{"user_id":"u-1","host":7}"#).unwrap_err();
        assert_eq!((error.echo.user_id.as_deref(), error.echo.host), (Some("u-1"), None));
        let body = br#"{"user_id":"u\n1","host":"https://jdoe:s3cret@h/"}"#;
        let error = decode(MessageKind::TokenRequest, body).unwrap_err();
        assert_eq!(*error.echo, Echo::default(), "what stands there is neither a user nor a host");
    }

    #[test]
    fn a_misplaced_token_is_not_repeated_in_the_reason() {
        for body in [
            r#"{"user_id":"u","host":"h","token":"s3cret-token"}"#,
            r#"{"user_id":"u","host":"h","token":{"value":"a","scopes":"s3cret-token, expected x"}}"#,
            r#"{"user_id":"u","host":"h","token":{"value":"a","expires_at":"s3cret-token"}}"#,
            r#"{"user_id":"u","host":"h","token":{"value":"s3cret-tokené"}}"#,
            r#"{"user_id":"u","host":"s3cret-token/x","token":{"value":"a"}}"#,
        ] {
            let reason = reason(MessageKind::TokenStore, body);
            assert!(!reason.contains("s3cret"), "{reason}");
        }
    }

    #[test]
    fn a_pair_of_sixteen_kib_is_taken_and_a_larger_one_is_not() {
        let body =
            |len: usize| format!(r#"{{"user_id":"u","host":"h","token":{{"value":"{}"}}}}"#, "t".repeat(len));
        assert!(decode(MessageKind::TokenStore, body(32 * 1024).as_bytes()).is_ok());
        assert_eq!(
            reason(MessageKind::TokenStore, &body(32 * 1024 + 1)),
            "token.value: must be 1 to 32768 bytes"
        );
    }
}
