//! What an answer of a token endpoint means: status, content type and body together, per kind of provider.
//!
//! Pure: [`read_answer`] gets all that came over the wire as values. `content` reads the body, `members` takes an object
//! apart.

mod content;
mod members;

use std::time::Duration;

use self::content::{Content, read_content};
pub(super) use self::members::End;
use super::detail::RefreshRequest;
use super::issued::take_pair;
use super::pause::Pause;
use super::{Acted, IssuedPair, RefreshError};
use crate::domain::provider::ProviderKind;

/// What came back for a [`RefreshRequest`].
pub(super) struct Answer<'a> {
    pub(super) status: u16,
    pub(super) pause: Pause,
    pub(super) body: Body<'a>,
}

/// How much of the body came.
#[derive(Debug, Clone, Copy)]
pub(super) enum Body<'a> {
    Whole(&'a [u8]),
    /// More than we read.
    TooLong,
    /// The connection broke, or the time ran out, before its end.
    CutOff(&'a [u8]),
}

/// The pause after a rate limit that names none. GitHub asks for a minute at least.
const UNTOLD_PAUSE: Duration = Duration::from_secs(60);

/// The new pair, or why there is none.
pub(super) fn read_answer(
    request: RefreshRequest<'_>,
    answer: &Answer<'_>,
) -> Result<IssuedPair, RefreshError> {
    let mut content = read_content(answer.body);
    if let (200..=299, Content::Object(fields)) = (answer.status, &mut content)
        && let Some(pair) = take_pair(fields, request.refresh_token)
    {
        return Ok(pair);
    }
    Err(Failure { request, answer, content: &content, error: ProviderError::read(&content) }.read())
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

    /// A 2xx can be an error all the same, as GitHub does it. Otherwise the provider may have rotated the pair: it said that
    /// it succeeded. A page may come from a proxy in front of it.
    fn read_success(&self) -> RefreshError {
        let why = match self.content {
            Content::Object(_) if self.error.code.is_some() => return self.refusal(),
            Content::Object(_) => "the answer has no usable access_token",
            Content::Garbled => "the answer is no readable JSON object",
            Content::TooLong => "the answer is too long to be a token",
            Content::CutOff => "the answer broke off",
            Content::Page => {
                "that is a page, not the answer of a token endpoint; check the provider's token_url"
            }
        };
        RefreshError::Unreadable { detail: self.tell(why) }
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
            _ if self.is_rate_limited() => self.unavailable(Acted::No, ""),
            Some(Meaning::Refused) => RefreshError::Refused { detail: self.tell(self.refused_hint()) },
            Some(Meaning::Unavailable) => self.unavailable(Acted::No, ""),
            Some(Meaning::Misconfigured) | None => RefreshError::Misconfigured {
                client_refused: self.error.is_about_the_client(status),
                detail: self.tell(misconfigured_hint(status, &self.error)),
            },
        }
    }

    /// GitHub's limits, of which the secondary one says so in words alone:
    /// <https://docs.github.com/rest/using-the-rest-api/rate-limits-for-the-rest-api>
    fn is_rate_limited(&self) -> bool {
        let Pause { retry_after, exhausted } = self.answer.pause;
        self.answer.status == 403
            && (exhausted
                || self.error.code.is_none() && retry_after.is_some()
                || self.error.says("rate limit")
                || self.error.says("abuse detection"))
    }

    fn no_token_endpoint(&self, why: &str) -> RefreshError {
        let detail = self.tell(&format!("{why}; check the provider's token_url"));
        RefreshError::Misconfigured { client_refused: false, detail }
    }

    fn unavailable(&self, acted: Acted, why: &str) -> RefreshError {
        let retry_after = self.answer.pause.retry_after.or(self.is_rate_limited().then_some(UNTOLD_PAUSE));
        RefreshError::Unavailable { acted, retry_after, detail: self.tell(why) }
    }

    /// `answered 400 invalid_grant "The refresh token is invalid"; what to do`.
    fn tell(&self, hint: &str) -> String {
        let quote = |text| self.request.quote(text);
        let code = self.error.code.as_deref().map(|code| format!(" {}", quote(code))).unwrap_or_default();
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

/// The table of dialects: RFC 6749, section 5.2, and what providers say in its place, in lower case. None: the status decides.
fn meaning(kind: ProviderKind, error: &ProviderError<'_>) -> Option<Meaning> {
    use ProviderKind::{Bitbucket, Generic, Gitea};
    Some(match (kind, error.code.as_deref()?) {
        (
            _,
            "invalid_grant"
            // GitHub's, with status 200:
            // https://docs.github.com/apps/oauth-apps/maintaining-oauth-apps/troubleshooting-oauth-app-access-token-request-errors
            | "bad_refresh_token"
            // OpenID Connect Core, section 3.1.2.6: the user has to be there. Entra answers a refresh with them:
            // https://learn.microsoft.com/entra/identity-platform/reference-error-codes
            | "interaction_required"
            | "consent_required"
            | "login_required"
            | "account_selection_required"
            // Other servers use these names; no specification has them.
            | "invalid_refresh_token"
            | "refresh_token_reused"
            | "refresh_token_expired"
            | "expired_token"
            // RFC 6750, section 3.1: of the only token in the request.
            | "invalid_token",
        ) => Meaning::Refused,
        (Bitbucket, "invalid_request") if error.says("invalid refresh_token") => Meaning::Refused,
        // Gitea and Forgejo (a rotated refresh token, and one that they did not sign), and Atlassian. A client that may
        // not refresh at all hears another text.
        (Generic | Bitbucket | Gitea, "unauthorized_client") if error.names_a_bad_refresh_token() => Meaning::Refused,
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
    match (error.code.as_deref(), status) {
        _ if error.is_about_the_client(status) => {
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
    /// In lower case: RFC 6749 has no other, and some providers do.
    code: Option<String>,
    description: Option<&'a str>,
}

impl<'a> ProviderError<'a> {
    /// RFC 6749, section 5.2; else what is nested in an object or a list, as REST envelopes have it.
    fn read(content: &'a Content) -> Self {
        let Content::Object(fields) = content else { return Self::default() };
        let text = |pointer: &&str| fields.pointer(pointer)?.as_str().filter(|text| !text.is_empty());
        let code = [
            "/error",
            "/error/code",
            "/error/type",
            "/error/error",
            "/errors/0",
            "/errors/0/code",
            "/errors/0/error",
            "/errors/0/type",
            "/error_code",
            "/code",
        ];
        let description = [
            "/error_description",
            "/error/message",
            "/error/error_description",
            "/error/description",
            "/errors/0/message",
            "/errors/0/error_description",
            "/errors/0/description",
            "/errors/0/detail",
            "/message",
        ];
        Self {
            code: code.iter().find_map(text).map(str::to_ascii_lowercase),
            description: description.iter().find_map(text),
        }
    }

    fn is_about_the_client(&self, status: u16) -> bool {
        matches!(
            (self.code.as_deref(), status),
            (Some("invalid_client" | "incorrect_client_credentials"), _) | (None, 401)
        )
    }

    fn says(&self, phrase: &str) -> bool {
        self.description.is_some_and(|text| text.to_ascii_lowercase().contains(phrase))
    }

    fn names_a_bad_refresh_token(&self) -> bool {
        [
            "token was already used",
            "unable to parse refresh token",
            "refresh_token is invalid",
            "refresh token is invalid",
            "invalid refresh_token",
            "invalid refresh token",
            "unknown or invalid refresh token",
        ]
        .iter()
        .any(|phrase| self.says(phrase))
    }
}

#[cfg(test)]
mod tests;
