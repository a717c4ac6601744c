//! Replies as a requester reads them: tolerant of words that a newer worker may have learnt.

use anyhow::Context;
use serde::Deserialize;
use tokenkeeper::domain::clock::Timestamp;
use tokenkeeper::domain::secret::{ExposeSecret, SecretString};

use super::Ending;

/// The reply to `token.request`, and each element of the reply to `workspace.start`.
#[derive(Debug, Deserialize)]
pub(super) struct TokenReply {
    pub(super) status: Status,
    pub(super) user_id: Option<String>,
    pub(super) host: Option<String>,
    pub(super) token: Option<GrantedToken>,
    pub(super) refresh: Option<String>,
    #[serde(default)]
    pub(super) warnings: Vec<String>,
    pub(super) error: Option<ErrorBody>,
}

/// The reply to `workspace.start`.
#[derive(Debug, Deserialize)]
pub(super) struct WorkspaceStartReply {
    pub(super) status: Status,
    #[serde(default)]
    pub(super) tokens: Vec<TokenReply>,
    pub(super) error: Option<ErrorBody>,
}

#[derive(Debug, Deserialize)]
pub(super) struct GrantedToken {
    pub(super) value: SecretString,
    pub(super) username: String,
    /// A worker of an older version does not say.
    pub(super) userinfo: Option<SecretString>,
    pub(super) scopes: Vec<String>,
    pub(super) updated_at: Timestamp,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) reserved_until: Timestamp,
}

#[derive(Debug, Deserialize)]
pub(super) struct ErrorBody {
    pub(super) code: String,
    pub(super) message: String,
    pub(super) retryable: bool,
    pub(super) retry_after_secs: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    Ok,
    Error,
}

impl Status {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
        }
    }
}

impl From<Status> for Ending {
    fn from(status: Status) -> Self {
        match status {
            Status::Ok => Self::Good,
            Status::Error => Self::Bad,
        }
    }
}

impl GrantedToken {
    /// The token itself only where it was asked for: screens are shared, and terminals remember.
    pub(super) fn shown_value(&self, show: bool) -> &str {
        if show { self.value.expose_secret() } else { "(hidden; --show-token prints it)" }
    }

    /// What stands in front of `@HOST` in a clone URL: only where the token was asked for, which is a part of it.
    pub(super) fn shown_userinfo(&self, show: bool) -> Option<&str> {
        self.userinfo.as_ref().filter(|_| show).map(ExposeSecret::expose_secret)
    }
}

/// Reads a reply.
pub(super) fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> anyhow::Result<T> {
    // The body holds a token, and serde repeats parts of what it does not understand.
    serde_json::from_slice(body)
        .ok()
        .context("the reply is not one that this version understands; --json prints it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_newer_worker_adds_does_not_keep_a_reply_from_being_read() {
        let body = br#"{"status": "ok", "user_id": "u", "host": "h", "refresh": "later", "warnings": ["new"], "x": 1,
            "token": {"value": "s3cret", "username": "x", "scopes": [], "updated_at": "2020-01-01T00:00:00.000Z",
                      "expires_at": null, "reserved_until": "2020-01-01T00:05:00.000Z"}}"#;
        let reply: TokenReply = read(body).unwrap();
        assert_eq!(reply.refresh.as_deref(), Some("later"));
        assert!(!format!("{reply:?}").contains("s3cret"));
    }

    #[test]
    fn a_reply_that_is_none_is_told_without_its_content() {
        let error = read::<TokenReply>(br#"{"status": "s3cret"}"#).unwrap_err();
        assert!(!format!("{error:?}").contains("s3cret"));
    }

    #[test]
    fn the_token_is_hidden_unless_it_was_asked_for() {
        let time = Timestamp::from_millis(0);
        let token = GrantedToken {
            value: "s3cret".into(),
            username: "x".into(),
            userinfo: Some("x:s3cret".into()),
            scopes: Vec::new(),
            updated_at: time,
            expires_at: None,
            reserved_until: time,
        };
        assert_eq!(token.shown_value(true), "s3cret");
        assert!(!token.shown_value(false).contains("s3cret"));
        assert_eq!((token.shown_userinfo(true), token.shown_userinfo(false)), (Some("x:s3cret"), None));
        assert!(!format!("{token:?}").contains("s3cret"));
    }
}
