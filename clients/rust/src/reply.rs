//! Replies as a caller has them: checked against the request, with tokens that `Debug` does not show.

use std::fmt;

use chrono::{DateTime, Utc};
use secrecy::SecretString;
use serde::Deserialize;

use crate::error::{Error, Refusal, UnusableReply};
use crate::wire::{
    ErrorBody, GrantedToken, ReportReply, Status, StoreReply, TokenReply, WorkspaceStartReply,
};
use crate::words::{Refresh, ReportResult, Warning, plain};

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
    /// The host; what is not printable in it is escaped. None: a repository whose URL cannot be read.
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
    /// Its bytes, which hold tokens.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// What it says, as a type of [`wire`](crate::wire) or of the caller's own.
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

/// Whom a reply says that it is about, whatever else is in it.
#[derive(Deserialize)]
struct About {
    status: Status,
    workspace_id: Option<String>,
    user_id: Option<String>,
    host: Option<String>,
    #[serde(default)]
    tokens: Vec<Self>,
}

impl About {
    /// What it says must be right. An error may leave it out: not every message could be read.
    fn check(&self, said: Option<&String>, asked: &str) -> Result<(), UnusableReply> {
        let may_be_left_out = self.status == Status::Error && self.tokens.is_empty();
        if said.is_none() && !may_be_left_out {
            return Err(UnusableReply::OfSomebodyElse);
        }
        must_be_right(said, asked)
    }
}

fn must_be_right(said: Option<&String>, asked: &str) -> Result<(), UnusableReply> {
    let is_right = said.is_none_or(|said| said == asked);
    is_right.then_some(()).ok_or(UnusableReply::OfSomebodyElse)
}

/// Whether a reply is about this user and host.
pub(crate) fn check_token(body: &Body, user: &str, host: &str) -> Result<(), UnusableReply> {
    let about: About = body.read()?;
    // A list of tokens is not looked at here, and loosens nothing.
    let about = About { tokens: Vec::new(), ..about };
    about.check(about.user_id.as_ref(), user)?;
    about.check(about.host.as_ref(), host)
}

/// Whether a reply is about this workspace, and all that is in it about this user.
pub(crate) fn check_workspace(body: &Body, workspace: &str, user: &str) -> Result<(), UnusableReply> {
    let about: About = body.read()?;
    about.check(about.workspace_id.as_ref(), workspace)?;
    about.check(about.user_id.as_ref(), user)?;
    about.tokens.iter().try_for_each(|element| element.check(element.user_id.as_ref(), user))
}

/// Of a `token.request` for this user and host.
pub(crate) fn token(body: &Body, user: &str, host: &str) -> Result<Token, Error> {
    check_token(body, user, host)?;
    token_or_refusal(body.read()?)?.map_err(|refusal| Error::Refused(refusal.into()))
}

/// Of a `workspace.start` for this workspace and user.
pub(crate) fn workspace(body: &Body, workspace: &str, user: &str) -> Result<Workspace, Error> {
    check_workspace(body, workspace, user)?;
    let WorkspaceStartReply { status, tokens, error, warnings, .. } = body.read()?;
    if status == Status::Error
        && let Some(error) = error
    {
        return Err(refused(error, warnings));
    }
    let tokens = tokens.into_iter().map(|reply| {
        let host = reply.host.clone();
        let token = token_or_refusal(reply)?;
        // A token for no host is nobody's.
        if token.is_ok() && host.is_none() {
            Err(UnusableReply::NotUnderstood)
        } else {
            Ok(WorkspaceToken { host: host.map(|host| plain(&host).into_owned()), token })
        }
    });
    let tokens: Vec<_> = tokens.collect::<Result<_, UnusableReply>>()?;
    let is_as_it_says = (status == Status::Ok) == tokens.iter().all(|it| it.token.is_ok());
    if tokens.is_empty() || !is_as_it_says {
        return Err(UnusableReply::NotUnderstood.into());
    }
    Ok(Workspace { tokens, warnings })
}

/// Of a `token.store` for this user and host.
pub(crate) fn stored(body: &Body, user: &str, host: &str) -> Result<Stored, Error> {
    let StoreReply { status, user_id, host: of_host, error, warnings } = body.read()?;
    must_be_right(user_id.as_ref(), user)?;
    must_be_right(of_host.as_ref(), host)?;
    match (status, error) {
        (Status::Ok, _) => Ok(Stored { warnings }),
        (Status::Error, Some(error)) => Err(refused(error, warnings)),
        (Status::Error, None) => Err(UnusableReply::NotUnderstood.into()),
    }
}

/// Of a `token.report` for this user and host.
pub(crate) fn report(body: &Body, user: &str, host: &str) -> Result<Report, Error> {
    let ReportReply { status, user_id, host: of_host, result, error, warnings } = body.read()?;
    must_be_right(user_id.as_ref(), user)?;
    must_be_right(of_host.as_ref(), host)?;
    match (status, result, error) {
        (Status::Ok, Some(result), _) => Ok(Report { result, warnings }),
        (Status::Error, _, Some(error)) => Err(refused(error, warnings)),
        (Status::Ok, None, _) | (Status::Error, _, None) => Err(UnusableReply::NotUnderstood.into()),
    }
}

fn refused(error: ErrorBody, warnings: Vec<Warning>) -> Error {
    Error::Refused(Refusal::new(error, warnings).into())
}

