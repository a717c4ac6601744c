//! What an answer from a token endpoint means: status and body together, per kind of provider.
//!
//! Pure: [`read_answer`] gets everything from the wire as values. `content` reads the body, `members` splits an object
//! into its members.

mod content;
mod members;

use std::time::Duration;

pub(super) use self::content::{Content, read_content};
pub(super) use self::members::End;
use super::detail::RefreshRequest;
use super::issued::take_pair;
use super::pause::Pause;
use super::{Acted, ClientRefusal, IssuedPair, RefreshError};
use crate::domain::provider::ProviderKind;

pub(super) struct Answer<'a> {
    pub(super) status: u16,
    pub(super) pause: Pause,
    pub(super) body: Body<'a>,
}

/// How much of the body came.
#[derive(Debug, Clone, Copy)]
pub(super) enum Body<'a> {
    Whole(&'a [u8]),
    /// Longer than we read.
    TooLong,
    /// The connection closed before the end.
    CutOff(&'a [u8]),
}

/// The pause after a rate limit that names none. GitHub asks for at least a minute.
const DEFAULT_PAUSE: Duration = Duration::from_secs(60);

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
    /// Only a complete answer can refuse the refresh token. After a server error the provider did not act, unless a
    /// gateway sent the error: then the provider behind it may have acted.
    fn read(&self) -> RefreshError {
        match self.answer.status {
            200..=299 => self.read_success(),
            300..=399 => {
                self.no_token_endpoint("redirects are not followed: they would carry the secrets elsewhere")
            }
            // RFC 9110, sections 15.6.3 and 15.6.5, and Cloudflare's codes for a lost answer of the origin server.
            502 | 504 | 520 | 522 | 524 => {
                self.unavailable(Acted::Unknown, "a gateway lost the provider's answer")
            }
            408 | 425 | 429 | 500..=599 => self.unavailable(Acted::No, ""),
            _ => self.read_refusal(),
        }
    }

    /// A 2xx may hold an error, as at GitHub. Otherwise the provider reported success and may have rotated the pair. A
    /// page may come from a proxy in front of it.
    fn read_success(&self) -> RefreshError {
        let why = match self.content {
            Content::Object(_) if self.error.code.is_some() => return self.refusal(),
            Content::Object(_) => "the answer has no usable access_token",
            Content::Garbled => "the answer is not a readable JSON object",
            Content::TooLong => "the answer is too long for a token endpoint",
            Content::CutOff => "the answer is incomplete",
            Content::Page => {
                "the answer is a page, not from a token endpoint; check the provider's token_url"
            }
        };
        RefreshError::Unreadable { detail: self.tell(why) }
    }

    /// A 4xx. An incomplete answer may have been a refusal of the refresh token: ask again rather than guess.
    fn read_refusal(&self) -> RefreshError {
        match self.content {
            Content::CutOff => self.unavailable(Acted::No, "the answer is incomplete"),
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
                client: self.error.client_refusal(status),
                detail: self.tell(misconfigured_hint(status, &self.error)),
            },
        }
    }

    /// GitHub's rate limits. Only its text identifies the secondary one:
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
        RefreshError::Misconfigured { client: ClientRefusal::No, detail }
    }

    fn unavailable(&self, acted: Acted, why: &str) -> RefreshError {
        let retry_after = self.answer.pause.retry_after.or(self.is_rate_limited().then_some(DEFAULT_PAUSE));
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

    /// GitLab and Bitbucket Data Center answer `invalid_grant` for a missing redirect URI too.
    fn refused_hint(&self) -> &'static str {
        let provider = self.request.provider;
        if provider.kind.profile().wants_redirect_uri && provider.redirect_uri.is_none() {
            "this kind of provider also answers this if redirect_uri is missing; set the provider's redirect_uri"
        } else {
            ""
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// The refresh token is not valid.
    Refused,
    /// Our request or our client is not accepted.
    Misconfigured,
    Unavailable,
}

/// The error codes of RFC 6749, section 5.2, and those that providers use instead, in lower case. `None`: the status decides.
fn meaning(kind: ProviderKind, error: &ProviderError<'_>) -> Option<Meaning> {
    use ProviderKind::{Bitbucket, Generic, Gitea};
    Some(match (kind, error.code.as_deref()?) {
        (
            _,
            "invalid_grant"
            // GitHub's, with status 200:
            // https://docs.github.com/apps/oauth-apps/maintaining-oauth-apps/troubleshooting-oauth-app-access-token-request-errors
            | "bad_refresh_token"
            // OpenID Connect Core, section 3.1.2.6: the user must interact. Entra answers a refresh with these:
            // https://learn.microsoft.com/entra/identity-platform/reference-error-codes
            | "interaction_required"
            | "consent_required"
            | "login_required"
            | "account_selection_required"
            // Used by other servers, without a specification.
            | "invalid_refresh_token"
            | "refresh_token_reused"
            | "refresh_token_expired"
            | "expired_token"
            // RFC 6750, section 3.1. The request has only one token.
            | "invalid_token",
        ) => Meaning::Refused,
        (Bitbucket, "invalid_request") if error.says("invalid refresh_token") => Meaning::Refused,
        // Gitea and Forgejo, for a rotated or unknown refresh token, and Atlassian. A client that may not refresh gets
        // another text.
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
        _ if error.client_refusal(status) != ClientRefusal::No => {
            "check the provider's client_id, client_secret and client_auth"
        }
        (Some("unauthorized_client" | "unsupported_grant_type" | "application_suspended"), _) => {
            "allow refresh tokens for the OAuth application at the provider"
        }
        (Some("redirect_uri_mismatch"), _) => {
            "set the provider's redirect_uri to the one used at authorisation"
        }
        (_, 404 | 405 | 410) => "check the provider's token_url",
        _ => "check the provider's settings",
    }
}

/// The error in an answer.
#[derive(Default)]
pub(super) struct ProviderError<'a> {
    /// In lower case, as in RFC 6749; some providers write upper case.
    code: Option<String>,
    description: Option<&'a str>,
}

impl<'a> ProviderError<'a> {
    /// The fields of RFC 6749, section 5.2, else those of common REST envelopes.
    pub(super) fn read(content: &'a Content) -> Self {
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

    pub(super) fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    pub(super) const fn description(&self) -> Option<&'a str> {
        self.description
    }

    fn client_refusal(&self, status: u16) -> ClientRefusal {
        match (self.code.as_deref(), status) {
            (Some("invalid_client" | "incorrect_client_credentials"), _) => ClientRefusal::Certain,
            (None, 401) => ClientRefusal::Perhaps,
            _ => ClientRefusal::No,
        }
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
