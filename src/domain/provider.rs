//! Providers: SCM installations, the defaults of their kind, and an operator's overrides.

mod endpoint;
mod kind;
mod lifespan;
mod login;
mod overrides;
mod record;

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use url::Url;

pub use self::endpoint::{EndpointError, is_token_host};
pub use self::kind::{Profile, ProviderKind, TokenEndpoint};
pub use self::lifespan::Lifespan;
pub use self::login::{LoginProfile, LoginSettings, RedirectError, is_safe_page, is_scope};
pub use self::overrides::Overrides;
pub use self::record::{Change, NoDefault, ProviderRecord};
use crate::domain::clock::Timestamp;
use crate::domain::network::names_loopback;
use crate::domain::secret::SecretString;

/// One SCM installation as a worker uses it: the kind's defaults with the operator's overrides applied.
#[derive(Debug, Clone)]
pub struct Provider {
    /// Row id in `auth_provider`.
    pub id: i64,
    /// As in clone URLs, with a port if they have one. Compared byte for byte.
    pub host: String,
    /// Other hosts of the same installation, as requests and clone URLs name them.
    pub other_hosts: Vec<String>,
    /// Hosts beside these that tokens and secrets may be sent to.
    pub token_hosts: Vec<String>,
    /// Whether its hosts may have addresses that are not of the internet.
    pub allow_private_network: bool,
    /// Selects the dialect of the token endpoint.
    pub kind: ProviderKind,
    pub client_id: String,
    pub client_secret: SecretString,
    /// Tried in turn if the token endpoint rejects the first secret, while an operator replaces that one.
    pub spare_client_secrets: Vec<SecretString>,
    /// The token endpoint.
    pub token_url: Url,
    /// How tokenkeeper authenticates at the token endpoint.
    pub client_auth: ClientAuth,
    /// Sent with every refresh if it is set: GitLab requires it, Bitbucket Data Center validates it.
    pub redirect_uri: Option<String>,
    /// The user name that git sends beside the token.
    pub username: String,
    /// Sent with every refresh, in addition to the parameters of OAuth.
    pub refresh_parameters: Vec<(String, String)>,
    /// Called with a new access token until the token is accepted. Some providers know their newest tokens a moment late.
    pub validate_url: Option<Url>,
    /// How long the old access token works after a refresh.
    pub old_token_grace: Lifespan,
    /// How long a spent refresh token may be sent again, counted from its first use.
    pub refresh_token_grace: Lifespan,
    /// How long an access token lives if the token endpoint does not say. None: unknown.
    pub unstated_lifetime: Option<Lifespan>,
    /// How long an unused refresh token lives. None: unknown, or for ever.
    pub refresh_token_idle_lifetime: Option<Duration>,
    /// Whether a still valid token is refreshed whenever nobody holds it.
    pub opportunistic_refresh: bool,
    /// If set, an opportunistic refresh is due only when the token expires within this window.
    pub opportunistic_refresh_window: Option<Duration>,
    /// What a required refresh does while somebody else holds the token that it would revoke.
    pub required_while_reserved: RequiredWhileReserved,
    /// Per worker.
    pub max_concurrent_refreshes: usize,
    /// What an operator says of logins.
    pub login: LoginSettings,
    pub updated_at: Timestamp,
    /// Since when the host has refused everybody's refresh token.
    pub refusing_since: Option<Timestamp>,
}

impl Provider {
    /// Whether a refresh revokes the old access token, at once or after a grace.
    pub const fn kills_old_token(&self) -> bool {
        matches!(self.old_token_grace, Lifespan::Ends(_))
    }
}

/// How the client authenticates at the token endpoint (RFC 6749, section 2.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuth {
    /// `client_id` and `client_secret` in the form body.
    Body,
    /// HTTP Basic.
    Basic,
}

/// What a required refresh does while somebody else holds the token, if a refresh revokes the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequiredWhileReserved {
    /// The requester's need wins.
    #[default]
    Refresh,
    /// Wait for the end of the reservation, if the request's time allows. Otherwise as `GrantRemaining`.
    Wait,
    /// Hand out the token for the rest of its life, with the warning `lifetime_short`.
    GrantRemaining,
}

impl ClientAuth {
    /// The name in provider files and the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Body => "body",
            Self::Basic => "basic",
        }
    }
}

impl RequiredWhileReserved {
    /// The name in provider files and the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refresh => "refresh",
            Self::Wait => "wait",
            Self::GrantRemaining => "grant_remaining",
        }
    }
}

/// A name in the database that no version of this program wrote.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a known value")]
pub struct UnknownName(pub String);

impl FromStr for ClientAuth {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        [Self::Body, Self::Basic]
            .into_iter()
            .find(|auth| auth.name() == name)
            .ok_or_else(|| UnknownName(name.into()))
    }
}

impl FromStr for RequiredWhileReserved {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        [Self::Refresh, Self::Wait, Self::GrantRemaining]
            .into_iter()
            .find(|rule| rule.name() == name)
            .ok_or_else(|| UnknownName(name.into()))
    }
}

/// Whether a token endpoint may be called without TLS: on this machine alone.
pub fn is_safe_token_url(url: &Url) -> bool {
    match url.scheme() {
        "https" => true,
        "http" => names_loopback(url),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_url_without_tls_is_for_loopback_alone() {
        let safe = |url: &str| is_safe_token_url(&Url::parse(url).unwrap());
        assert!(safe("https://git.example.org/token"));
        assert!(
            safe("http://127.0.0.1:7990/token") && safe("http://localhost/t") && safe("http://[::1]:1/t")
        );
        assert!(
            !safe("http://git.example.org/token") && !safe("http://10.0.0.1/t") && !safe("ftp://localhost/t")
        );
        assert!(!safe("http://localhost.example.org/t"));
    }
}
