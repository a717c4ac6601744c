//! What tokenkeeper answers.

use schemars::JsonSchema;
use serde::Serialize;

use super::decode::Echo;
use super::error_code::ErrorCode;
use super::granted_token::GrantedToken;
use super::warning::Warning;
use crate::domain::escape;

/// The answer to a message of any kind.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Reply {
    /// To `token.request`.
    Token(TokenReply),
    /// To `workspace.start`.
    WorkspaceStart(WorkspaceStartReply),
    /// To `token.store`.
    Store(StoreReply),
    /// To `token.report`.
    Report(ReportReply),
}

impl Reply {
    /// The JSON body.
    #[allow(
        clippy::expect_used,
        clippy::missing_panics_doc,
        reason = "every field of a reply has a JSON form"
    )]
    pub fn encode(&self) -> Vec<u8> {
        // One allocation for nearly every reply: the fields around a token take some 350 bytes.
        let mut body = Vec::with_capacity(1024);
        escape::write_json(&mut body, self).expect("a reply has a JSON form");
        body
    }

    /// The first error in it; none: all went well.
    pub fn error(&self) -> Option<&ErrorBody> {
        match self {
            Self::Token(reply) => reply.error(),
            Self::Store(StoreReply::Ok { .. }) | Self::Report(ReportReply::Ok { .. }) => None,
            Self::Store(StoreReply::Error(reply)) | Self::Report(ReportReply::Error(reply)) => {
                Some(&reply.error)
            }
            Self::WorkspaceStart(reply) => {
                reply.error.as_ref().or_else(|| reply.tokens.iter().find_map(TokenReply::error))
            }
        }
    }

    /// Its code.
    pub fn error_code(&self) -> Option<ErrorCode> {
        self.error().map(|error| error.code)
    }

    /// What the requester should know about the message as a whole.
    pub fn warnings_mut(&mut self) -> &mut Vec<Warning> {
        match self {
            Self::Token(TokenReply::Ok(grant)) => &mut grant.warnings,
            Self::WorkspaceStart(reply) => &mut reply.warnings,
            Self::Store(StoreReply::Ok { warnings }) | Self::Report(ReportReply::Ok { warnings, .. }) => {
                warnings
            }
            Self::Token(TokenReply::Error(reply))
            | Self::Store(StoreReply::Error(reply))
            | Self::Report(ReportReply::Error(reply)) => &mut reply.warnings,
        }
    }
}

/// The answer to `token.request`, and to each host of `workspace.start`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum TokenReply {
    /// Here is the token.
    Ok(TokenGrant),
    /// There is none.
    Error(ErrorReply),
}

impl TokenReply {
    /// Why no token was handed out, if none was.
    pub const fn error(&self) -> Option<&ErrorBody> {
        match self {
            Self::Ok(_) => None,
            Self::Error(reply) => Some(&reply.error),
        }
    }

    /// Its code.
    pub fn error_code(&self) -> Option<ErrorCode> {
        self.error().map(|error| error.code)
    }
}

/// A token that was handed out.
#[derive(Debug, Serialize, JsonSchema)]
pub struct TokenGrant {
    /// The platform's user.
    pub user_id: String,
    /// The provider's host.
    pub host: String,
    /// The token.
    pub token: GrantedToken,
    /// What this request did.
    pub refresh: Refresh,
    /// What the requester should know.
    pub warnings: Vec<Warning>,
}

/// What a request did to the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Refresh {
    /// Still valid.
    None,
    /// Still valid; an opportunistic refresh was due, but somebody holds the token.
    Reserved,
    /// Refreshed although still valid, because nobody held it.
    Opportunistic,
    /// Refreshed because it would not have lived as long as requested.
    Required,
}

impl Refresh {
    /// The word as it stands in replies and in the audit log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Reserved => "reserved",
            Self::Opportunistic => "opportunistic",
            Self::Required => "required",
        }
    }
}

/// The answer where there is no token to hand out.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ErrorReply {
    /// The workspace, for a `workspace.start`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub workspace_id: Option<String>,
    /// The platform's user, where it could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub user_id: Option<String>,
    /// The provider's host, where it could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub host: Option<String>,
    /// What is wrong.
    pub error: ErrorBody,
    /// What the requester should know about its message.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Warning>,
}

impl ErrorReply {
    /// An error about a message of which `echo` could be read.
    pub fn new(echo: Echo, error: ErrorBody) -> Self {
        let Echo { user_id, host, workspace_id } = echo;
        Self { workspace_id, user_id, host, error, warnings: Vec::new() }
    }
}

/// What is wrong, for a program and for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ErrorBody {
    /// For the program.
    pub code: ErrorCode,
    /// For the person; says nothing secret.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// How long to wait before that, in seconds, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub retry_after_secs: Option<u64>,
    /// With `reauthorization_required`: whose doing it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "ErrorReason")]
    pub reason: Option<ErrorReason>,
}

/// Why a user must log in again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorReason {
    /// The provider refuses the refresh token: the user revoked the access, or it expired.
    RefreshTokenRefused,
    /// A refresh was interrupted after the provider had issued a new pair, and the pair was lost on its way here.
    RefreshInterrupted,
}

impl ErrorBody {
    /// An error with what its code says about retrying.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            retryable: code.is_retryable(),
            retry_after_secs: None,
            reason: None,
        }
    }
}

/// The answer to `workspace.start`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(extend("oneOf" = [
    {
        "title": "Ok",
        "description": "Here are all the tokens.",
        "required": ["workspace_id", "user_id"],
        "properties": {
            "status": {"type": "string", "const": "ok"},
            "tokens": {"items": {"$ref": "#/$defs/TokenReplyOk"}},
            "error": false,
        },
    },
    {
        "title": "Error",
        "description": "A token is missing, or the message as a whole is wrong.",
        "properties": {"status": {"type": "string", "const": "error"}},
    },
]))]
pub struct WorkspaceStartReply {
    /// `ok` when every token is.
    pub status: Status,
    /// The workspace, where it could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub workspace_id: Option<String>,
    /// The platform's user, where it could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub user_id: Option<String>,
    /// One for each distinct host, and one for each repository without a clone URL, in the order of first appearance.
    pub tokens: Vec<TokenReply>,
    /// What is wrong with the message as a whole; then there are no tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "ErrorBody")]
    pub error: Option<ErrorBody>,
    /// What the requester should know about its message. Warnings about a token stand beside it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Warning>,
}

/// The answer to `token.store`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum StoreReply {
    /// The pair is stored.
    Ok {
        /// What the publisher should know about its message.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        warnings: Vec<Warning>,
    },
    /// It is not.
    Error(ErrorReply),
}

/// The answer to `token.report`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum ReportReply {
    /// The report was taken.
    Ok {
        /// What came of it.
        result: ReportResult,
        /// What the publisher should know about its message.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        warnings: Vec<Warning>,
    },
    /// It was not; or the token was checked, and there is no other one.
    Error(ErrorReply),
}

/// What came of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReportResult {
    /// There is a new token: the next request gets it.
    Refreshed,
    /// Somebody holds the token. It is refreshed by the first request after that.
    Held,
    /// There is no refresh token to check it with. It is not handed out any more.
    Withdrawn,
    /// It is not the token that is handed out now.
    NotCurrent,
}

impl ReportResult {
    /// The word as it stands in replies, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refreshed => "refreshed",
            Self::Held => "held",
            Self::Withdrawn => "withdrawn",
            Self::NotCurrent => "not_current",
        }
    }
}

/// Whether all went well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It did.
    Ok,
    /// It did not.
    Error,
}
