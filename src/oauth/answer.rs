//! What an answer of a token endpoint means: status, content type and body together, per kind of provider.
//!
//! Pure: [`read_answer`] gets all that came over the wire as values.

use std::time::Duration;

use chrono::DateTime;
use serde_json::{Map, Value};
use url::form_urlencoded;

use super::detail::RefreshRequest;
use super::issued::take_pair;
use super::{Acted, IssuedPair, RefreshError};
use crate::clock::Timestamp;
use crate::provider::ProviderKind;

/// What came back for a [`RefreshRequest`].
pub(super) struct Answer<'a> {
    pub(super) status: u16,
    pub(super) content_type: Option<&'a str>,
    pub(super) retry_after: Option<Duration>,
    pub(super) body: Body<'a>,
}

/// How much of the body came.
pub(super) enum Body<'a> {
    Whole(&'a [u8]),
    /// More than we read.
    TooLong,
    /// The connection broke, or the time ran out, before its end.
    CutOff,
}

/// The new pair, or why there is none.
pub(super) fn read_answer(
    request: RefreshRequest<'_>,
    answer: &Answer<'_>,
) -> Result<IssuedPair, RefreshError> {
    let mut content = read_content(answer);
    if let (200..=299, Content::Object(fields)) = (answer.status, &mut content)
        && let Some(pair) = take_pair(fields, request.refresh_token)
    {
        return Ok(pair);
    }
    Err(Failure { request, answer, content: &content, error: ProviderError::read(&content) }.read())
}

/// `Retry-After` (RFC 9110, section 10.2.3): seconds, or a date, of which the obsolete forms are not read.
pub(super) fn read_retry_after(header: &str, now: Timestamp) -> Option<Duration> {
    let header = header.trim();
    if let Ok(seconds) = header.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = DateTime::parse_from_rfc2822(header).ok()?;
    Some(Timestamp::from_millis(date.timestamp_millis()).since(now))
}

/// An answer without a new pair.
struct Failure<'a> {
    request: RefreshRequest<'a>,
    answer: &'a Answer<'a>,
    content: &'a Content,
    error: ProviderError<'a>,
}

impl Failure<'_> {
    /// Only a complete answer that says so refuses anything. A server error is the provider's own word that it
    /// failed, but not from a gateway: behind that the provider may have acted.
    fn read(&self) -> RefreshError {
        match self.answer.status {
            200..=299 => self.read_success(),
            300..=399 => {
                self.no_token_endpoint("redirects are not followed: they would carry the secrets elsewhere")
            }
            // RFC 9110, sections 15.6.3 and 15.6.5, and what Cloudflare says where the origin's answer got lost.
            502 | 504 | 520 | 522 | 524 => {
                self.unavailable(Acted::Unknown, "a gateway lost the provider's answer")
            }
            408 | 425 | 429 | 500..=599 => self.unavailable(Acted::No, ""),
            _ => self.read_refusal(),
        }
    }

    /// A 2xx: an error all the same, as GitHub does it, or a page that is no token endpoint's. Where it is neither,
    /// the provider may have rotated the pair: it said that it succeeded.
    fn read_success(&self) -> RefreshError {
        let lost = |why| self.unavailable(Acted::Unknown, why);
        match self.content {
            Content::Object(_) if self.error.code.is_some() => self.refusal(),
            Content::Object(_) => lost("the answer has no usable access_token"),
            Content::Garbled => lost("the answer is no readable JSON object"),
            Content::TooLong => lost("the answer is too long to be a token"),
            Content::CutOff => lost("the answer broke off"),
            Content::Page => self.no_token_endpoint("that is a page, not the answer of a token endpoint"),
        }
    }

    /// A 4xx. What broke off may have been a refusal of the refresh token: ask again rather than guess.
    fn read_refusal(&self) -> RefreshError {
        match self.content {
            Content::CutOff => self.unavailable(Acted::No, "the answer broke off"),
            Content::Object(_) | Content::Garbled | Content::TooLong | Content::Page => self.refusal(),
        }
    }

    fn refusal(&self) -> RefreshError {
        let (kind, status) = (self.request.provider.kind, self.answer.status);
        match meaning(kind, &self.error) {
            Some(Meaning::Refused) => RefreshError::Refused { detail: self.tell(self.refused_hint()) },
            Some(Meaning::Unavailable) => self.unavailable(Acted::No, ""),
            // GitHub's secondary rate limit:
            // https://docs.github.com/rest/using-the-rest-api/rate-limits-for-the-rest-api
            None if status == 403 && self.answer.retry_after.is_some() => self.unavailable(Acted::No, ""),
            Some(Meaning::Misconfigured) | None => {
                RefreshError::Misconfigured { detail: self.tell(misconfigured_hint(status, &self.error)) }
            }
        }
    }

    fn no_token_endpoint(&self, why: &str) -> RefreshError {
        RefreshError::Misconfigured { detail: self.tell(&format!("{why}; check the provider's token_url")) }
    }

    fn unavailable(&self, acted: Acted, why: &str) -> RefreshError {
        RefreshError::Unavailable { acted, retry_after: self.answer.retry_after, detail: self.tell(why) }
    }

    /// `answered 400 invalid_grant "The refresh token is invalid"; what to do`.
    fn tell(&self, hint: &str) -> String {
        let quote = |text| self.request.quote(text);
        let code = self.error.code.map(|code| format!(" {}", quote(code))).unwrap_or_default();
        let description =
            self.error.description.map(|text| format!(" \"{}\"", quote(text))).unwrap_or_default();
        let hint = if hint.is_empty() { String::new() } else { format!("; {hint}") };
        self.request.tell(&format!("answered {}{code}{description}{hint}", self.answer.status))
    }

    /// GitLab and Bitbucket Data Center spell a missing redirect URI `invalid_grant` too, and name nothing.
    fn refused_hint(&self) -> &'static str {
        let provider = self.request.provider;
        if provider.kind.profile().wants_redirect_uri && provider.redirect_uri.is_none() {
            "this kind of provider also answers so where the provider has no redirect_uri set"
        } else {
            ""
        }
    }
}

