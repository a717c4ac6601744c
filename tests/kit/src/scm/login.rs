//! Logins: the authorisation endpoint with its page (RFC 6749 section 4.1, with PKCE, RFC 7636), and codes that a person types on
//! another device (RFC 8628).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use axum::{
    Form,
    extract::{Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::json;
use sha2::{Digest, Sha256};
use url::Url;

use super::{
    IssuedPair, Scm,
    answer::Answer,
    dialect::{GrantShape, Refusal},
    ledger::random_token,
    refresh::TokenRequest,
};

/// How long a code is good for: that of Bitbucket Data Center.
const CODE_LIFETIME: Duration = Duration::from_secs(10);

/// What a browser sent to the authorisation endpoint, or a client to the token endpoint.
pub type Parameters = HashMap<String, String>;

#[derive(Default)]
pub(super) struct Logins(Mutex<Record>);

#[derive(Default)]
struct Record {
    /// Where browsers may be sent back to.
    redirect_uris: Vec<String>,
    /// Every good request of the authorisation endpoint.
    asked: Vec<Parameters>,
    codes: HashMap<String, Code>,
    devices: Vec<Device>,
    slow_downs: usize,
    /// What stands in place of the issuer in the next redirect.
    wrong_issuer: Option<String>,
}

struct Code {
    user: String,
    challenge: String,
    redirect_uri: String,
    issued: Instant,
    /// The pair that it was exchanged for.
    spent: Option<IssuedPair>,
}

struct Device {
    /// What the device polls with.
    code: String,
    user_code: String,
    verdict: Verdict,
}

enum Verdict {
    Pending,
    Allowed(String),
    Denied,
    Used,
}

impl Logins {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.0.lock().expect("the state of logins")
    }

    pub(super) fn register(&self, redirect_uri: &str) {
        self.record().redirect_uris.push(redirect_uri.to_owned());
    }

    pub(super) fn asked(&self) -> Vec<Parameters> {
        self.record().asked.clone()
    }

    pub(super) fn send_issuer(&self, issuer: &str) {
        self.record().wrong_issuer = Some(issuer.to_owned());
    }

    pub(super) fn slow_down(&self, polls: usize) {
        self.record().slow_downs = polls;
    }

    /// What the person types and decides. `None` denies. Whether the code is known.
    pub(super) fn type_code(&self, user_code: &str, user: Option<&str>) -> bool {
        let mut record = self.record();
        let device = record.devices.iter_mut().find(|device| device.user_code == user_code);
        let known = device.is_some();
        if let Some(device) = device {
            device.verdict = user.map_or(Verdict::Denied, |user| Verdict::Allowed(user.to_owned()));
        }
        known
    }

    /// What opens something while it lives.
    pub(super) fn secrets(&self) -> Vec<String> {
        let record = self.record();
        let devices = record.devices.iter().map(|device| device.code.clone());
        record.codes.keys().cloned().chain(devices).collect()
    }
}

/// The page on which a person says yes or no. A request that is wrong gets no redirect: it may be forged.
pub(super) async fn authorize(State(scm): State<Arc<Scm>>, Query(asked): Query<Parameters>) -> Response {
    if let Err(why) = check(&scm, &asked) {
        return (StatusCode::BAD_REQUEST, Html(format!("<h1>Wrong request</h1><p id=\"why\">{why}</p>")))
            .into_response();
    }
    scm.logins.record().asked.push(asked.clone());
    let hidden = ["redirect_uri", "state", "code_challenge"].map(|name| {
        let value = asked.get(name).map_or("", String::as_str);
        // Letters, digits and what URLs have: nothing that leaves an attribute.
        assert!(!value.contains(['"', '<', '&']), "{value}");
        format!("<input type=\"hidden\" name=\"{name}\" value=\"{value}\">")
    });
    let page = format!(
        "<!DOCTYPE html><html><head><title>Authorise</title></head><body><h1>Authorise {}</h1>\
         <form method=\"post\">{}<input name=\"user\" id=\"user\">\
         <button name=\"decision\" value=\"allow\" id=\"allow\">Allow</button>\
         <button name=\"decision\" value=\"deny\" id=\"deny\">Deny</button></form></body></html>",
        scm.options.client_id,
        hidden.join("")
    );
    Html(page).into_response()
}

/// The decision: back to the client.
pub(super) async fn decide(State(scm): State<Arc<Scm>>, Form(decided): Form<Parameters>) -> Response {
    let field = |name: &str| decided.get(name).map_or("", String::as_str);
    let mut record = scm.logins.record();
    if !record.redirect_uris.iter().any(|uri| uri == field("redirect_uri")) {
        return StatusCode::BAD_REQUEST.into_response();
    }
    let mut back = Url::parse(field("redirect_uri")).expect("a registered redirect URI");
    if field("decision") == "allow" {
        let code = random_token("code", 32);
        back.query_pairs_mut().append_pair("code", &code);
        let (user, challenge) = (field("user").to_owned(), field("code_challenge").to_owned());
        let redirect_uri = field("redirect_uri").to_owned();
        record
            .codes
            .insert(code, Code { user, challenge, redirect_uri, issued: Instant::now(), spent: None });
    } else {
        let said = "The user has denied access";
        back.query_pairs_mut().append_pair("error", "access_denied").append_pair("error_description", said);
    }
    let issuer = record.wrong_issuer.take().unwrap_or_else(|| scm.url(""));
    back.query_pairs_mut().append_pair("state", field("state")).append_pair("iss", &issuer);
    (StatusCode::SEE_OTHER, [(header::LOCATION, back.to_string())]).into_response()
}

