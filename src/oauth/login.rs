//! Logins: an authorisation code with PKCE (RFC 6749, section 4.1; RFC 7636), or a code that a person types on another device
//! (RFC 8628).
//!
//! The `oauth2` crate writes the URLs and requests, and polls. `transport` sends its requests over this module's own connections,
//! with their bounds on time, size, addresses and redirects, and reads what providers answer. `callback` reads what a browser
//! brings back.

mod callback;
mod identity;
#[cfg(test)]
mod tests;
mod transport;

use std::borrow::Cow;
use std::fmt::{self, Display};
use std::time::Duration;

use chrono::{DateTime, Utc};
use oauth2::basic::{
    BasicErrorResponse, BasicRevocationErrorResponse, BasicTokenIntrospectionResponse, BasicTokenType,
};
use oauth2::{
    AuthType, AuthUrl, AuthorizationCode, ClientId, ClientSecret, CsrfToken, DeviceAuthorizationUrl,
    EndpointNotSet, EndpointSet, ErrorResponseType, ExtraTokenFields, PkceCodeChallenge, PkceCodeVerifier,
    RedirectUrl, RequestTokenError, Scope, StandardDeviceAuthorizationResponse, StandardErrorResponse,
    StandardRevocableToken, StandardTokenResponse, TokenResponse, TokenUrl,
};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use url::Url;

pub use self::callback::{Callback, CallbackError};
pub use self::identity::Account;
use self::identity::{OPENID, account};
use self::transport::{NoAnswer, Transport};
use super::{IssuedPair, TokenClient};
use crate::domain::provider::{ClientAuth, Provider};
use crate::domain::secret::{ExposeSecret, SecretString};

/// Bytes of a state: 256 bits.
const STATE_LEN: u32 = 32;

/// Why there is no pair. The texts hold no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// The provider has no such endpoint.
    #[error("kind {kind} has no {what} that is known; set {setting} in the provider file")]
    NoEndpoint { kind: &'static str, what: &'static str, setting: &'static str },
    /// The provider, or its user, says no.
    #[error("{detail}")]
    Refused { code: String, detail: String },
    /// No usable answer. Another login may succeed.
    #[error("{detail}")]
    Unavailable { detail: String },
}

/// A login that a browser has gone for. It is good for one answer.
pub struct PendingLogin {
    url: Url,
    state: CsrfToken,
    verifier: PkceCodeVerifier,
    redirect_uri: String,
    /// Where an ID token is asked for.
    nonce: Option<CsrfToken>,
}

/// What a login brings.
#[derive(Debug, Clone)]
pub struct LoggedIn {
    pub pair: IssuedPair,
    /// None: the provider does not say.
    pub account: Option<Account>,
}

/// What a person does on another device.
pub struct PendingDevice {
    answer: StandardDeviceAuthorizationResponse,
}

/// Logs users in at one provider.
pub struct Logins<'a> {
    client: &'a TokenClient,
    provider: &'a Provider,
}

type Granted = StandardTokenResponse<MoreFields, BasicTokenType>;

type OAuthClient = oauth2::Client<
    BasicErrorResponse,
    Granted,
    BasicTokenIntrospectionResponse,
    StandardRevocableToken,
    BasicRevocationErrorResponse,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointSet,
>;

/// What an answer may have beside the fields of RFC 6749.
#[derive(Serialize, Deserialize)]
struct MoreFields {
    refresh_token_expires_in: Option<u64>,
    id_token: Option<String>,
}

/// Without the ID token: it names a person.
impl fmt::Debug for MoreFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MoreFields").finish_non_exhaustive()
    }
}

impl ExtraTokenFields for MoreFields {}

impl<'a> Logins<'a> {
    pub const fn at(client: &'a TokenClient, provider: &'a Provider) -> Self {
        Self { client, provider }
    }

