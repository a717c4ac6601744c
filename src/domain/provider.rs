//! Providers: SCM installations, what their kind says about them, and what an operator overrode.

mod kind;
mod lifespan;
mod overrides;
mod record;

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use url::Url;

pub use self::kind::{Profile, ProviderKind, TokenEndpoint};
pub use self::lifespan::Lifespan;
pub use self::overrides::Overrides;
pub use self::record::{NoDefault, ProviderRecord};
use crate::domain::clock::Timestamp;
use crate::domain::secret::SecretString;

/// One SCM installation as a worker uses it: the kind's defaults with the operator's overrides applied.
#[derive(Debug, Clone)]
pub struct Provider {
    /// Row id in `auth_provider`.
    pub id: i64,
    /// As it stands in clone URLs; with a port where there is one. Compared byte for byte.
    pub host: String,
    /// Other hosts of the same installation, as requests and clone URLs name them.
    pub other_hosts: Vec<String>,
    /// Which product it is: selects the dialect its token endpoint speaks.
    pub kind: ProviderKind,
    /// OAuth client id.
    pub client_id: String,
    /// OAuth client secret.
    pub client_secret: SecretString,
    /// Others that are tried, one after the other, where the token endpoint does not take the first: while the secret is
    /// being replaced there.
    pub spare_client_secrets: Vec<SecretString>,
    /// Where refresh tokens are exchanged.
    pub token_url: Url,
    /// How we prove to the token endpoint who we are.
    pub client_auth: ClientAuth,
    /// Sent with every refresh where it is set: GitLab wants it, Bitbucket Data Center validates it.
    pub redirect_uri: Option<String>,
    /// The user name that git sends beside the token.
    pub username: String,
    /// Sent with every refresh, beside what OAuth names.
    pub refresh_parameters: Vec<(String, String)>,
    /// Asked with a new access token until it is accepted there: some providers know their newest tokens a moment late.
    pub validate_url: Option<Url>,
    /// How long the old access token works once it was refreshed.
    pub old_token_grace: Lifespan,
    /// For how long from its first use a spent refresh token may be sent again.
    pub refresh_token_grace: Lifespan,
    /// How long an access token lives if the token endpoint does not say. None: not known.
    pub unstated_lifetime: Option<Lifespan>,
    /// How long an unused refresh token lives. None: not known, or for ever.
    pub refresh_token_idle_lifetime: Option<Duration>,
    /// Whether a still valid token is refreshed whenever nobody holds it.
    pub opportunistic_refresh: bool,
    /// Where set, an opportunistic refresh waits until the token expires within this window.
    pub opportunistic_refresh_window: Option<Duration>,
    /// What a required refresh does while somebody else holds the token it would kill.
    pub required_while_reserved: RequiredWhileReserved,
    /// How many refreshes a worker has in flight at this host at once.
    pub max_concurrent_refreshes: usize,
    /// When its settings were applied.
    pub updated_at: Timestamp,
    /// Since when it refuses everybody's refresh token, if it does.
    pub refusing_since: Option<Timestamp>,
}

impl Provider {
    /// Whether a refresh ends the old access token, at once or in a while.
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

/// What a required refresh does while somebody else holds the token, if a refresh ends the old token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequiredWhileReserved {
    /// Refresh: the requester's need wins.
    #[default]
    Refresh,
    /// Wait until the reservation ends if that is within the request's time, else as `GrantRemaining`.
    Wait,
    /// Hand out what is left of the token, with the warning `lifetime_short`.
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
        "http" => match url.host() {
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            Some(url::Host::Domain(name)) => name == "localhost",
            None => false,
        },
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
