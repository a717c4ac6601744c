//! Sends a refresh and receives the answer.

use std::fmt::Display;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use hyper::{Request, Response};
use tokio::time::timeout;
use url::form_urlencoded::{self, Serializer};
use url::{Position, Url};
use zeroize::Zeroizing;

use super::answer::{Answer, read_answer};
use super::body::receive;
use super::connect::{ConnectError, Connector};
use super::connection::{Connection, Message, Pool};
use super::detail::{RefreshRequest, root_cause};
use super::pause::Pause;
use super::{Acted, ClientRefusal, IssuedPair, LocalCause, RefreshError};
use crate::domain::clock::{Clock, Timestamp};
use crate::domain::network::Reach;
use crate::domain::provider::{ClientAuth, Provider};
use crate::domain::secret::{ExposeSecret, SecretString};
use crate::telemetry;
use crate::tls::{ClientTls, TlsError};

/// How long to look for an answer after the timeout. A process that was frozen (SIGSTOP, a paused machine) may find the
/// answer in the socket although the timeout is over. The pair in it must not be lost.
const AFTER_A_FREEZE: Duration = Duration::from_millis(250);

/// Clones share their connections.
#[derive(Clone)]
pub struct TokenClient {
    connector: Arc<Connector>,
    pool: Pool,
    clock: Arc<dyn Clock>,
    total_timeout: Duration,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot set up HTTPS for token endpoints; check that the system's CA certificates are installed")]
pub struct ClientError(#[source] TlsError);

impl TokenClient {
    /// `connect_timeout` includes name lookup and TLS; `total_timeout` is for the whole exchange. Keep the second well
    /// above the first: only a failure to connect proves that the provider was not reached.
    pub fn new(
        connect_timeout: Duration,
        total_timeout: Duration,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ClientError> {
        Self::with_tls(connect_timeout, total_timeout, clock, &ClientTls::default())
    }

    /// The same, trusting other authorities beside those of this machine, or with a client certificate. The files are read
    /// once.
    pub fn with_tls(
        connect_timeout: Duration,
        total_timeout: Duration,
        clock: Arc<dyn Clock>,
        tls: &ClientTls,
    ) -> Result<Self, ClientError> {
        let connector = Connector::new(connect_timeout, tls).map_err(ClientError)?;
        telemetry::local_causes_known(&LocalCause::ALL.map(LocalCause::name));
        Ok(Self { connector: Arc::new(connector), pool: Pool::default(), clock, total_timeout })
    }

    /// One `refresh_token` grant (RFC 6749, section 6): one request, no retries. If the provider refuses the client
    /// secret, the spare ones are tried in turn. `scopes` are the token's, for the kinds of provider that require them.
    ///
    /// Poll the future to its end: a dropped one loses the pair that the provider may have rotated meanwhile.
    pub async fn refresh(
        &self,
        provider: &Provider,
        refresh_token: &SecretString,
        scopes: &[String],
    ) -> Result<IssuedPair, RefreshError> {
        let request =
            RefreshRequest { provider, client_secret: &provider.client_secret, refresh_token, scopes };
        let reach = provider.reach(&provider.token_url).map_err(|error| not_sent(request, &error))?;
        let mut answer = self.ask(request, reach).await;
        for client_secret in &provider.spare_client_secrets {
            if !may_be_about_the_client_secret(&answer, provider) {
                break;
            }
            answer = self.ask(RefreshRequest { client_secret, ..request }, reach).await;
        }
        answer
    }

    async fn ask(&self, request: RefreshRequest<'_>, reach: Reach) -> Result<IssuedPair, RefreshError> {
        // Not the HTTP client's own timeout: it checks the time before the answer.
        let mut exchange = pin!(self.exchange(request, reach));
        if let Ok(answer) = timeout(self.total_timeout, exchange.as_mut()).await {
            return answer;
        }
        timeout(AFTER_A_FREEZE, exchange).await.unwrap_or_else(|_| Err(self.no_answer(request)))
    }

    async fn exchange(&self, request: RefreshRequest<'_>, reach: Reach) -> Result<IssuedPair, RefreshError> {
        let post = post(request).map_err(|error| not_sendable(request, &root_cause(&error)))?;
        let (connection, response) = self
            .send(&request.provider.token_url, reach, post)
            .await
            .map_err(|error| not_answered(request, error))?;
        let (head, mut body) = response.into_parts();
        let received = receive(&head.headers, &mut body).await;
        if received.leaves_connection_usable() {
            self.keep(&request.provider.token_url, reach, connection);
        }
        let status = head.status.as_u16();
        let pause = Pause::read(&head.headers, status, self.clock.now());
        read_answer(request, &Answer { status, pause, body: received.body() })
    }

    /// Sends a request once. Sends it again only if nothing of it was sent, because the server had closed an idle
    /// connection.
    pub(super) async fn send(
        &self,
        url: &Url,
        reach: Reach,
        mut message: Message,
    ) -> Result<(Connection, Response<Incoming>), SendError> {
        let line = (url.origin(), reach);
        loop {
            let used_before = self.pool.take(&line).await;
            let is_new = used_before.is_none();
            let mut connection = if let Some(connection) = used_before {
                connection
            } else {
                self.connector.connect(url, reach).await.map_err(SendError::NotConnected)?
            };
            match connection.send(message).await.map_err(|mut error| error.take_message()) {
                Ok(response) => return Ok((connection, response)),
                Err(Some(unsent)) if !is_new => message = unsent,
                Err(Some(_)) => return Err(SendError::BrokeUnsent),
                Err(None) => return Err(SendError::Broke),
            }
        }
    }

    /// Keeps a connection whose answer was read to its end.
    pub(super) fn keep(&self, url: &Url, reach: Reach, connection: Connection) {
        self.pool.put((url.origin(), reach), connection);
    }

    pub(super) const fn total_timeout(&self) -> Duration {
        self.total_timeout
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn no_answer(&self, request: RefreshRequest<'_>) -> RefreshError {
        unavailable(request, Acted::Unknown, &format!("no answer within {:?}", self.total_timeout))
    }
}

pub(super) enum SendError {
    NotConnected(ConnectError),
    /// Nothing was sent.
    BrokeUnsent,
    Broke,
}

/// Whether another client secret may work. Some kinds of provider refuse the refresh token if the secret is wrong.
fn may_be_about_the_client_secret(answer: &Result<IssuedPair, RefreshError>, provider: &Provider) -> bool {
    match answer {
        Err(RefreshError::Misconfigured { client, .. }) => *client != ClientRefusal::No,
        Err(RefreshError::Refused { .. }) => provider.kind.profile().refuses_for_settings(),
        Ok(_)
        | Err(
            RefreshError::Unavailable { .. } | RefreshError::Unreadable { .. } | RefreshError::Local { .. },
        ) => false,
    }
}

fn post(request: RefreshRequest<'_>) -> Result<Message, hyper::http::Error> {
    let client_secret = request.client_secret;
    let Provider { token_url, client_id, client_auth, .. } = request.provider;
    let post = Request::post(&token_url[Position::BeforePath..Position::AfterQuery])
        .header(HOST, &token_url[Position::BeforeHost..Position::AfterPort])
        .header(USER_AGENT, concat!("tokenkeeper/", env!("CARGO_PKG_VERSION")))
        // Without it GitHub answers in form encoding.
        .header(ACCEPT, "application/json")
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
    let post = match client_auth {
        ClientAuth::Body => post,
        ClientAuth::Basic => post.header(AUTHORIZATION, basic(client_id, client_secret)?),
    };
    post.body(Full::new(Bytes::from_owner(form(request))))
}

/// RFC 6749, section 2.3.1: id and secret are form-encoded before they are joined and base64-encoded.
fn basic(client_id: &str, client_secret: &SecretString) -> Result<HeaderValue, hyper::http::Error> {
    let (id, secret) = (form_encoded(client_id), form_encoded(client_secret.expose_secret()));
    let pair = Zeroizing::new(format!("{}:{}", *id, *secret));
    let header = Zeroizing::new(format!("Basic {}", *Zeroizing::new(BASE64.encode(pair.as_bytes()))));
    let mut header = HeaderValue::from_str(&header)?;
    header.set_sensitive(true);
    Ok(header)
}

fn unavailable(request: RefreshRequest<'_>, acted: Acted, outcome: &str) -> RefreshError {
    RefreshError::Unavailable { acted, retry_after: None, detail: request.tell(outcome) }
}

fn not_sendable(request: RefreshRequest<'_>, why: &str) -> RefreshError {
    let outcome = format!("cannot be sent: {why}; check the provider's token_url");
    RefreshError::Misconfigured { client: ClientRefusal::No, detail: request.tell(&outcome) }
}

fn not_sent(request: RefreshRequest<'_>, why: &dyn Display) -> RefreshError {
    let detail = request.tell(&format!("not sent: {why}"));
    RefreshError::Misconfigured { client: ClientRefusal::No, detail }
}

/// In our own words, because HTTP errors may quote the server.
fn not_answered(request: RefreshRequest<'_>, error: SendError) -> RefreshError {
    match error {
        SendError::NotConnected(error) => not_connected(request, error),
        SendError::BrokeUnsent => {
            unavailable(request, Acted::No, "the connection closed before the request was sent")
        }
        SendError::Broke => {
            unavailable(request, Acted::Unknown, "the connection closed before an answer came")
        }
    }
}

fn not_connected(request: RefreshRequest<'_>, error: ConnectError) -> RefreshError {
    match error {
        ConnectError::Host { detail } => {
            unavailable(request, Acted::No, &format!("cannot connect: {detail}"))
        }
        ConnectError::Url { detail } => not_sendable(request, &detail),
        ConnectError::NotPermitted { detail } => not_sent(request, &detail),
        ConnectError::Local { cause, detail } => {
            telemetry::could_not_ask(cause.name());
            RefreshError::Local { detail: request.tell(&format!("this machine cannot connect: {detail}")) }
        }
    }
}

fn form(request: RefreshRequest<'_>) -> Zeroizing<String> {
    let Provider { client_id, client_auth, redirect_uri, refresh_parameters, .. } = request.provider;
    let scope = scope(request);
    let mut fields =
        vec![("grant_type", "refresh_token"), ("refresh_token", request.refresh_token.expose_secret())];
    match client_auth {
        ClientAuth::Body => {
            fields.extend([
                ("client_id", client_id.as_str()),
                ("client_secret", request.client_secret.expose_secret()),
            ]);
        }
        ClientAuth::Basic => {}
    }
    fields.extend(redirect_uri.as_deref().map(|uri| ("redirect_uri", uri)));
    fields.extend(scope.as_deref().map(|scope| ("scope", scope)));
    fields.extend(refresh_parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())));

    let room = fields.iter().map(|(name, value)| name.len() + 3 * value.len() + 2).sum();
    let mut form = Zeroizing::new(String::with_capacity(room));
    Serializer::new(&mut *form).extend_pairs(fields).finish();
    form
}

/// The `scope` parameter for kinds of provider that require it: the token's scopes if they are known, else all that the
/// user granted. Without `offline_access` (OpenID Connect Core, section 11) there may be no new refresh token. A `scope`
/// in the operator's parameters wins.
fn scope(request: RefreshRequest<'_>) -> Option<String> {
    const OFFLINE_ACCESS: &str = "offline_access";
    let default = request.provider.kind.profile().scope?;
    if request.provider.refresh_parameters.iter().any(|(name, _)| name == "scope") {
        return None;
    }
    let mut scopes: Vec<&str> = request.scopes.iter().map(String::as_str).collect();
    if scopes.is_empty() {
        return Some(default.to_owned());
    }
    if !scopes.contains(&OFFLINE_ACCESS) {
        scopes.push(OFFLINE_ACCESS);
    }
    Some(scopes.join(" "))
}

fn form_encoded(text: &str) -> Zeroizing<String> {
    let mut encoded = Zeroizing::new(String::with_capacity(3 * text.len()));
    encoded.extend(form_urlencoded::byte_serialize(text.as_bytes()));
    encoded
}

#[cfg(test)]
mod tests;
