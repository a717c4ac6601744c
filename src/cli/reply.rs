//! Replies, as the command line shows them.

use anyhow::Context;
use serde::Deserialize;
use tokenkeeper::domain::clock::Timestamp;
use tokenkeeper::domain::secret::ExposeSecret;
use tokenkeeper_client::Body;
use tokenkeeper_client::wire::{GrantedToken, Status};

use super::Ending;

impl From<Status> for Ending {
    fn from(status: Status) -> Self {
        match status {
            Status::Ok => Self::Good,
            Status::Error => Self::Bad,
        }
    }
}

/// Hidden unless `show`: screens are shared, and terminals keep a history.
pub(super) fn shown_value(token: &GrantedToken, show: bool) -> &str {
    match &token.value {
        Some(value) if show => value.expose_secret(),
        Some(_) => "(hidden; --show-token prints it)",
        None => "(sealed to somebody else)",
    }
}

/// The part of a clone URL before `@HOST`. It contains the token.
pub(super) fn shown_userinfo(token: &GrantedToken, show: bool) -> Option<&str> {
    token.userinfo.as_ref().filter(|_| show).map(ExposeSecret::expose_secret)
}

/// A date of a reply, as this program has them.
pub(super) const fn of_client(date: chrono::DateTime<chrono::Utc>) -> Timestamp {
    Timestamp::from_millis(date.timestamp_millis())
}

pub(super) fn read<'a, T: Deserialize<'a>>(body: &'a Body) -> anyhow::Result<T> {
    body.read().ok().context("this version does not understand the reply; --json prints it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_hidden_unless_show_token_is_set() {
        let time = chrono::DateTime::UNIX_EPOCH;
        let token = GrantedToken {
            value: Some("s3cret".into()),
            sealed: None,
            username: "x".into(),
            userinfo: Some("x:s3cret".into()),
            scopes: Vec::new(),
            updated_at: time,
            expires_at: None,
            reserved_until: time,
        };
        assert_eq!(shown_value(&token, true), "s3cret");
        assert!(!shown_value(&token, false).contains("s3cret"));
        assert_eq!((shown_userinfo(&token, true), shown_userinfo(&token, false)), (Some("x:s3cret"), None));
        assert!(!format!("{token:?}").contains("s3cret"));
    }
}
