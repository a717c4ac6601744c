//! The token endpoint: `grant_type=refresh_token` (RFC 6749 section 6). Those of a login go on to `login`.

use std::{collections::HashMap, sync::Arc};

use axum::{
    body::{Body, Bytes},
    extract::{ConnectInfo, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use url::form_urlencoded;

use super::{
    Scm,
    answer::Answer,
    authorization::basic_credentials,
    connection::ConnectionCloser,
    dialect::{ClientAuth, GrantShape, Refusal, lock_timeout},
    fault::Fault,
    gate::Passage,
    ledger::{IssuedPair, Rotation},
    login,
    options::{Connections, SpentRefreshToken},
    traffic::RefreshOutcome,
};

/// Well over the 64 KiB that tokenkeeper reads of an answer.
const OVERSIZED_BYTES: usize = 256 * 1024;

/// Serves one request. The work goes on in a task of its own when the client leaves, as it does in a server
/// that looks at its connection only when it writes the answer.
pub(super) async fn serve(
    State(scm): State<Arc<Scm>>,
    ConnectInfo(connection): ConnectInfo<ConnectionCloser>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let request = TokenRequest::read(&headers, &body);
    if login::is_login(&request) {
        return login::grant(&scm, &request).into_response();
    }
    let sent = scm.pair_of_refresh_token(request.field("refresh_token"));
    let user = sent.as_ref().map(|(user, _)| user.clone());
    let mut flight = scm.traffic.begin(sent);
    let connections = scm.options.connections;
    let work = tokio::spawn(react(scm, request, user, flight.index()));
    match work.await.expect("the token endpoint's work") {
        Reaction::Answer(outcome, mut response) => {
            flight.finish(outcome);
            if connections == Connections::Closed {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            response
        }
        Reaction::Close => {
            flight.finish(RefreshOutcome::Failed);
            connection.close();
            Body::empty().into_response()
        }
        Reaction::Silence => {
            flight.will_fail();
            std::future::pending().await
        }
    }
}

/// A pair, cut and mangled by what stands before the SCM.
const UNREADABLE: &str =
    r#"{"access_token":{"masked":true},"refresh_token":{"masked":true},"expires_in":7200}"#;

/// What the client gets to see.
enum Reaction {
    Answer(RefreshOutcome, Response),
    Close,
    Silence,
}

impl Reaction {
    fn failed(answer: impl IntoResponse) -> Self {
        Self::Answer(RefreshOutcome::Failed, answer.into_response())
    }
}

async fn react(scm: Arc<Scm>, request: TokenRequest, user: Option<String>, index: usize) -> Reaction {
    if scm.refresh_gate.pass().await == Passage::TurnBack {
        return Reaction::Close;
    }
    let dialect = scm.options.dialect;
    let as_json = request.accepts_json;
    match scm.take_fault(user.as_deref()) {
        None => act(&scm, &request, index).await.into_reaction(),
        Some(Fault::Slow(delay)) => {
            tokio::time::sleep(delay).await;
            act(&scm, &request, index).await.into_reaction()
        }
        Some(Fault::CloseAfter) => {
            act(&scm, &request, index).await;
            Reaction::Close
        }
        Some(Fault::Truncated) => {
            let acted = act(&scm, &request, index).await;
            Reaction::failed(acted.answer.into_truncated_response())
        }
        Some(Fault::Unreadable) => {
            act(&scm, &request, index).await;
            Reaction::failed(Answer::new(StatusCode::OK, "application/json", UNREADABLE))
        }
        Some(Fault::CloseBefore) => Reaction::Close,
        Some(Fault::Hang) => Reaction::Silence,
        Some(Fault::InvalidGrant) => Reaction::failed(dialect.refused(Refusal::InvalidGrant, as_json)),
        Some(Fault::InvalidClient) => Reaction::failed(dialect.refused(Refusal::InvalidClient, as_json)),
        Some(Fault::Status(status)) => Reaction::failed(error_answer(status)),
        Some(Fault::TooManyRequests) => Reaction::failed(error_answer(429)),
        Some(Fault::RetryAfter { status, seconds }) => {
            Reaction::failed(error_answer(status).with_header(header::RETRY_AFTER, seconds.to_string()))
        }
        Some(Fault::Html) => Reaction::failed(login_page()),
        Some(Fault::Redirect) => Reaction::failed(
            Answer::new(StatusCode::FOUND, "text/html", "").with_header(header::LOCATION, scm.url("/login")),
        ),
        Some(Fault::Oversized) => Reaction::failed(oversized_answer().into_chunked_response()),
        Some(Fault::Raw { status, content_type, body }) => {
            Reaction::failed(Answer::new(status_code(status), &content_type, body))
        }
    }
}

/// What the SCM did and would say.
struct Acted {
    outcome: RefreshOutcome,
    answer: Answer,
}

impl Acted {
    fn into_reaction(self) -> Reaction {
        Reaction::Answer(self.outcome, self.answer.into_response())
    }
}

/// Refreshes as the SCM does that nothing is wrong with.
async fn act(scm: &Scm, request: &TokenRequest, index: usize) -> Acted {
    let _lock = match scm.options.refresh_lock_timeout {
        None => None,
        Some(timeout) => match tokio::time::timeout(timeout, scm.refresh_lock.lock()).await {
            Ok(lock) => Some(lock),
            Err(_) => return Acted { outcome: RefreshOutcome::Failed, answer: lock_timeout() },
        },
    };
    let _work = scm.traffic.work();
    if !scm.options.latency.is_zero() {
        tokio::time::sleep(scm.options.latency).await;
    }
    let dialect = scm.options.dialect;
    match check(scm, request).and_then(|()| rotate(scm, request.field("refresh_token"), index)) {
        Ok(pair) => {
            let shape = GrantShape {
                as_json: request.accepts_json,
                expires_in: (!scm.options.omit_expires_in).then_some(scm.options.token_lifetime.as_secs()),
                with_refresh_token: !scm.options.omit_refresh_token,
            };
            Acted { outcome: RefreshOutcome::Accepted, answer: dialect.granted(&pair, &shape) }
        }
        Err(refusal) => {
            Acted { outcome: RefreshOutcome::Refused, answer: dialect.refused(refusal, request.accepts_json) }
        }
    }
}

/// Everything that is wrong with a request apart from its refresh token.
fn check(scm: &Scm, request: &TokenRequest) -> Result<(), Refusal> {
    if !request.is_form {
        return Err(Refusal::InvalidRequest);
    }
    request.check_client(scm)?;
    if request.field("grant_type") != "refresh_token" {
        return Err(Refusal::UnsupportedGrantType);
    }
    match &scm.options.redirect_uri {
        Some(registered) if request.field("redirect_uri") != registered => Err(Refusal::InvalidGrant),
        Some(_) | None => Ok(()),
    }
}

fn rotate(scm: &Scm, refresh_token: &str, index: usize) -> Result<IssuedPair, Refusal> {
    let options = &scm.options;
    let rotation = Rotation {
        kills_old_token: options.kills_old_token,
        keeps_refresh_token: options.omit_refresh_token,
        accepts_spent: options.spent_refresh_token == SpentRefreshToken::Accepted,
    };
    let now_ms = (options.clock)();
    let expires_at_ms = now_ms + scm.lifetime_ms();
    let pair = scm.ledger().rotate(options.dialect, refresh_token, rotation, now_ms, expires_at_ms);
    let pair = pair.ok_or(Refusal::InvalidGrant)?;
    scm.traffic.rotated(index, pair.number);
    Ok(pair)
}

/// What a client sent to the token endpoint.
pub(super) struct TokenRequest {
    form: HashMap<String, String>,
    basic: Option<(String, String)>,
    is_form: bool,
    accepts_json: bool,
}

impl TokenRequest {
    pub(super) fn read(headers: &HeaderMap, body: &[u8]) -> Self {
        Self {
            form: form_urlencoded::parse(body).into_owned().collect(),
            basic: basic_credentials(headers),
            is_form: header_contains(headers, header::CONTENT_TYPE, "application/x-www-form-urlencoded"),
            accepts_json: header_contains(headers, header::ACCEPT, "application/json"),
        }
    }

    /// Empty where the client did not send it.
    pub(super) fn field(&self, name: &str) -> &str {
        self.form.get(name).map_or("", String::as_str)
    }

    pub(super) fn accepts_json(&self) -> bool {
        self.accepts_json
    }

    /// Client id and secret, where this SCM wants them.
    pub(super) fn check_client(&self, scm: &Scm) -> Result<(), Refusal> {
        let (id, secret) = match scm.options.client_auth {
            ClientAuth::Body => (self.field("client_id"), self.field("client_secret")),
            ClientAuth::Basic => {
                self.basic.as_ref().map_or(("", ""), |(id, secret)| (id.as_str(), secret.as_str()))
            }
        };
        let is_ours = id == scm.options.client_id && secret == scm.options.client_secret;
        is_ours.then_some(()).ok_or(Refusal::InvalidClient)
    }
}

fn header_contains(headers: &HeaderMap, name: header::HeaderName, text: &str) -> bool {
    headers.get(name).and_then(|value| value.to_str().ok()).is_some_and(|value| value.contains(text))
}

/// The page that a person would log in on.
pub(super) fn login_page() -> Answer {
    let page = "<!DOCTYPE html><html><head><title>Log in</title></head><body><h1>Log in</h1></body></html>";
    Answer::new(StatusCode::OK, "text/html; charset=utf-8", page)
}

/// A good answer in every respect but its length.
fn oversized_answer() -> Answer {
    let body = serde_json::json!({
        "access_token": "x".repeat(OVERSIZED_BYTES), "token_type": "bearer", "expires_in": 7200,
    });
    Answer::json(StatusCode::OK, &body)
}

fn error_answer(status: u16) -> Answer {
    Answer::json(status_code(status), &serde_json::json!({}))
}

fn status_code(status: u16) -> StatusCode {
    StatusCode::from_u16(status).expect("a fault with a status that HTTP has")
}
