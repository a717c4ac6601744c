//! How the kinds of SCM differ: paths, client authentication, and the words of their answers.

use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use url::form_urlencoded;

use super::{
    answer::Answer,
    ledger::{IssuedPair, random_token},
};

/// Which SCM the simulated one behaves like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Bitbucket Server / Data Center: kills the old access token at once, refreshes one at a time.
    BitbucketServer,
    /// github.com and GitHub Enterprise Server: errors come with status 200.
    GitHub,
    /// gitlab.com and self-managed GitLab.
    GitLab,
    /// Bitbucket Cloud: very long tokens, the old access token lives on.
    Bitbucket,
    /// An SCM that follows RFC 6749 and nothing else.
    Generic,
}

/// How a client proves who it is (RFC 6749 section 2.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// `Authorization: Basic`.
    Basic,
    /// `client_id` and `client_secret` in the request body.
    Body,
}

/// Why a refresh is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The refresh token is unknown, used or revoked, or the `redirect_uri` is not the registered one.
    InvalidGrant,
    /// Client id or secret are wrong, or came the wrong way.
    InvalidClient,
    /// The request is not a form.
    InvalidRequest,
    /// `grant_type` is not `refresh_token`.
    UnsupportedGrantType,
    /// A login's code is unknown, used, too old, or was made for another client or redirect URI.
    InvalidCode,
    /// Nobody has typed the code yet.
    AuthorizationPending,
    /// The client asks too often.
    SlowDown,
    /// The user said no.
    AccessDenied,
    /// The code for a device is over.
    ExpiredToken,
}