/// What an OAuth error code says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// The refresh token is no good.
    Refused,
    /// Our request or our client is no good.
    Misconfigured,
    /// Not now.
    Unavailable,
}

/// The table of dialects: RFC 6749, section 5.2, and what kinds say in its place. None: the status decides.
fn meaning(kind: ProviderKind, error: &ProviderError<'_>) -> Option<Meaning> {
    Some(match (kind, error.code?) {
        // The second is GitHub's, with status 200:
        // https://docs.github.com/apps/oauth-apps/maintaining-oauth-apps/troubleshooting-oauth-app-access-token-request-errors
        (_, "invalid_grant" | "bad_refresh_token") => Meaning::Refused,
        (ProviderKind::Bitbucket, "invalid_request") if error.says("invalid refresh_token") => {
            Meaning::Refused
        }
        // Gitea and Forgejo: a rotated refresh token, and one that they did not sign.
        (ProviderKind::Generic, "unauthorized_client")
            if error.says("token was already used") || error.says("unable to parse refresh token") =>
        {
            Meaning::Refused
        }
        (
            _,
            "invalid_client"
            | "incorrect_client_credentials"
            | "unauthorized_client"
            | "application_suspended"
            | "invalid_request"
            | "invalid_scope"
            | "unsupported_grant_type"
            | "redirect_uri_mismatch",
        ) => Meaning::Misconfigured,
        (_, "temporarily_unavailable" | "server_error" | "slow_down") => Meaning::Unavailable,
        _ => return None,
    })
}

fn misconfigured_hint(status: u16, error: &ProviderError<'_>) -> &'static str {
    match (error.code, status) {
        (Some("invalid_client" | "incorrect_client_credentials"), _) | (None, 401) => {
            "check the provider's client_id, client_secret and client_auth"
        }
        (Some("unauthorized_client" | "unsupported_grant_type" | "application_suspended"), _) => {
            "let the OAuth application at the provider use refresh tokens"
        }
        (Some("redirect_uri_mismatch"), _) => "set the provider's redirect_uri as at authorisation",
        (_, 404 | 405 | 410) => "check the provider's token_url",
        _ => "check how the provider is set up",
    }
}

/// What the provider says went wrong.
#[derive(Default)]
struct ProviderError<'a> {
    code: Option<&'a str>,
    description: Option<&'a str>,
}

impl<'a> ProviderError<'a> {
    /// RFC 6749, section 5.2; descriptions also as the REST envelopes of Bitbucket and GitHub have them.
    fn read(content: &'a Content) -> Self {
        let Content::Object(fields) = content else { return Self::default() };
        let text = |pointer| fields.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty());
        Self {
            code: text("/error"),
            description: ["/error_description", "/error/message", "/errors/0/message", "/message"]
                .into_iter()
                .find_map(text),
        }
    }

    fn says(&self, phrase: &str) -> bool {
        self.description.is_some_and(|text| text.to_ascii_lowercase().contains(phrase))
    }
}

/// What a body turned out to be.
enum Content {
    /// A JSON object, or a form read as one.
    Object(Value),
    /// Meant to be a JSON object.
    Garbled,
    /// Something else.
    Page,
    TooLong,
    CutOff,
}

/// The body counts more than its label: a pair under the label `text/plain` is still a pair.
fn read_content(answer: &Answer<'_>) -> Content {
    let body = match answer.body {
        Body::Whole(body) => body,
        Body::TooLong => return Content::TooLong,
        Body::CutOff => return Content::CutOff,
    };
    let label = answer.content_type.unwrap_or_default().to_ascii_lowercase();
    // GitHub's default, where something on the way took the Accept header off.
    if label.starts_with("application/x-www-form-urlencoded") {
        return Content::Object(read_form(body));
    }
    match serde_json::from_slice::<Value>(body) {
        Ok(fields) if fields.is_object() => Content::Object(fields),
        _ if label.contains("json") => Content::Garbled,
        _ if matches!(body.trim_ascii_start().first(), None | Some(b'{')) => Content::Garbled,
        _ => Content::Page,
    }
}

fn read_form(body: &[u8]) -> Value {
    let fields = form_urlencoded::parse(body).into_owned();
    fields.map(|(name, value)| (name, Value::String(value))).collect::<Map<_, _>>().into()
}

#[cfg(test)]
mod tests;
