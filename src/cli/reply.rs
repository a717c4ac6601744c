//! Replies as a requester reads them. Unknown values from a newer worker are accepted.

use anyhow::Context;
use serde::Deserialize;
use tokenkeeper::domain::clock::Timestamp;
use tokenkeeper::domain::secret::{ExposeSecret, SecretString};

use super::Ending;

/// Also each element of the reply to `workspace.start`.
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
    /// `None` from a worker of an older version.
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
    /// Hidden unless `show`: screens are shared, and terminals keep a history.
    pub(super) fn shown_value(&self, show: bool) -> &str {
        if show { self.value.expose_secret() } else { "(hidden; --show-token prints it)" }
    }

    /// The part of a clone URL before `@HOST`. It contains the token.
    pub(super) fn shown_userinfo(&self, show: bool) -> Option<&str> {
        self.userinfo.as_ref().filter(|_| show).map(ExposeSecret::expose_secret)
    }
}

pub(super) fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> anyhow::Result<T> {
    // The body holds a token, and errors of serde quote parts of the input.
    serde_json::from_slice(body).ok().context("this version does not understand the reply; --json prints it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_with_unknown_fields_and_values_is_read() {
        let body = br#"{"status": "ok", "user_id": "u", "host": "h", "refresh": "later", "warnings": ["new"], "x": 1,
            "token": {"value": "s3cret", "username": "x", "scopes": [], "updated_at": "2020-01-01T00:00:00.000Z",
                      "expires_at": null, "reserved_until": "2020-01-01T00:05:00.000Z"}}"#;
        let reply: TokenReply = read(body).unwrap();
        assert_eq!(reply.refresh.as_deref(), Some("later"));
        assert!(!format!("{reply:?}").contains("s3cret"));
    }

    #[test]
    fn the_error_about_an_invalid_reply_does_not_quote_it() {
        let error = read::<TokenReply>(br#"{"status": "s3cret"}"#).unwrap_err();
        assert!(!format!("{error:?}").contains("s3cret"));
    }

    #[test]
    fn the_token_is_hidden_unless_show_token_is_set() {
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
