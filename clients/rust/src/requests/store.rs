//! A `token.store`.

use std::time::Duration;

use chrono::{DateTime, Utc};
use secrecy::SecretString;

use super::{is_traceparent, json, message};
use crate::ask::{Message, Question, Terms};
use crate::client::Client;
use crate::error::Error;
use crate::kind::MessageKind;
use crate::progress::Progress;
use crate::reply::{self, Body, Stored};
use crate::seal::DeploymentKey;
use crate::wire;

terms!(StoreRequest, TokenStore);

/// A login on its way to tokenkeeper.
#[derive(Debug, Clone)]
#[must_use = "a login is not stored until it is sent"]
pub struct StoreRequest<'c> {
    client: &'c Client,
    user: String,
    host: String,
    auth_id: Option<String>,
    auth_name: Option<String>,
    value: SecretString,
    refresh_token: Option<SecretString>,
    username: Option<String>,
    scopes: Option<Vec<String>>,
    expires_at: Option<DateTime<Utc>>,
    refresh_token_expires_at: Option<DateTime<Utc>>,
    seal: Option<DeploymentKey>,
    terms: Terms,
}

impl<'c> StoreRequest<'c> {
    pub(crate) fn new(client: &'c Client, user: String, host: String, value: SecretString) -> Self {
        Self {
            client,
            user,
            host,
            auth_id: None,
            auth_name: None,
            value,
            refresh_token: None,
            username: None,
            scopes: None,
            expires_at: None,
            refresh_token_expires_at: None,
            seal: None,
            terms: Terms::of(client.options()),
        }
    }

    /// The refresh token. Without one the pair cannot be refreshed.
    pub fn refresh_token(self, token: impl Into<SecretString>) -> Self {
        Self { refresh_token: Some(token.into()), ..self }
    }

    /// When the access token expires. Default: never.
    pub fn expires_at(self, date: DateTime<Utc>) -> Self {
        Self { expires_at: Some(date), ..self }
    }

    /// When the refresh token expires. Default: not known.
    pub fn refresh_token_expires_at(self, date: DateTime<Utc>) -> Self {
        Self { refresh_token_expires_at: Some(date), ..self }
    }

    /// The account's id at the provider. Default: the user.
    pub fn auth_id(self, id: impl Into<String>) -> Self {
        Self { auth_id: Some(id.into()), ..self }
    }

    /// The account's display name at the provider.
    pub fn auth_name(self, name: impl Into<String>) -> Self {
        Self { auth_name: Some(name.into()), ..self }
    }

    /// The user name that git sends beside the token. Default: the provider's.
    pub fn username(self, name: impl Into<String>) -> Self {
        Self { username: Some(name.into()), ..self }
    }

    /// The scopes that were granted.
    pub fn scopes(self, scopes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { scopes: Some(scopes.into_iter().map(Into::into).collect()), ..self }
    }

    /// Seals the login to the deployment's public key, so that the broker cannot read it.
    pub fn sealed_to(self, key: &DeploymentKey) -> Self {
        Self { seal: Some(key.clone()), ..self }
    }

    /// Waits until tokenkeeper owns the pair.
    ///
    /// # Errors
    /// Those [of every request](Error#of-every-request), and [`Error::ConnectionLost`]: the connection broke, and nobody knows what
    /// came of it. The same login may be sent again: a repeated one changes nothing, unless a later login was stored in between.
    pub async fn send(self) -> Result<Stored, Error> {
        let read = |body: &Body| reply::stored(body, &self.user, &self.host);
        self.question().ask(|| self.message(), read, |_| None).await
    }

    fn message(&self) -> Result<Message, Error> {
        let login = wire::TokenStore {
            user_id: &self.user,
            host: &self.host,
            auth_id: self.auth_id.as_deref(),
            auth_name: self.auth_name.as_deref(),
            token: wire::Pair {
                value: wire::Secret(&self.value),
                refresh_token: self.refresh_token.as_ref().map(wire::Secret),
                username: self.username.as_deref(),
                scopes: self.scopes.as_deref(),
                expires_at: self.expires_at,
                refresh_token_expires_at: self.refresh_token_expires_at,
            },
        };
        let Some(key) = &self.seal else { return message(MessageKind::TokenStore, &login, None) };
        let sealed = key.seal(&json(&login)?)?;
        let (user_id, host) = (&*self.user, &*self.host);
        let sealed = wire::SealedTokenStore { user_id, host, sealed, key_id: key.id() };
        message(MessageKind::TokenStore, &sealed, None)
    }
}
