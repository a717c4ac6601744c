//! Sends a refresh and receives its answer.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, Response, redirect, retry};
use rustls::crypto::{CryptoProvider, ring};
use tokio::time::timeout;
use url::form_urlencoded::{self, Serializer};
use zeroize::Zeroizing;

use super::answer::{Answer, Body, read_answer, read_retry_after};
use super::detail::{RefreshRequest, root_cause};
use super::{Acted, IssuedPair, RefreshError};
use crate::clock::Clock;
use crate::provider::{ClientAuth, Provider, is_safe_token_url};
use crate::secret::{ExposeSecret, SecretString};

/// Most bytes of an answer that are read: a pair of the longest tokens fits twice.
const MAX_ANSWER: usize = 64 * 1024;

/// Room for most answers. Wiping costs as much as there is room, whatever was written.
const TYPICAL_ANSWER: usize = 2 * 1024;

/// How long an unused connection is kept: shorter than any common server keeps it (Apache: 5 s). A connection
/// that the server closes in the moment we use it leaves open whether the refresh was done.
const IDLE_CONNECTION: Duration = Duration::from_secs(4);

/// How long is looked for an answer when the time is over. A process that was frozen (SIGSTOP, a paused machine) finds its
/// time over and the answer in the socket, and the pair in it must not be lost.
const AFTER_A_FREEZE: Duration = Duration::from_millis(250);

/// Asks token endpoints. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct TokenClient {
    https: Client,
    loopback: Client,
    clock: Arc<dyn Clock>,
    total_timeout: Duration,
}

/// The HTTPS client could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("could not set up HTTPS for token endpoints; are the system's CA certificates installed?")]
pub struct ClientError(#[source] reqwest::Error);

impl TokenClient {
    /// A client that gives up connecting (name lookup and TLS included) after `connect_timeout`, and the whole
    /// exchange after `total_timeout`. Keep the second well above the first: only a failure to connect is
    /// certain not to have reached the provider.
    pub fn new(
        connect_timeout: Duration,
        total_timeout: Duration,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ClientError> {
        if CryptoProvider::get_default().is_none() {
            // Fails where another thread was faster, which is as good.
            let _ = ring::default_provider().install_default();
        }
        #[expect(clippy::disallowed_methods, reason = "the one home of HTTP clients")]
        let builder = || {
            Client::builder()
                .user_agent(concat!("tokenkeeper/", env!("CARGO_PKG_VERSION")))
                .redirect(redirect::Policy::none())
                // By default a request is sent again after a GOAWAY, which a server may send after it acted on it.
                .retry(retry::never())
                .connect_timeout(connect_timeout)
                .pool_idle_timeout(IDLE_CONNECTION)
        };
        Ok(Self {
            https: builder().build().map_err(ClientError)?,
            // What goes without TLS must not leave this machine, so not to a proxy either. It needs no certificates.
            loopback: builder().no_proxy().tls_certs_only([]).build().map_err(ClientError)?,
            clock,
            total_timeout,
        })
    }

    /// One `refresh_token` grant (RFC 6749, section 6): one request, no retries.
    ///
    /// Once polled it must be polled to its end: dropped half way, it loses the pair that the provider may have
    /// rotated meanwhile.
    ///
    /// # Errors
    /// [`RefreshError`] tells a refused refresh token from a provider that is set up wrong and from one that is
    /// not there.
    pub async fn refresh(
        &self,
        provider: &Provider,
        refresh_token: &SecretString,
    ) -> Result<IssuedPair, RefreshError> {
        let request = RefreshRequest { provider, refresh_token };
        if !is_safe_token_url(&provider.token_url) {
            let detail = request.tell("not asked, since it is not https; correct the provider's token_url");
            return Err(RefreshError::Misconfigured { detail });
        }
        // Not the HTTP client's own timeout: it looks at the time first and at the answer second.
        let mut exchange = pin!(self.exchange(request));
        if let Ok(answer) = timeout(self.total_timeout, exchange.as_mut()).await {
            return answer;
        }
        timeout(AFTER_A_FREEZE, exchange).await.unwrap_or_else(|_| Err(self.no_answer(request)))
    }

    async fn exchange(&self, request: RefreshRequest<'_>) -> Result<IssuedPair, RefreshError> {
        match self.post(request).send().await {
            Ok(response) => self.read(request, response).await,
            Err(error) => Err(unanswered(request, &error)),
        }
    }

    fn no_answer(&self, request: RefreshRequest<'_>) -> RefreshError {
        let detail = request.tell(&format!("no answer within {:?}", self.total_timeout));
        RefreshError::Unavailable { acted: Acted::Unknown, retry_after: None, detail }
    }

    fn post(&self, request: RefreshRequest<'_>) -> RequestBuilder {
        let Provider { token_url, client_id, client_secret, client_auth, .. } = request.provider;
        let client = if token_url.scheme() == "http" { &self.loopback } else { &self.https };
        let post = client
            .post(token_url.clone())
            // GitHub answers in form encoding without it.
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Bytes::from_owner(form(request)));
        match client_auth {
            ClientAuth::Body => post,
            // RFC 6749, section 2.3.1: both are form-encoded before they are joined and base64-encoded.
            ClientAuth::Basic => {
                let secret = form_encoded(client_secret.expose_secret());
                post.basic_auth(form_encoded(client_id).as_str(), Some(secret.as_str()))
            }
        }
    }

    async fn read(
        &self,
        request: RefreshRequest<'_>,
        mut response: Response,
    ) -> Result<IssuedPair, RefreshError> {
        let header = |name: HeaderName| response.headers().get(name)?.to_str().ok().map(str::to_owned);
        let content_type = header(CONTENT_TYPE);
        let retry_after = header(RETRY_AFTER).and_then(|value| read_retry_after(&value, self.clock.now()));
        let mut buffer = Zeroizing::new(Vec::with_capacity(TYPICAL_ANSWER));
        let body = receive(&mut response, &mut buffer).await;
        let status = response.status().as_u16();
        read_answer(request, &Answer { status, content_type: content_type.as_deref(), retry_after, body })
    }
}

/// What follows from a request without an answer. Said in our words once something was sent: the texts of HTTP errors
/// may quote the server.
fn unanswered(request: RefreshRequest<'_>, error: &reqwest::Error) -> RefreshError {
    let (acted, outcome) = if error.is_connect() {
        (Acted::No, format!("could not connect: {}", root_cause(error)))
    } else if error.is_builder() {
        let outcome = format!("could not be asked: {}; check the provider's token_url", root_cause(error));
        return RefreshError::Misconfigured { detail: request.tell(&outcome) };
    } else {
        (Acted::Unknown, "the connection broke before an answer came".to_owned())
    };
    RefreshError::Unavailable { acted, retry_after: None, detail: request.tell(&outcome) }
}

/// Reads what comes, whatever length was announced.
async fn receive<'a>(response: &mut Response, buffer: &'a mut Zeroizing<Vec<u8>>) -> Body<'a> {
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if buffer.len() + chunk.len() > MAX_ANSWER => return Body::TooLong,
            Ok(Some(chunk)) => append(buffer, &chunk),
            Ok(None) => return Body::Whole(buffer),
            Err(_) => return Body::CutOff,
        }
    }
}

