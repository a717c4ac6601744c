//! Replies as a caller has them: checked against the request, with tokens that `Debug` does not show.

use std::fmt;

use chrono::{DateTime, Utc};
use secrecy::SecretString;
use serde::Deserialize;

use crate::error::{Error, Refusal, UnusableReply};
use crate::wire::{
    ErrorBody, GrantedToken, ReportReply, Status, StoreReply, TokenReply, WorkspaceStartReply,
};
use crate::words::{Refresh, ReportResult, Warning};

/// A token that was handed out.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Token {
    /// The access token: the password for git.
    pub value: SecretString,
    /// The user name that git sends beside it.
    pub username: String,
    /// Both as they stand in a clone URL in front of `@HOST`. None: the worker is of an older version.
    pub userinfo: Option<SecretString>,
    /// The scopes it was granted.
    pub scopes: Vec<String>,
    /// When this pair was stored.
    pub updated_at: DateTime<Utc>,
    /// When it expires. None: never.
    pub expires_at: Option<DateTime<Utc>>,
    /// Until then nobody refreshes it opportunistically.
    pub reserved_until: DateTime<Utc>,
    /// What this request did to it.
    pub refresh: Refresh,
    /// What to know about it.
    pub warnings: Vec<Warning>,
}

/// The tokens of a workspace.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Workspace {
    /// One for each distinct host of the repositories, and for each repository whose URL cannot be read.
    pub tokens: Vec<WorkspaceToken>,
    /// What to know about the message.
    pub warnings: Vec<Warning>,
}

/// What there is for one host of a workspace.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WorkspaceToken {
    /// The host. None: a repository whose URL cannot be read.
    pub host: Option<String>,
    /// The token, or why there is none.
    pub token: Result<Token, Refusal>,
}

/// A login was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stored {
    /// What to know about the message.
    pub warnings: Vec<Warning>,
}

/// A report was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// What came of it.
    pub result: ReportResult,
    /// What to know about the message.
    pub warnings: Vec<Warning>,
}

/// The JSON of a reply, as it came, with sealed tokens opened. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Body(pub(crate) Vec<u8>);

impl Body {
    /// The bytes. They hold tokens.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`UnusableReply::NotUnderstood`]. What serde says of it is left out: it quotes parts of the input.
    pub fn read<'a, T: Deserialize<'a>>(&'a self) -> Result<T, UnusableReply> {
        serde_json::from_slice(&self.0).map_err(|_| UnusableReply::NotUnderstood)
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} bytes)", self.0.len())
    }
}

/// Of a `token.request` for this user and host.
pub(crate) fn token(body: &Body, user: &str, host: &str) -> Result<Token, Error> {
    let reply: TokenReply = body.read()?;
    let other = |said: Option<&String>, asked: &str| said.is_some_and(|said| said != asked);
    if other(reply.user_id.as_ref(), user) || other(reply.host.as_ref(), host) {
        return Err(UnusableReply::OfSomebodyElse.into());
    }
    outcome(reply)?.map_err(|refusal| Error::Refused(refusal.into()))
}

/// Of a `workspace.start` for this user.
pub(crate) fn workspace(body: &Body, user: &str) -> Result<Workspace, Error> {
    let WorkspaceStartReply { user_id, tokens, error, warnings, .. } = body.read()?;
    let of_others = user_id.as_ref().into_iter().chain(tokens.iter().filter_map(|it| it.user_id.as_ref()));
    if of_others.into_iter().any(|said| said != user) {
        return Err(UnusableReply::OfSomebodyElse.into());
    }
    if let Some(error) = error {
        return Err(refused(error, warnings));
    }
    let tokens = tokens.into_iter().map(|reply| {
        let host = reply.host.clone();
        Ok(WorkspaceToken { host, token: outcome(reply)? })
    });
    Ok(Workspace { tokens: tokens.collect::<Result<_, UnusableReply>>()?, warnings })
}

pub(crate) fn stored(body: &Body) -> Result<Stored, Error> {
    match body.read()? {
        StoreReply { status: Status::Ok, warnings, .. } => Ok(Stored { warnings }),
        StoreReply { error: Some(error), warnings, .. } => Err(refused(error, warnings)),
        StoreReply { .. } => Err(UnusableReply::NotUnderstood.into()),
    }
}

pub(crate) fn report(body: &Body) -> Result<Report, Error> {
    match body.read()? {
        ReportReply { status: Status::Ok, result: Some(result), warnings, .. } => {
            Ok(Report { result, warnings })
        }
        ReportReply { error: Some(error), warnings, .. } => Err(refused(error, warnings)),
        ReportReply { .. } => Err(UnusableReply::NotUnderstood.into()),
    }
}

