//! Carries the requests of the `oauth2` crate over this module's connections, and hands it answers in the strict form of the RFCs.
//!
//! Providers answer in dialects (errors with status 200, forms, scopes with commas), which the crate does not read and `answer` does.
//! Whatever will not change is handed on as a refusal, because the crate goes on polling after any other failure.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, HOST, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode};
use oauth2::{AsyncHttpClient, HttpRequest, HttpResponse};
use serde_json::{Map, Value, json};
use tokio::time::timeout;
use url::{Position, Url};
use zeroize::Zeroizing;

use super::callback::error_code;
use crate::domain::escape::is_printable;
use crate::domain::provider::{Provider, is_safe_page};
use crate::domain::secret::{ExposeSecret, SecretString};
use crate::domain::token::is_usable_token;
use crate::oauth::answer::{Content, ProviderError, read_content};
use crate::oauth::body::receive;
use crate::oauth::client::SendError;
use crate::oauth::connect::ConnectError;
use crate::oauth::connection::Message;
use crate::oauth::detail::RefreshRequest;
use crate::oauth::issued::take_pair;
use crate::oauth::{IssuedPair, TokenClient};

/// How long a code for a device is waited for, whatever the provider says.
const LONGEST_DEVICE_LOGIN: u64 = 30 * 60;

/// The pause between two questions, in seconds: RFC 8628, section 3.2, has 5 where the provider does not say.
const POLL_INTERVAL: u64 = 5;
const LONGEST_POLL_INTERVAL: u64 = 60;

/// Bytes of a page's URL.
const LONGEST_PAGE: usize = 2048;

/// Characters of a code that a person types.
const LONGEST_USER_CODE: usize = 64;

pub(super) struct Transport<'a> {
    client: &'a TokenClient,
    provider: &'a Provider,
    /// A code that is sent, and never told.
    sent: &'a SecretString,
}

/// There is no usable answer now. Another try may bring one.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub(super) struct NoAnswer {
    pub(super) detail: String,
}

impl<'a> Transport<'a> {
    pub(super) const fn new(client: &'a TokenClient, provider: &'a Provider, sent: &'a SecretString) -> Self {
        Self { client, provider, sent }
    }

    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, NoAnswer> {
        let Ok(url) = Url::parse(&request.uri().to_string()) else {
            return Ok(refusal("invalid_url", "the endpoint is not a URL"));
        };
        let endpoint = Endpoint { transport: self, url: &url };
        match timeout(self.client.total_timeout(), endpoint.ask(request)).await {
            Ok(answer) => answer,
            Err(_) => endpoint.unavailable(&format!("no answer within {:?}", self.client.total_timeout())),
        }
    }
}

/// A type of its own and not a closure: the compiler cannot see of a closure's future that another thread may poll it.
impl<'c> AsyncHttpClient<'c> for Transport<'_> {
    type Error = NoAnswer;
    type Future = BoxFuture<'c, Result<HttpResponse, NoAnswer>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        self.send(request).boxed()
    }
}

/// Where one request goes.
struct Endpoint<'a> {
    transport: &'a Transport<'a>,
    url: &'a Url,
}