fn token_or_refusal(reply: TokenReply) -> Result<Result<Token, Refusal>, UnusableReply> {
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
    fn a_good_reply_that_does_not_say_whom_it_is_about_is_refused() {
        for field in ["user_id", "host"] {
            for missing in [true, false] {
                let mut reply = reply();
                reply[field] = Value::Null;
                if missing {
                    reply.as_object_mut().unwrap().remove(field);
                }
                // Neither does a list that belongs elsewhere make it one that may leave it out.
                for tokens in [json!([]), json!([{"status": "error"}])] {
                    reply["tokens"] = tokens;
                    let error = read(&reply).unwrap_err();
                    assert!(
                        matches!(error, Error::Reply(UnusableReply::OfSomebodyElse)),
                        "{field}: {error:?}"
                    );
                }
            }
        }
        let error = json!({"code": "invalid_request", "message": "m", "retryable": false});
        let refusal = read(&json!({"status": "error", "error": error}));
        assert!(matches!(refusal, Err(Error::Refused(_))), "{refusal:?}");
    }

    fn start(change: impl FnOnce(&mut Value)) -> Result<Workspace, Error> {
        let mut reply = json!({"status": "ok", "workspace_id": "w", "user_id": "u", "tokens": [reply()]});
        change(&mut reply);
        workspace(&Body(reply.to_string().into_bytes()), "w", "u")
    }

    type Change<'a> = &'a dyn Fn(&mut Value);

    #[test]
    fn a_workspace_is_taken_as_a_whole_or_not_at_all() {
        use UnusableReply::{NotUnderstood, OfSomebodyElse};
        let error = json!({"code": "unknown_host", "message": "m", "retryable": false});
        let failed = json!({"status": "error", "error": error});
        assert_eq!(start(|_| {}).unwrap().tokens.len(), 1);
        let partly = start(|reply| {
            reply["status"] = json!("error");
            reply["tokens"].as_array_mut().unwrap().push(failed.clone());
        });
        assert_eq!(partly.unwrap().tokens.len(), 2);
        let whole = start(|reply| *reply = failed.clone());
        assert!(matches!(whole, Err(Error::Refused(_))), "{whole:?}");

        let cases: [(&str, Change<'_>, UnusableReply); 12] = [
            ("another user's token", &|it| it["tokens"][0]["user_id"] = json!("v"), OfSomebodyElse),
            ("nobody's token", &|it| it["tokens"][0]["user_id"] = Value::Null, OfSomebodyElse),
            ("a token for no host", &|it| it["tokens"][0]["host"] = Value::Null, NotUnderstood),
            ("another workspace", &|it| it["workspace_id"] = json!("v"), OfSomebodyElse),
            ("no workspace", &|it| it["workspace_id"] = Value::Null, OfSomebodyElse),
            ("another user", &|it| it["user_id"] = json!("v"), OfSomebodyElse),
            ("no user", &|it| it["user_id"] = Value::Null, OfSomebodyElse),
            ("no tokens", &|it| it["tokens"] = json!([]), NotUnderstood),
            ("ok, with a failed one", &|it| it["tokens"] = json!([reply(), failed]), NotUnderstood),
            ("an error, with good ones alone", &|it| it["status"] = json!("error"), NotUnderstood),
            ("an error without one", &|it| *it = json!({"status": "error", "tokens": []}), NotUnderstood),
            ("tokens that are no list", &|it| it["tokens"] = json!({"0": reply()}), NotUnderstood),
        ];
        for (case, change, expected) in cases {
            let refused = start(change);
            assert!(matches!(refused, Err(Error::Reply(found)) if found == expected), "{case}: {refused:?}");
        }
    }

    #[test]
    fn a_login_or_a_report_that_is_neither_taken_nor_refused_is_not_understood() {
        let body = |reply: &Value| Body(reply.to_string().into_bytes());
        let stored = |reply: &Value| stored(&body(reply), "u", "h");
        let report = |reply: &Value| report(&body(reply), "u", "h");
        let error = json!({"code": "internal", "message": "m", "retryable": true});
        assert!(stored(&json!({"status": "ok"})).is_ok());
        assert!(report(&json!({"status": "ok", "result": "held"})).is_ok());
        for echo in [json!({}), json!({"user_id": null, "host": null}), json!({"user_id": "u", "host": "h"})]
        {
            let mut refusal = echo;
            refusal["status"] = json!("error");
            refusal["error"] = error.clone();
            assert!(matches!(stored(&refusal), Err(Error::Refused(_))), "{refusal}");
            assert!(matches!(report(&refusal), Err(Error::Refused(_))), "{refusal}");
            for field in ["user_id", "host"] {
                let mut anothers = refusal.clone();
                anothers[field] = json!("s3cret");
                let (stored, report) = (stored(&anothers), report(&anothers));
                assert!(matches!(stored, Err(Error::Reply(UnusableReply::OfSomebodyElse))), "{anothers}");
                assert!(matches!(report, Err(Error::Reply(UnusableReply::OfSomebodyElse))), "{anothers}");
            }
        }
        for reply in [json!({"status": "error"}), json!({"status": "done"}), json!({}), json!([])] {
            let (stored, report) = (stored(&reply), report(&reply));
            assert!(matches!(stored, Err(Error::Reply(UnusableReply::NotUnderstood))), "{reply}");
            assert!(matches!(report, Err(Error::Reply(UnusableReply::NotUnderstood))), "{reply}");
        }
        for reply in [json!({"status": "ok"}), json!({"status": "ok", "error": error})] {
            let report = report(&reply);
            assert!(matches!(report, Err(Error::Reply(UnusableReply::NotUnderstood))), "{reply}");
        }
    }
}
