//! Decodes bodies into requests, and says what is wrong with a body.

use serde::de::DeserializeOwned;
use serde_json::error::Category;
use serde_json::{Map, Value};

use super::request::{MessageKind, NoStatus, Request};
use super::store_message::StoreMessage;
use super::unknown_field::UnknownFields;
use crate::domain::expected::must_be;
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
            Request::Token(_) | Request::Store(_) | Request::SealedStore(_) | Request::Report(_) => None,
        };
        Self {
            user_id: Some(request.user_id().to_owned()),
            host: request.host().map(str::to_owned),
            workspace_id,
        }
    }

    /// Of a message about a user at a host.
    pub fn of_user(user_id: impl Into<String>, host: impl Into<String>) -> Self {
        Self { user_id: Some(user_id.into()), host: Some(host.into()), workspace_id: None }
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

/// Reads a message.
///
/// # Errors
/// [`InvalidRequest`], with a reason that names the field.
pub fn decode(kind: MessageKind, body: &[u8]) -> Result<Request, InvalidRequest> {
    decode_noting(kind, body, &mut UnknownFields::default())
}

/// The same, and notes the fields that the contract does not know, also of a message that is wrong.
///
/// # Errors
/// As [`decode`].
pub fn decode_noting(
    kind: MessageKind,
    body: &[u8],
    unknown: &mut UnknownFields,
) -> Result<Request, InvalidRequest> {
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
        MessageKind::TokenRequest => read(body, unknown).map(Request::Token),
        MessageKind::WorkspaceStart => read(body, unknown).map(Request::WorkspaceStart),
        MessageKind::TokenStore => read::<StoreMessage>(body, unknown).map(Request::from),
        MessageKind::TokenReport => read(body, unknown).map(Request::Report),
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

fn read<T: DeserializeOwned>(body: &str, unknown: &mut UnknownFields) -> serde_json::Result<T> {
    let mut json = serde_json::Deserializer::from_str(body);
    let value = serde_ignored::deserialize(&mut json, |path| unknown.note(&path))?;
    json.end()?;
    Ok(value)
}

/// Reads the body again and tracks the place of the error. Only a bad message pays for that.
fn wrong_field(kind: MessageKind, body: &str) -> String {
    use super::request::{ReportRequest, TokenRequest, WorkspaceStartRequest};
    match kind {
        MessageKind::TokenRequest => place_of_error::<TokenRequest>(body),
        MessageKind::WorkspaceStart => place_of_error::<WorkspaceStartRequest>(body),
        MessageKind::TokenStore => place_of_error::<StoreMessage>(body),
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

/// A serde message without what the publisher sent: it may be a misplaced token.
fn without_values(message: &str) -> String {
    let (text, _position) = message.rsplit_once(" at line ").unwrap_or((message, ""));
    must_be(text).unwrap_or_else(|| text.to_owned())
}

fn not_json(error: &serde_json::Error) -> String {
    format!("the body is not JSON (line {}, column {})", error.line(), error.column())
}

#[cfg(test)]
mod tests;