impl Endpoint<'_> {
    async fn ask(&self, request: HttpRequest) -> Result<HttpResponse, NoAnswer> {
        let Transport { client, provider, .. } = self.transport;
        let reach = match provider.reach(self.url) {
            Ok(reach) => reach,
            Err(error) => return Ok(self.refused("not_sent", &format!("not sent: {error}"))),
        };
        let Ok(message) = message(self.url, request) else {
            return Ok(self.refused("not_sent", "it cannot be sent"));
        };
        let (connection, response) = match client.send(self.url, reach, message).await {
            Ok(answered) => answered,
            Err(error) => return self.not_answered(error),
        };
        let (head, mut body) = response.into_parts();
        let received = receive(&head.headers, &mut body).await;
        if received.leaves_connection_usable() {
            client.keep(self.url, reach, connection);
        }
        self.read(head.status, read_content(received.body()))
    }

    fn read(&self, status: StatusCode, mut content: Content) -> Result<HttpResponse, NoAnswer> {
        let told = status.as_u16();
        if let (true, Content::Object(fields)) = (status.is_success(), &mut content) {
            if let Some(pair) = take_pair(fields, &SecretString::default()) {
                return Ok(ok(&granted(&pair, fields.get("id_token"))));
            }
            if fields.get("device_code").is_some() {
                const UNUSABLE: &str = "the answer has no usable device_code, user_code and verification_uri";
                let device = device(fields).map(|device| ok(&device));
                return Ok(device.unwrap_or_else(|| self.refused("unusable_answer", UNUSABLE)));
            }
        }
        let error = ProviderError::read(&content);
        match (status.as_u16(), error.code()) {
            // A server that fails may say why, and recover.
            (408 | 425 | 429 | 500.., code) if code != Some("slow_down") => {
                self.unavailable(&format!("answered {told}"))
            }
            (300..=399, _) => {
                let why = "redirects are not followed: they would carry the secrets elsewhere";
                Ok(self.refused("redirect", &format!("answered {told}; {why}")))
            }
            (_, Some(code)) => {
                let code = error_code(code);
                let description = error.description().map(|text| format!(" \"{}\"", self.quote(text)));
                let outcome = format!("answered {told} {code}{}", description.unwrap_or_default());
                Ok(self.refused(&code, &format!("{outcome}{}", hint(&code))))
            }
            (200..=299, None) => {
                Ok(self.refused("unusable_answer", &format!("answered {told} without a token")))
            }
            (_, None) => Ok(self.refused("no_endpoint", &format!("answered {told}; check its URL"))),
        }
    }

    fn not_answered(&self, error: SendError) -> Result<HttpResponse, NoAnswer> {
        match error {
            SendError::NotConnected(ConnectError::Host { detail } | ConnectError::Local { detail, .. }) => {
                self.unavailable(&format!("cannot connect: {detail}"))
            }
            SendError::NotConnected(ConnectError::Url { detail } | ConnectError::NotPermitted { detail }) => {
                Ok(self.refused("not_sent", &format!("not sent: {detail}")))
            }
            SendError::BrokeUnsent | SendError::Broke => {
                self.unavailable("the connection closed before an answer came")
            }
        }
    }

    fn unavailable(&self, outcome: &str) -> Result<HttpResponse, NoAnswer> {
        Err(NoAnswer { detail: self.tell(outcome) })
    }

    fn refused(&self, code: &str, outcome: &str) -> HttpResponse {
        refusal(code, &self.tell(outcome))
    }

    /// The URL without user info and query: they may hold secrets.
    fn tell(&self, outcome: &str) -> String {
        let place = &self.url[Position::BeforeHost..Position::AfterPath];
        format!("login at {}://{place}: {outcome}", self.url.scheme())
    }

    /// The provider's words, without what was sent to it and whatever looks like a token.
    fn quote(&self, text: &str) -> String {
        let Transport { provider, sent, .. } = self.transport;
        let request = RefreshRequest {
            provider,
            client_secret: &provider.client_secret,
            refresh_token: sent,
            scopes: &[],
        };
        request.quote(text)
    }
}

/// The crate's request in the form that a server expects, with a body that is wiped once it is sent.
fn message(url: &Url, request: HttpRequest) -> Result<Message, hyper::http::Error> {
    let (mut head, body) = request.into_parts();
    head.uri = url[Position::BeforePath..Position::AfterQuery].parse()?;
    head.headers.insert(HOST, HeaderValue::from_str(&url[Position::BeforeHost..Position::AfterPort])?);
    head.headers
        .insert(USER_AGENT, HeaderValue::from_static(concat!("tokenkeeper/", env!("CARGO_PKG_VERSION"))));
    if let Some(basic) = head.headers.get_mut(AUTHORIZATION) {
        basic.set_sensitive(true);
    }
    let body = Full::new(Bytes::from_owner(Zeroizing::new(body)));
    Ok(Request::from_parts(head, body))
}