fn refused(error: ErrorBody, warnings: Vec<Warning>) -> Error {
    Error::Refused(Refusal::new(error, warnings).into())
}

fn outcome(reply: TokenReply) -> Result<Result<Token, Refusal>, UnusableReply> {
    let TokenReply { status, token, refresh, warnings, error, .. } = reply;
    match (status, token, error) {
        (Status::Ok, Some(GrantedToken { value: Some(value), .. }), _) if value_is_empty(&value) => {
            Err(UnusableReply::NotUnderstood)
        }
        (Status::Ok, Some(token), _) => {
            let GrantedToken { value, userinfo, username, scopes, .. } = token;
            let GrantedToken { updated_at, expires_at, reserved_until, .. } = token;
            // Sealed, though nobody asked for it: there is no key to open it.
            let value = value.ok_or(UnusableReply::NotOpened)?;
            let refresh = refresh.ok_or(UnusableReply::NotUnderstood)?;
            Ok(Ok(Token {
                value,
                username,
                userinfo,
                scopes,
                updated_at,
                expires_at,
                reserved_until,
                refresh,
                warnings,
            }))
        }
        (Status::Error, _, Some(error)) => Ok(Err(Refusal::new(error, warnings))),
        (Status::Ok, None, _) | (Status::Error, _, None) => Err(UnusableReply::NotUnderstood),
    }
}

fn value_is_empty(value: &SecretString) -> bool {
    secrecy::ExposeSecret::expose_secret(value).is_empty()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn reply() -> Value {
        json!({
            "status": "ok", "user_id": "u", "host": "h", "refresh": "later", "warnings": ["new"], "x": 1,
            "token": {"value": "s3cret", "username": "x", "scopes": [], "updated_at": "2020-01-01T00:00:00.000Z",
                      "expires_at": null, "reserved_until": "2020-01-01T00:05:00.000Z"},
        })
    }

    fn read(reply: &Value) -> Result<Token, Error> {
        token(&Body(reply.to_string().into_bytes()), "u", "h")
    }

    #[test]
    fn a_reply_with_unknown_fields_and_words_is_read_and_not_shown() {
        let token = read(&reply()).unwrap();
        assert_eq!(token.refresh, Refresh::Other("later".to_owned()));
        assert_eq!(token.warnings, [Warning::Other("new".to_owned())]);
        assert!(!format!("{token:?}").contains("s3cret"));
        assert!(!format!("{:?}", Body(reply().to_string().into_bytes())).contains("s3cret"));
    }

    #[test]
    fn what_is_no_reply_to_this_request_is_refused_without_a_word_of_it() {
        let mut cases = Vec::new();
        for (field, value, expected) in [
            ("status", json!("s3cret"), UnusableReply::NotUnderstood),
            ("status", json!("error"), UnusableReply::NotUnderstood),
            ("user_id", json!("s3cret"), UnusableReply::OfSomebodyElse),
            ("host", json!("s3cret"), UnusableReply::OfSomebodyElse),
            ("token", json!({"sealed": "s3cret"}), UnusableReply::NotUnderstood),
            ("token", json!("s3cret"), UnusableReply::NotUnderstood),
        ] {
            let mut reply = reply();
            reply[field] = value;
            cases.push((reply, expected));
        }
        let mut sealed = reply();
        sealed["token"]["value"] = Value::Null;
        sealed["token"]["sealed"] = json!("s3cret");
        cases.push((sealed, UnusableReply::NotOpened));
        cases.push((json!(["s3cret"]), UnusableReply::NotUnderstood));
        for (reply, expected) in cases {
            let error = read(&reply).unwrap_err();
            assert!(matches!(error, Error::Reply(found) if found == expected), "{error:?}: {reply}");
            assert!(!format!("{error:?} {error}").contains("s3cret"), "{error:?}");
        }
    }

    #[test]
    fn a_workspace_with_another_users_token_is_refused_as_a_whole() {
        let mut other = reply();
        other["user_id"] = json!("v");
        let body = |tokens: Value| Body(json!({"status": "ok", "tokens": tokens}).to_string().into_bytes());
        assert_eq!(workspace(&body(json!([reply()])), "u").unwrap().tokens.len(), 1);
        let refused = workspace(&body(json!([reply(), other])), "u");
        assert!(matches!(refused, Err(Error::Reply(UnusableReply::OfSomebodyElse))), "{refused:?}");
    }
}