impl Dialect {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::BitbucketServer, Self::GitHub, Self::GitLab, Self::Bitbucket, Self::Generic];

    /// The provider kind in tokenkeeper's words.
    pub fn kind(self) -> &'static str {
        match self {
            Self::BitbucketServer => "bitbucket_server",
            Self::GitHub => "github",
            Self::GitLab => "gitlab",
            Self::Bitbucket => "bitbucket",
            Self::Generic => "generic",
        }
    }

    /// Where the token endpoint is, below the context path.
    pub fn token_path(self) -> &'static str {
        match self {
            Self::BitbucketServer => "/rest/oauth2/latest/token",
            Self::GitHub => "/login/oauth/access_token",
            Self::GitLab => "/oauth/token",
            Self::Bitbucket => "/site/oauth2/access_token",
            Self::Generic => "/token",
        }
    }

    /// Where the authorisation endpoint is, below the context path.
    pub fn authorize_path(self) -> &'static str {
        match self {
            Self::BitbucketServer => "/rest/oauth2/latest/authorize",
            Self::GitHub => "/login/oauth/authorize",
            Self::GitLab => "/oauth/authorize",
            Self::Bitbucket => "/site/oauth2/authorize",
            Self::Generic => "/authorize",
        }
    }

    /// Where codes for other devices are issued, below the context path, if they are.
    pub fn device_path(self) -> Option<&'static str> {
        match self {
            Self::GitHub => Some("/login/device/code"),
            Self::GitLab => Some("/oauth/authorize_device"),
            Self::Generic => Some("/device"),
            Self::BitbucketServer | Self::Bitbucket => None,
        }
    }

    /// How clients authenticate here.
    pub fn client_auth(self) -> ClientAuth {
        match self {
            Self::BitbucketServer | Self::GitHub | Self::GitLab => ClientAuth::Body,
            Self::Bitbucket | Self::Generic => ClientAuth::Basic,
        }
    }

    /// Whether a refresh kills the access token that it replaces.
    pub fn kills_old_token(self) -> bool {
        match self {
            Self::BitbucketServer | Self::GitHub | Self::GitLab => true,
            Self::Bitbucket | Self::Generic => false,
        }
    }

    /// Whether the `redirect_uri` of the authorisation has to come with a refresh.
    pub fn wants_redirect_uri(self) -> bool {
        match self {
            Self::BitbucketServer | Self::GitLab => true,
            Self::GitHub | Self::Bitbucket | Self::Generic => false,
        }
    }

    /// The user name that git sends beside a token.
    pub fn username(self) -> &'static str {
        match self {
            Self::GitHub => "x-access-token",
            Self::BitbucketServer | Self::Bitbucket => "x-token-auth",
            Self::GitLab | Self::Generic => "oauth2",
        }
    }

    /// What an authorisation here allows.
    pub fn scopes(self) -> &'static [&'static str] {
        match self {
            Self::BitbucketServer => &["REPO_WRITE"],
            Self::GitHub => &["repo", "user"],
            Self::GitLab => &["api", "read_user"],
            Self::Bitbucket => &["account", "repository:write"],
            Self::Generic => &["repo"],
        }
    }

    pub(super) fn new_access_token(self) -> String {
        match self {
            Self::GitHub => random_token("ghu_", 36),
            // Bitbucket Cloud issues tokens that do not fit a VARCHAR(2500).
            Self::Bitbucket => random_token("", 2_600),
            Self::BitbucketServer | Self::GitLab | Self::Generic => random_token("", 64),
        }
    }

    pub(super) fn new_refresh_token(self) -> String {
        match self {
            Self::GitHub => random_token("ghr_", 76),
            Self::Bitbucket => random_token("", 18),
            Self::BitbucketServer | Self::GitLab | Self::Generic => random_token("", 64),
        }
    }

    /// The answer that hands out `pair`.
    pub(super) fn granted(self, pair: &IssuedPair, shape: &GrantShape) -> Answer {
        let mut fields = Map::new();
        fields.insert("access_token".to_owned(), json!(pair.access_token));
        fields.insert("token_type".to_owned(), json!(self.token_type()));
        if let Some(seconds) = shape.expires_in {
            fields.insert("expires_in".to_owned(), json!(seconds));
        }
        if shape.with_refresh_token {
            fields.insert("refresh_token".to_owned(), json!(pair.refresh_token));
        }
        fields.insert(self.scope_field().to_owned(), json!(self.scopes().join(self.scope_separator())));
        match self {
            Self::GitHub => {
                fields.insert("refresh_token_expires_in".to_owned(), json!(15_897_600));
            }
            Self::GitLab => {
                fields.insert("created_at".to_owned(), json!(pair.issued_at_ms / 1000));
            }
            Self::BitbucketServer | Self::Bitbucket | Self::Generic => {}
        }
        self.encode(StatusCode::OK, fields, shape.as_json)
    }

    /// The answer that refuses.
    pub(super) fn refused(self, refusal: Refusal, as_json: bool) -> Answer {
        let (status, error, description) = match self {
            Self::GitHub => github_refusal(refusal),
            Self::Bitbucket => bitbucket_refusal(refusal),
            Self::BitbucketServer | Self::GitLab | Self::Generic => standard_refusal(refusal),
        };
        let mut fields = Map::new();
        fields.insert("error".to_owned(), json!(error));
        fields.insert("error_description".to_owned(), json!(description));
        self.encode(status, fields, as_json)
    }

    /// GitHub answers a form unless the client asks for JSON; everybody else answers JSON always.
    fn encode(self, status: StatusCode, fields: Map<String, Value>, as_json: bool) -> Answer {
        if self != Self::GitHub || as_json {
            return Answer::json(status, &Value::Object(fields));
        }
        let mut form = form_urlencoded::Serializer::new(String::new());
        for (name, value) in &fields {
            form.append_pair(name, &value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        }
        Answer::new(status, "application/x-www-form-urlencoded; charset=utf-8", form.finish())
    }

    fn token_type(self) -> &'static str {
        match self {
            Self::GitLab => "Bearer",
            Self::BitbucketServer | Self::GitHub | Self::Bitbucket | Self::Generic => "bearer",
        }
    }

    fn scope_field(self) -> &'static str {
        match self {
            Self::Bitbucket => "scopes",
            Self::BitbucketServer | Self::GitHub | Self::GitLab | Self::Generic => "scope",
        }
    }

    fn scope_separator(self) -> &'static str {
        match self {
            Self::GitHub => ",",
            Self::BitbucketServer | Self::GitLab | Self::Bitbucket | Self::Generic => " ",
        }
    }
}