/// RFC 6749, section 5.1.
fn granted(pair: &IssuedPair, id_token: Option<&Value>) -> Value {
    let secs = |life: Option<Duration>| life.map(|life| life.as_secs());
    let mut fields = json!({
        "access_token": pair.access_token.expose_secret(),
        // Providers write other words, and git takes the token as it is.
        "token_type": "bearer",
    });
    let members = [
        ("refresh_token", pair.refresh_token.as_ref().map(|token| json!(token.expose_secret()))),
        ("expires_in", secs(pair.expires_in).map(Value::from)),
        ("refresh_token_expires_in", secs(pair.refresh_token_expires_in).map(Value::from)),
        ("id_token", id_token.filter(|token| token.is_string()).cloned()),
        ("scope", pair.scopes.as_ref().map(|scopes| json!(scopes.join(" ")))),
    ];
    for (name, value) in members {
        if let Some(value) = value {
            fields[name] = value;
        }
    }
    fields
}

/// RFC 8628, section 3.2, within bounds. None: it cannot be used.
fn device(fields: &Value) -> Option<Value> {
    let text = |name: &str| fields.get(name)?.as_str();
    let number = |name: &str| {
        let value = fields.get(name)?;
        value.as_u64().or_else(|| value.as_str()?.parse().ok())
    };
    let page = |url: &str| {
        let parsed = Url::parse(url).ok()?;
        (url.len() <= LONGEST_PAGE && is_printable(url) && is_safe_page(&parsed)).then(|| parsed.to_string())
    };
    let device_code = text("device_code").filter(|code| is_usable_token(code))?;
    let is_typed = |code: &&str| (1..=LONGEST_USER_CODE).contains(&code.len()) && is_printable(code);
    let user_code = text("user_code").filter(is_typed)?;
    // Some servers kept the name of a draft.
    let verification_uri = page(text("verification_uri").or_else(|| text("verification_url"))?)?;
    let mut device = Map::new();
    device.insert("device_code".to_owned(), json!(device_code));
    device.insert("user_code".to_owned(), json!(user_code));
    device.insert("verification_uri".to_owned(), json!(verification_uri));
    if let Some(complete) = text("verification_uri_complete").and_then(page) {
        device.insert("verification_uri_complete".to_owned(), json!(complete));
    }
    let expires_in = number("expires_in").unwrap_or(LONGEST_DEVICE_LOGIN).clamp(1, LONGEST_DEVICE_LOGIN);
    let interval = number("interval").unwrap_or(POLL_INTERVAL).clamp(1, LONGEST_POLL_INTERVAL);
    device.insert("expires_in".to_owned(), json!(expires_in));
    device.insert("interval".to_owned(), json!(interval));
    Some(Value::Object(device))
}

fn ok(body: &Value) -> HttpResponse {
    response(StatusCode::OK, body)
}

/// RFC 6749, section 5.2.
fn refusal(code: &str, description: &str) -> HttpResponse {
    response(StatusCode::BAD_REQUEST, &json!({"error": code, "error_description": description}))
}

fn response(status: StatusCode, body: &Value) -> HttpResponse {
    let mut response = HttpResponse::new(body.to_string().into_bytes());
    *response.status_mut() = status;
    response
}

/// What an operator does about it.
fn hint(code: &str) -> &'static str {
    match code {
        "invalid_client" | "incorrect_client_credentials" => {
            "; check the provider's client_id, client_secret and client_auth"
        }
        "unauthorized_client" | "unsupported_grant_type" | "device_flow_disabled" => {
            "; allow this kind of login for the client at the provider"
        }
        "invalid_scope" => "; check login_scopes, and what the client may ask for",
        "redirect_uri_mismatch" => "; register exactly the redirect URI that `tokenkeeper login` prints",
        "bad_verification_code" | "invalid_grant" => {
            "; the code is used, too old, or was made for another redirect URI"
        }
        "expired_token" => "; nobody authorised in time: log in again",
        _ => "",
    }
}
