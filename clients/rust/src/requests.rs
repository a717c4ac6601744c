//! The four kinds of request, as they are put together.

use std::time::Duration;

use serde::Serialize;

use crate::ask::{Message, Question, Terms};
use crate::client::Client;
use crate::error::Error;
use crate::kind::MessageKind;
use crate::progress::Progress;
use crate::reply::{self, Body, Report, Token, Workspace};
use crate::seal::ReplyKey;
use crate::wire;

/// What every request can be told.
macro_rules! terms {
    ($name:ident, $kind:ident) => {
        impl $name<'_> {
            /// How long it may take, from 1 ms to 24 h; asking again included. Default: that of the options.
            pub fn timeout(mut self, timeout: Duration) -> Self {
                self.terms.timeout = timeout;
                self
            }

            /// How often it is asked again within its time after an error that is retryable. Waits as long as the worker says, at
            /// least. Default: that of the options.
            pub fn retries(mut self, retries: u32) -> Self {
                self.terms.retries = retries;
                self
            }

            /// The W3C trace context, which the worker copies to its reply. A malformed one is left out.
            pub fn traceparent(mut self, traceparent: impl Into<String>) -> Self {
                self.terms.traceparent = Some(traceparent.into()).filter(|text| is_traceparent(text));
                self
            }

            /// Says how far the request has come, to somebody who may stop waiting for it.
            pub fn progress(mut self, progress: &Progress) -> Self {
                self.terms.progress = progress.clone();
                self
            }

            fn question(&self) -> Question<'_> {
                let Self { client, user, terms, .. } = self;
                Question { client, kind: MessageKind::$kind, user, terms }
            }
        }
    };
}

terms!(TokenRequest, TokenRequest);
terms!(WorkspaceRequest, WorkspaceStart);
terms!(ReportRequest, TokenReport);

/// What a request for tokens can be told besides.
macro_rules! tokens {
    ($name:ident) => {
        impl $name<'_> {
            /// How long from now each token must work, in whole seconds (rounded up) from 1 s to 24 h. Default: the worker decides.
            pub fn lifetime(self, lifetime: Duration) -> Self {
                Self { lifetime: Some(lifetime), ..self }
            }

            /// Whether the broker must not read the tokens: they are sealed to a key pair that is made for this request, and opened
            /// here. Default: that of the options.
            pub fn sealed(mut self, sealed: bool) -> Self {
                self.terms.sealed = sealed;
                self
            }
        }
    };
}

tokens!(TokenRequest);
tokens!(WorkspaceRequest);

mod store;

pub use self::store::StoreRequest;

/// A request for one token.
#[derive(Debug, Clone)]
#[must_use = "a request does nothing until it is sent"]
pub struct TokenRequest<'c> {
    client: &'c Client,
    user: String,
    host: String,
    lifetime: Option<Duration>,
    terms: Terms,
}

impl<'c> TokenRequest<'c> {
    pub(crate) fn new(client: &'c Client, user: String, host: String) -> Self {
        Self { client, user, host, lifetime: None, terms: Terms::of(client.options()) }
    }

    /// Waits for the token.
    ///
    /// # Errors
    /// Those [of every request](Error#of-every-request).
    pub async fn send(self) -> Result<Token, Error> {
        self.ask(|body| reply::token(body, &self.user, &self.host), |_| None).await
    }

    /// The reply as it came, errors included.
    ///
    /// # Errors
    /// Those of [`send`](Self::send) but [`Error::Refused`]. A reply about somebody else is [`Error::Reply`] here too.
    pub async fn body(self) -> Result<Body, Error> {
        let read = |body: &Body| {
            reply::check_token(body, &self.user, &self.host)?;
            Ok(body.clone())
        };
        self.ask(read, |_| None).await
    }

    async fn ask<T>(
        &self,
        read: impl Fn(&Body) -> Result<T, Error>,
        pause: impl Fn(&T) -> Option<Duration>,
    ) -> Result<T, Error> {
        let lifetime = self.lifetime.map(whole_seconds).transpose()?;
        let write = || {
            let key = self.terms.sealed.then(ReplyKey::new);
            let body = wire::TokenRequest {
                user_id: &self.user,
                host: &self.host,
                requested_lifetime_secs: lifetime,
                reply_public_key: key.as_ref().map(ReplyKey::public_key),
            };
            message(MessageKind::TokenRequest, &body, key)
        };
        self.question().ask(write, read, pause).await
    }
}

/// A request for the tokens of a workspace.
#[derive(Debug, Clone)]
#[must_use = "a request does nothing until it is sent"]
pub struct WorkspaceRequest<'c> {
    client: &'c Client,
    workspace: String,
    user: String,
    repositories: Vec<String>,
    lifetime: Option<Duration>,
    terms: Terms,
}

impl<'c> WorkspaceRequest<'c> {
    pub(crate) fn new(
        client: &'c Client,
        workspace: String,
        user: String,
        repositories: Vec<String>,
    ) -> Self {
        let terms = Terms::of(client.options());
        Self { client, workspace, user, repositories, lifetime: None, terms }
    }