fn check(scm: &Scm, asked: &Parameters) -> Result<(), &'static str> {
    let field = |name: &str| asked.get(name).map_or("", String::as_str);
    let redirect_uris = &scm.logins.record().redirect_uris;
    if field("client_id") != scm.options.client_id {
        Err("client_id")
    } else if !redirect_uris.iter().any(|uri| uri == field("redirect_uri")) {
        Err("redirect_uri")
    } else if field("response_type") != "code" {
        Err("response_type")
    } else if field("state").len() < 22 {
        Err("state")
    } else if field("code_challenge_method") != "S256" || field("code_challenge").len() != 43 {
        Err("code_challenge")
    } else {
        Ok(())
    }
}

/// Whether the token endpoint's request is one of a login.
pub(super) fn is_login(request: &TokenRequest) -> bool {
    matches!(request.field("grant_type"), "authorization_code" | DEVICE_GRANT)
}

const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// The token endpoint, for a login.
pub(super) fn grant(scm: &Scm, request: &TokenRequest) -> Answer {
    let (dialect, as_json) = (scm.options.dialect, request.accepts_json());
    let granted = request.check_client(scm).and_then(|()| {
        if request.field("grant_type") == DEVICE_GRANT {
            return allowed(scm, request.field("device_code"));
        }
        exchange(scm, request)
    });
    match granted {
        Ok(pair) => {
            let shape = GrantShape {
                as_json,
                expires_in: (!scm.options.omit_expires_in).then_some(scm.options.token_lifetime.as_secs()),
                with_refresh_token: !scm.options.omit_refresh_token,
            };
            dialect.granted(&pair, &shape)
        }
        Err(refusal) => dialect.refused(refusal, as_json),
    }
}

/// A code is good once. Used again, it ends what it was exchanged for (RFC 6749 section 4.1.2).
fn exchange(scm: &Scm, request: &TokenRequest) -> Result<IssuedPair, Refusal> {
    let mut record = scm.logins.record();
    let code = record.codes.get_mut(request.field("code")).ok_or(Refusal::InvalidCode)?;
    if let Some(pair) = &code.spent {
        scm.ledger().kill(&pair.access_token);
        return Err(Refusal::InvalidCode);
    }
    let verifier = BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(request.field("code_verifier")));
    let fits = verifier == code.challenge
        && request.field("redirect_uri") == code.redirect_uri
        && code.issued.elapsed() < CODE_LIFETIME;
    if !fits {
        return Err(Refusal::InvalidCode);
    }
    let pair = scm.authorize(&code.user);
    code.spent = Some(pair.clone());
    Ok(pair)
}

fn allowed(scm: &Scm, device_code: &str) -> Result<IssuedPair, Refusal> {
    let mut record = scm.logins.record();
    if record.slow_downs > 0 {
        record.slow_downs -= 1;
        return Err(Refusal::SlowDown);
    }
    let device = record.devices.iter_mut().find(|device| device.code == device_code);
    let device = device.ok_or(Refusal::InvalidCode)?;
    match &device.verdict {
        Verdict::Pending => Err(Refusal::AuthorizationPending),
        Verdict::Denied => Err(Refusal::AccessDenied),
        Verdict::Used => Err(Refusal::ExpiredToken),
        Verdict::Allowed(user) => {
            let pair = scm.authorize(user);
            device.verdict = Verdict::Used;
            Ok(pair)
        }
    }
}

/// The device authorisation endpoint.
pub(super) async fn begin_device(
    State(scm): State<Arc<Scm>>,
    headers: HeaderMap,
    body: axum::body::Bytes,
) -> Response {
    let request = TokenRequest::read(&headers, &body);
    if let Err(refusal) = request.check_client(&scm) {
        return scm.options.dialect.refused(refusal, request.accepts_json()).into_response();
    }
    let device_code = random_token("", 40);
    let user_code = format!("{}-{}", random_token("", 4), random_token("", 4)).to_uppercase();
    let page = scm.url("/login/device");
    let answer = json!({
        "device_code": device_code, "user_code": user_code, "verification_uri": page,
        "verification_uri_complete": format!("{page}?user_code={user_code}"), "expires_in": 900, "interval": 1,
    });
    scm.logins.record().devices.push(Device { code: device_code, user_code, verdict: Verdict::Pending });
    Answer::json(StatusCode::OK, &answer).into_response()
}