/// What a positive answer shows of a pair.
#[derive(Clone, Copy, Debug)]
pub(super) struct GrantShape {
    pub(super) as_json: bool,
    pub(super) expires_in: Option<u64>,
    pub(super) with_refresh_token: bool,
}

/// What Bitbucket Data Center answers when it cannot take its cluster-wide lock.
pub(super) fn lock_timeout() -> Answer {
    let message = "The token could not be refreshed: another request holds the cluster lock.";
    let body = json!({"errors": [{"context": null, "message": message, "exceptionName": null}]});
    Answer::json(StatusCode::INTERNAL_SERVER_ERROR, &body)
}

type RefusalWords = (StatusCode, &'static str, &'static str);

/// RFC 6749 section 5.2.
fn standard_refusal(refusal: Refusal) -> RefusalWords {
    match refusal {
        Refusal::InvalidGrant => (
            StatusCode::BAD_REQUEST,
            "invalid_grant",
            "The provided authorization grant is invalid, expired or revoked.",
        ),
        Refusal::InvalidClient => {
            (StatusCode::UNAUTHORIZED, "invalid_client", "Client authentication failed.")
        }
        Refusal::InvalidRequest => (StatusCode::BAD_REQUEST, "invalid_request", "The request is malformed."),
        Refusal::UnsupportedGrantType => {
            (StatusCode::BAD_REQUEST, "unsupported_grant_type", "The grant type is not supported.")
        }
        Refusal::InvalidCode => {
            (StatusCode::BAD_REQUEST, "invalid_grant", "The authorization code is invalid or expired.")
        }
        Refusal::AuthorizationPending => {
            (StatusCode::BAD_REQUEST, "authorization_pending", "The request is still pending.")
        }
        Refusal::SlowDown => (StatusCode::BAD_REQUEST, "slow_down", "Ask less often."),
        Refusal::AccessDenied => (StatusCode::BAD_REQUEST, "access_denied", "The user denied the request."),
        Refusal::ExpiredToken => (StatusCode::BAD_REQUEST, "expired_token", "The code has expired."),
    }
}

/// GitHub says no with status 200:
/// <https://docs.github.com/en/apps/oauth-apps/maintaining-oauth-apps/troubleshooting-oauth-app-access-token-request-errors>.
fn github_refusal(refusal: Refusal) -> RefusalWords {
    let (error, description) = match refusal {
        Refusal::InvalidGrant => ("bad_refresh_token", "The refresh token passed is incorrect or expired."),
        Refusal::InvalidClient => {
            ("incorrect_client_credentials", "The client_id and/or client_secret passed are incorrect.")
        }
        Refusal::InvalidCode => ("bad_verification_code", "The code passed is incorrect or expired."),
        Refusal::InvalidRequest
        | Refusal::UnsupportedGrantType
        | Refusal::AuthorizationPending
        | Refusal::SlowDown
        | Refusal::AccessDenied
        | Refusal::ExpiredToken => {
            let (_, error, description) = standard_refusal(refusal);
            (error, description)
        }
    };
    (StatusCode::OK, error, description)
}

/// Bitbucket Cloud has words of its own: <https://github.com/readthedocs/readthedocs.org/issues/2992>,
/// <https://github.com/harness/harness/issues/1650>.
fn bitbucket_refusal(refusal: Refusal) -> RefusalWords {
    match refusal {
        Refusal::InvalidGrant => (StatusCode::BAD_REQUEST, "invalid_request", "Invalid refresh_token"),
        Refusal::InvalidClient => {
            (StatusCode::BAD_REQUEST, "unauthorized_client", "Invalid OAuth client credentials")
        }
        Refusal::InvalidRequest
        | Refusal::UnsupportedGrantType
        | Refusal::InvalidCode
        | Refusal::AuthorizationPending
        | Refusal::SlowDown
        | Refusal::AccessDenied
        | Refusal::ExpiredToken => standard_refusal(refusal),
    }
}