    /// What there is for each host. It is asked again while the error of a host is retryable, as [`retries`](Self::retries) says;
    /// what the last reply says of each host is the answer.
    ///
    /// # Errors
    /// The errors of single hosts stand in the answer. Where no reply had one: those [of every request](Error#of-every-request).
    pub async fn send(self) -> Result<Workspace, Error> {
        let refused = |workspace: &Workspace| {
            let refusals = workspace.tokens.iter().filter_map(|it| it.token.as_ref().err());
            let retryable = refusals.filter(|refusal| refusal.retryable);
            retryable.map(|refusal| refusal.retry_after.unwrap_or_default()).max()
        };
        self.ask(|body| reply::workspace(body, &self.workspace, &self.user), refused).await
    }

    /// The reply as it came, errors included.
    ///
    /// # Errors
    /// Those of [`send`](Self::send) but [`Error::Refused`]. A reply about somebody else is [`Error::Reply`] here too.
    pub async fn body(self) -> Result<Body, Error> {
        let read = |body: &Body| {
            reply::check_workspace(body, &self.workspace, &self.user)?;
            Ok(body.clone())
        };
        self.ask(read, |_| None).await
    }

    async fn ask<T>(
        &self,
        read: impl Fn(&Body) -> Result<T, Error>,
        pause: impl Fn(&T) -> Option<Duration>,
    ) -> Result<T, Error> {
        if !(1..=16).contains(&self.repositories.len()) {
            return Err(Error::Invalid("a workspace must have 1 to 16 repositories"));
        }
        let lifetime = self.lifetime.map(whole_seconds).transpose()?;
        let write = || {
            let key = self.terms.sealed.then(ReplyKey::new);
            let body = wire::WorkspaceStart {
                workspace_id: &self.workspace,
                user_id: &self.user,
                repositories: &self.repositories,
                requested_lifetime_secs: lifetime,
                reply_public_key: key.as_ref().map(ReplyKey::public_key),
            };
            message(MessageKind::WorkspaceStart, &body, key)
        };
        self.question().ask(write, read, pause).await
    }
}

/// A report of a token that its host rejected.
#[derive(Debug, Clone)]
#[must_use = "a report does nothing until it is sent"]
pub struct ReportRequest<'c> {
    client: &'c Client,
    user: String,
    host: String,
    token_sha256: String,
    terms: Terms,
}

impl<'c> ReportRequest<'c> {
    pub(crate) fn new(client: &'c Client, user: String, host: String, token_sha256: String) -> Self {
        Self { client, user, host, token_sha256, terms: Terms::of(client.options()) }
    }

    /// What came of it.
    ///
    /// # Errors
    /// Those [of every request](Error#of-every-request), and [`Error::ConnectionLost`]: the connection broke, and nobody knows what
    /// came of it.
    pub async fn send(self) -> Result<Report, Error> {
        let write = || {
            let (user_id, host, token_sha256) = (&*self.user, &*self.host, &*self.token_sha256);
            message(MessageKind::TokenReport, &wire::TokenReport { user_id, host, token_sha256 }, None)
        };
        let read = |body: &Body| reply::report(body, &self.user, &self.host);
        self.question().ask(write, read, |_| None).await
    }
}

fn message(kind: MessageKind, body: &impl Serialize, key: Option<ReplyKey>) -> Result<Message, Error> {
    let body = json(body)?;
    if body.len() > kind.longest_body() {
        return Err(Error::Invalid(match kind {
            MessageKind::TokenStore => "a login may be at most 128 KiB",
            MessageKind::TokenRequest | MessageKind::WorkspaceStart | MessageKind::TokenReport => {
                "a request may be at most 64 KiB"
            }
        }));
    }
    Ok(Message { body, key })
}

fn json(body: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(body).map_err(|_| Error::Invalid("the request has no JSON form"))
}

/// Whether a text has the form of a `traceparent`: version, trace, parent and flags, in lower-case hexadecimal digits.
fn is_traceparent(text: &str) -> bool {
    let parts = text.split('-').map(|part| {
        let is_hexadecimal = part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        is_hexadecimal.then_some(part.len())
    });
    parts.eq([2, 32, 16, 2].map(Some))
}

/// Rounded up: the token must work for that long.
fn whole_seconds(lifetime: Duration) -> Result<u64, Error> {
    const MOST: u64 = 86_400;
    let secs = lifetime.as_secs().saturating_add(u64::from(lifetime.subsec_nanos() > 0));
    match secs {
        1..=MOST => Ok(secs),
        _ => Err(Error::Invalid("the lifetime must be from 1 s to 24 h")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_trace_context_is_known() {
        assert!(is_traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        for malformed in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b70-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0\n",
        ] {
            assert!(!is_traceparent(malformed), "{malformed}");
        }
    }
}