    /// Begins a login by a browser, which the provider sends back to `redirect_uri`.
    ///
    /// # Errors
    /// [`LoginError::NoEndpoint`]
    pub fn begin(&self, redirect_uri: &str, scopes: &[String]) -> Result<PendingLogin, LoginError> {
        let endpoint = self
            .provider
            .authorization_url()
            .ok_or_else(|| self.no_endpoint("authorisation endpoint", "authorization_url"))?;
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let client = self.oauth(&self.provider.client_secret).set_auth_uri(AuthUrl::from_url(endpoint));
        let request = client
            .authorize_url(|| CsrfToken::new_random_len(STATE_LEN))
            .add_scopes(scopes.iter().cloned().map(Scope::new))
            .set_pkce_challenge(challenge)
            .set_redirect_uri(Cow::Owned(redirect(redirect_uri)?));
        let nonce = scopes.iter().any(|scope| scope == OPENID).then(|| CsrfToken::new_random_len(STATE_LEN));
        let (url, state) = match &nonce {
            Some(nonce) => request.add_extra_param("nonce", nonce.secret().clone()).url(),
            None => request.url(),
        };
        Ok(PendingLogin { url, state, verifier, redirect_uri: redirect_uri.to_owned(), nonce })
    }

    /// Exchanges the code of a callback for the pair. Other client secrets of the provider are tried where one is refused: a
    /// server checks the client before it uses up the code.
    ///
    /// # Errors
    /// [`LoginError::Refused`], [`LoginError::Unavailable`]
    pub async fn exchange(&self, login: PendingLogin, code: &SecretString) -> Result<LoggedIn, LoginError> {
        let redirect_uri = redirect(&login.redirect_uri)?;
        let transport = Transport::new(self.client, self.provider, code);
        let spare = self.provider.spare_client_secrets.iter();
        let mut answer = Err(LoginError::Unavailable { detail: "nothing was asked".to_owned() });
        for secret in [&self.provider.client_secret].into_iter().chain(spare) {
            let client = self.oauth(secret);
            let granted = client
                .exchange_code(AuthorizationCode::new(code.expose_secret().to_owned()))
                .set_pkce_verifier(PkceCodeVerifier::new(login.verifier.secret().clone()))
                .set_redirect_uri(Cow::Borrowed(&redirect_uri))
                .request_async(&transport)
                .await;
            let nonce = login.nonce.as_ref().map(|nonce| nonce.secret().as_str());
            answer = granted.map_err(failed).and_then(|granted| self.logged_in(&granted, nonce));
            if !matches!(&answer, Err(LoginError::Refused { code, .. }) if is_about_the_client(code)) {
                break;
            }
        }
        answer
    }

    /// Begins a login on another device.
    ///
    /// # Errors
    /// [`LoginError`]
    pub async fn begin_device(&self, scopes: &[String]) -> Result<PendingDevice, LoginError> {
        let endpoint = self
            .provider
            .device_authorization_url()
            .ok_or_else(|| self.no_endpoint("device authorisation endpoint", "device_authorization_url"))?;
        let nothing = SecretString::default();
        let transport = Transport::new(self.client, self.provider, &nothing);
        let client = self.oauth(&self.provider.client_secret);
        let client = client.set_device_authorization_url(DeviceAuthorizationUrl::from_url(endpoint));
        let request = client.exchange_device_code().add_scopes(scopes.iter().cloned().map(Scope::new));
        let answer = request.request_async(&transport).await.map_err(failed)?;
        Ok(PendingDevice { answer })
    }

    /// Asks for the pair until the person has authorised, refused, or let the time pass.
    ///
    /// # Errors
    /// [`LoginError`]
    pub async fn finish_device(&self, device: &PendingDevice) -> Result<LoggedIn, LoginError> {
        let sent = SecretString::from(device.answer.device_code().secret().clone());
        let transport = Transport::new(self.client, self.provider, &sent);
        let client = self.oauth(&self.provider.client_secret);
        let poll = client.exchange_device_access_token(&device.answer).set_time_fn(|| self.date());
        let granted = poll.request_async(&transport, tokio::time::sleep, None).await;
        granted.map_err(failed).and_then(|granted| self.logged_in(&granted, None))
    }