/// A buffer that is full is left for a larger one, and wiped: one that grows would leave a copy of a token behind.
fn append(buffer: &mut Zeroizing<Vec<u8>>, chunk: &[u8]) {
    let length = buffer.len() + chunk.len();
    if length > buffer.capacity() {
        let mut larger = Zeroizing::new(Vec::with_capacity(length.next_power_of_two()));
        larger.extend_from_slice(buffer);
        *buffer = larger;
    }
    buffer.extend_from_slice(chunk);
}

fn form(request: RefreshRequest<'_>) -> Zeroizing<String> {
    let Provider { client_id, client_secret, client_auth, redirect_uri, .. } = request.provider;
    let mut fields =
        vec![("grant_type", "refresh_token"), ("refresh_token", request.refresh_token.expose_secret())];
    match client_auth {
        ClientAuth::Body => {
            fields.extend([
                ("client_id", client_id.as_str()),
                ("client_secret", client_secret.expose_secret()),
            ]);
        }
        ClientAuth::Basic => {}
    }
    fields.extend(redirect_uri.as_deref().map(|uri| ("redirect_uri", uri)));

    let room = fields.iter().map(|(name, value)| name.len() + 3 * value.len() + 2).sum();
    let mut form = Zeroizing::new(String::with_capacity(room));
    Serializer::new(&mut *form).extend_pairs(fields).finish();
    form
}

fn form_encoded(text: &str) -> Zeroizing<String> {
    let mut encoded = Zeroizing::new(String::with_capacity(3 * text.len()));
    encoded.extend(form_urlencoded::byte_serialize(text.as_bytes()));
    encoded
}

#[cfg(test)]
mod tests;
