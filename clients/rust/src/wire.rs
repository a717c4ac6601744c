//! The bodies of messages, as they stand in JSON. Requests are written, replies are read; a reply may have fields and words
//! that this version does not know.
//!
//! [`Client`](crate::Client) writes and reads them. They are public for programs that bring their own AMQP.

use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};

use crate::words::{ErrorCode, Refresh, ReportResult, Warning};

/// The body of a `token.request`.
#[derive(Debug, Clone, Serialize)]
pub struct TokenRequest<'a> {
    /// The platform's user.
    pub user_id: &'a str,
    /// The provider's host, as in clone URLs.
    pub host: &'a str,
    /// How long from now the token must work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_lifetime_secs: Option<u64>,
    /// An X25519 public key in base64, to seal the reply's token to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_public_key: Option<String>,
}

/// The body of a `workspace.start`.
#[derive(Debug, Clone, Serialize)]
pub struct WorkspaceStart<'a> {
    /// Which workspace, in the words of the platform.
    pub workspace_id: &'a str,
    /// The platform's user.
    pub user_id: &'a str,
    /// 1 to 16 clone URLs.
    pub repositories: &'a [String],
    /// How long from now the tokens must work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_lifetime_secs: Option<u64>,
    /// An X25519 public key in base64, to seal the reply's tokens to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_public_key: Option<String>,
}

/// The body of a `token.store`.
#[derive(Debug, Clone, Serialize)]
pub struct TokenStore<'a> {
    /// The platform's user.
    pub user_id: &'a str,
    /// The provider's host.
    pub host: &'a str,
    /// The account's id at the provider.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_id: Option<&'a str>,
    /// The account's display name at the provider.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_name: Option<&'a str>,
    /// What the login flow obtained.
    pub token: Pair<'a>,
}

/// The pair of a `token.store`.
#[derive(Debug, Clone, Serialize)]
pub struct Pair<'a> {
    /// The access token.
    pub value: Secret<'a>,
    /// The refresh token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh_token: Option<Secret<'a>>,
    /// The user name that git sends beside the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<&'a str>,
    /// The scopes that were granted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scopes: Option<&'a [String]>,
    /// When the access token expires.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "date")]
    pub expires_at: Option<DateTime<Utc>>,
    /// When the refresh token expires.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "date")]
    pub refresh_token_expires_at: Option<DateTime<Utc>>,
}

/// A token that JSON shows, and `Debug` does not.
#[derive(Debug, Clone, Copy)]
pub struct Secret<'a>(pub &'a SecretString);

impl Serialize for Secret<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.expose_secret())
    }
}

/// The body of a `token.store` that the broker cannot read.
#[derive(Debug, Clone, Serialize)]
pub struct SealedTokenStore<'a> {
    /// The platform's user.
    pub user_id: &'a str,
    /// The provider's host.
    pub host: &'a str,
    /// A sealed box in base64 over a [`TokenStore`] of the same user and host.
    pub sealed: String,
    /// The id of the key that it is sealed to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_id: Option<&'a str>,
}

/// The body of a `token.report`.
#[derive(Debug, Clone, Serialize)]
pub struct TokenReport<'a> {
    /// The platform's user.
    pub user_id: &'a str,
    /// The provider's host.
    pub host: &'a str,
    /// SHA-256 of the token, in hexadecimal digits.
    pub token_sha256: &'a str,
}

/// Whether all went well. Any other word is no reply of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It did.
    Ok,
    /// It did not.
    Error,
}

impl Status {
    /// The word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
        }
    }
}

/// The body of a `token.reply`, and of each element of a `workspace.start.reply`.
#[derive(Debug, Clone, Deserialize)]
pub struct TokenReply {
    /// Whether there is a token.
    pub status: Status,
    /// The user, where it could be read.
    pub user_id: Option<String>,
    /// The host, where it could be read.
    pub host: Option<String>,
    /// In clear or sealed. None: there is an error instead.
    pub token: Option<GrantedToken>,
    /// What the request did to it.
    pub refresh: Option<Refresh>,
    /// What the requester should know.
    #[serde(default)]
    pub warnings: Vec<Warning>,
    /// Why there is none.
    pub error: Option<ErrorBody>,
}

/// A token that is handed out: in clear, or sealed.
#[derive(Debug, Clone, Deserialize)]
pub struct GrantedToken {
    /// The access token. None: it is sealed.
    pub value: Option<SecretString>,
    /// A sealed box in base64.
    pub sealed: Option<String>,
    /// The user name that git sends beside it.
    pub username: String,
    /// Both as they stand in a clone URL. None: it is sealed, or the worker is of an older version.
    pub userinfo: Option<SecretString>,
    /// The scopes it was granted.
    pub scopes: Vec<String>,
    /// When this pair was stored.
    pub updated_at: DateTime<Utc>,
    /// When it expires. None: never.
    pub expires_at: Option<DateTime<Utc>>,
    /// Until then it is not refreshed opportunistically.
    pub reserved_until: DateTime<Utc>,
}

/// The body of a `workspace.start.reply`.
#[derive(Debug, Clone, Deserialize)]
pub struct WorkspaceStartReply {
    /// `ok` when every token is.
    pub status: Status,
    /// The workspace, where it could be read.
    pub workspace_id: Option<String>,
    /// The user, where it could be read.
    pub user_id: Option<String>,
    /// One for each distinct host, and one for each repository without a clone URL.
    #[serde(default)]
    pub tokens: Vec<TokenReply>,
    /// What is wrong with the message as a whole.
    pub error: Option<ErrorBody>,
    /// What the requester should know about its message.
    #[serde(default)]
    pub warnings: Vec<Warning>,
}

/// The body of a `token.store.reply`.
#[derive(Debug, Clone, Deserialize)]
pub struct StoreReply {
    /// Whether the pair is stored.
    pub status: Status,
    /// The user, where it could be read. Errors alone say it.
    pub user_id: Option<String>,
    /// The host, where it could be read. Errors alone say it.
    pub host: Option<String>,
    /// Why not.
    pub error: Option<ErrorBody>,
    /// What the publisher should know about its message.
    #[serde(default)]
    pub warnings: Vec<Warning>,
}

/// The body of a `token.report.reply`.
#[derive(Debug, Clone, Deserialize)]
pub struct ReportReply {
    /// Whether the report was taken.
    pub status: Status,
    /// The user, where it could be read. Errors alone say it.
    pub user_id: Option<String>,
    /// The host, where it could be read. Errors alone say it.
    pub host: Option<String>,
    /// What came of it.
    pub result: Option<ReportResult>,
    /// Why it was not.
    pub error: Option<ErrorBody>,
    /// What the publisher should know about its message.
    #[serde(default)]
    pub warnings: Vec<Warning>,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ErrorBody {
    /// For the program.
    pub code: ErrorCode,
    /// For a person.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// How long to wait before that, in seconds, where it is known.
    pub retry_after_secs: Option<u64>,
    /// With `reauthorization_required`: how it came to that.
    pub reason: Option<String>,
}

#[allow(clippy::ref_option, reason = "serde hands over references to fields")]
fn date<S: Serializer>(date: &Option<DateTime<Utc>>, serializer: S) -> Result<S::Ok, S::Error> {
    struct InMillis<'a>(&'a DateTime<Utc>);
    impl fmt::Display for InMillis<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(&self.0.to_rfc3339_opts(SecondsFormat::Millis, true))
        }
    }
    match date {
        Some(date) => serializer.collect_str(&InMillis(date)),
        None => serializer.serialize_none(),
    }
}