    fn logged_in(&self, granted: &Granted, nonce: Option<&str>) -> Result<LoggedIn, LoginError> {
        let (client_id, now) = (&self.provider.client_id, self.client.now());
        let id_token = granted.extra_fields().id_token.as_deref();
        let account = id_token.map(|id_token| account(id_token, client_id, nonce, now)).transpose()?;
        Ok(LoggedIn { pair: pair(granted), account })
    }

    fn oauth(&self, client_secret: &SecretString) -> OAuthClient {
        let Provider { client_id, client_auth, token_url, .. } = self.provider;
        let auth_type = match client_auth {
            ClientAuth::Body => AuthType::RequestBody,
            ClientAuth::Basic => AuthType::BasicAuth,
        };
        oauth2::Client::new(ClientId::new(client_id.clone()))
            .set_client_secret(ClientSecret::new(client_secret.expose_secret().to_owned()))
            .set_auth_type(auth_type)
            .set_token_uri(TokenUrl::from_url(token_url.clone()))
    }

    fn date(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(self.client.now().as_millis()).unwrap_or_default()
    }

    fn no_endpoint(&self, what: &'static str, setting: &'static str) -> LoginError {
        LoginError::NoEndpoint { kind: self.provider.kind.name(), what, setting }
    }
}

impl PendingLogin {
    /// Where the browser goes.
    pub const fn url(&self) -> &Url {
        &self.url
    }

    /// Whether a callback is about this login. The comparison takes as long for a state that is nearly right.
    pub fn is_answered_by(&self, state: &str) -> bool {
        self.state.secret().as_bytes().ct_eq(state.as_bytes()).into()
    }
}

impl PendingDevice {
    /// Where the person goes. It has TLS or is on this machine.
    pub fn page(&self) -> &str {
        self.answer.verification_uri().as_str()
    }

    /// The same with the code in it, if the provider has that.
    pub fn page_with_code(&self) -> Option<&str> {
        self.answer.verification_uri_complete().map(|page| page.secret().as_str())
    }

    /// What the person types there.
    pub fn user_code(&self) -> &str {
        self.answer.user_code().secret()
    }

    pub fn expires_in(&self) -> Duration {
        self.answer.expires_in()
    }
}

/// Shows nothing that opens anything.
impl fmt::Debug for PendingLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingLogin").field("redirect_uri", &self.redirect_uri).finish_non_exhaustive()
    }
}

fn redirect(uri: &str) -> Result<RedirectUrl, LoginError> {
    RedirectUrl::new(uri.to_owned())
        .map_err(|_| LoginError::Unavailable { detail: "the redirect URI is not a URL".to_owned() })
}

/// Whether another client secret may do.
fn is_about_the_client(code: &str) -> bool {
    matches!(code, "invalid_client" | "incorrect_client_credentials" | "unauthorized_client")
}

fn pair(granted: &Granted) -> IssuedPair {
    let scopes = granted.scopes().map(|scopes| scopes.iter().map(|scope| scope.to_string()).collect());
    IssuedPair {
        access_token: granted.access_token().secret().clone().into(),
        refresh_token: granted.refresh_token().map(|token| token.secret().clone().into()),
        expires_in: granted.expires_in(),
        refresh_token_expires_in: granted.extra_fields().refresh_token_expires_in.map(Duration::from_secs),
        scopes,
    }
}

/// In our own words. What the crate says of an answer that it cannot read may quote it. The words of a refusal are those of
/// `transport`.
fn failed<T: ErrorResponseType + Display>(
    error: RequestTokenError<NoAnswer, StandardErrorResponse<T>>,
) -> LoginError {
    match error {
        RequestTokenError::ServerResponse(refusal) => {
            let code = refusal.error().to_string();
            let detail = refusal.error_description().cloned().unwrap_or_else(|| code.clone());
            LoginError::Refused { code, detail }
        }
        RequestTokenError::Request(NoAnswer { detail }) => LoginError::Unavailable { detail },
        RequestTokenError::Parse(..) | RequestTokenError::Other(_) => {
            LoginError::Unavailable { detail: "the provider's answer cannot be read".to_owned() }
        }
    }
}
