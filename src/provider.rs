//! Providers: SCM installations, what their kind says about them, and what an operator overrode.

pub mod file;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use url::Url;

use crate::clock::Timestamp;
use crate::secret::SecretString;

/// One SCM installation as a worker uses it: the kind's defaults with the operator's overrides applied.
#[derive(Debug, Clone)]
pub struct Provider {
    /// Row id in `auth_provider`.
    pub id: i64,
    /// As it stands in clone URLs; with a port where there is one. Compared byte for byte.
    pub host: String,
    /// Which product it is: selects the dialect its token endpoint speaks.
    pub kind: ProviderKind,
    /// OAuth client id.
    pub client_id: String,
    /// OAuth client secret.
    pub client_secret: SecretString,
    /// Where refresh tokens are exchanged.
    pub token_url: Url,
    /// How we prove to the token endpoint who we are.
    pub client_auth: ClientAuth,
    /// Sent with every refresh where it is set: GitLab wants it, Bitbucket Data Center validates it.
    pub redirect_uri: Option<String>,
    /// The user name that git sends beside the token.
    pub username: String,
    /// Whether a refresh ends the old access token at once.
    pub kills_old_token: bool,
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
    /// Since when it refuses everybody's refresh token; none: it does not.
    pub refusing_since: Option<Timestamp>,
}

/// Which product a provider is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProviderKind {
    /// GitHub and GitHub Enterprise Server.
    Github,
    /// GitLab, hosted or self-managed.
    Gitlab,
    /// Bitbucket Cloud.
    Bitbucket,
    /// Bitbucket Server and Bitbucket Data Center.
    BitbucketServer,
    /// Anything else that follows RFC 6749; nothing is assumed about it.
    Generic,
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

/// What a required refresh does while somebody else's reservation is alive, where refreshing kills the old token.
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

/// What a kind says about its installations (section 7 of the design).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// Path of the token endpoint below the installation's base URL; none: the operator gives the whole URL.
    pub token_path: Option<&'static str>,
    /// How its token endpoint wants the client authenticated; none: the operator says.
    pub client_auth: Option<ClientAuth>,
    /// The user name that git sends beside the token.
    pub username: &'static str,
    /// Whether a refresh ends the old access token. Where it is unknown we assume that it does: a reservation
    /// respected for nothing costs a little time, one that is not costs somebody's clone.
    pub kills_old_token: bool,
    /// Whether opportunistic refresh is on unless the operator says otherwise.
    pub opportunistic_refresh: bool,
    /// Refreshes in flight at once; Bitbucket Data Center serialises them behind one cluster-wide lock.
    pub max_concurrent_refreshes: usize,
    /// Whether a refresh without `redirect_uri` is refused although the refresh token is good.
    pub wants_redirect_uri: bool,
    /// How long an access token lives of which the token endpoint does not say (`expires_in` left out), and the one before
    /// it neither. None: not known.
    pub unstated_lifetime: Option<Duration>,
    /// How long a refresh token lives that nobody uses, where the token endpoint does not say
    /// (`refresh_token_expires_in`). None: not known, or for ever.
    pub refresh_token_idle_lifetime: Option<Duration>,
}

impl Profile {
    /// Whether it answers a wrong client secret or redirect URI as it answers a refresh token that is no good
    /// (`invalid_grant`). Only there may the refusal of everybody be the operator's affair. Elsewhere it is a mass
    /// revocation, as GitHub's in April 2022, and all of them have to log in again.
    pub const fn refuses_for_settings(self) -> bool {
        // The same two kinds do both.
        self.wants_redirect_uri
    }
}

impl ProviderKind {
    /// Every kind, in the order of the design's table.
    pub const ALL: [Self; 5] =
        [Self::Github, Self::Gitlab, Self::Bitbucket, Self::BitbucketServer, Self::Generic];

    /// The kind's name in provider files, the database and lists.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Github => "github",
            Self::Gitlab => "gitlab",
            Self::Bitbucket => "bitbucket",
            Self::BitbucketServer => "bitbucket_server",
            Self::Generic => "generic",
        }
    }

    /// The kind's defaults.
    pub const fn profile(self) -> Profile {
        match self {
            Self::Github => Profile {
                token_path: Some("/login/oauth/access_token"),
                client_auth: Some(ClientAuth::Body),
                username: "x-access-token",
                kills_old_token: true,
                opportunistic_refresh: false,
                max_concurrent_refreshes: 16,
                wants_redirect_uri: false,
                unstated_lifetime: None,
                // docs.github.com, "Refreshing user access tokens": six months, used or not.
                refresh_token_idle_lifetime: Some(Duration::from_hours(24 * 182)),
            },
            Self::Gitlab => Profile {
                token_path: Some("/oauth/token"),
                client_auth: Some(ClientAuth::Body),
                username: "oauth2",
                kills_old_token: true,
                opportunistic_refresh: false,
                max_concurrent_refreshes: 16,
                wants_redirect_uri: true,
                unstated_lifetime: Some(Duration::from_hours(2)),
                refresh_token_idle_lifetime: None,
            },
            Self::Bitbucket => Profile {
                token_path: Some("/site/oauth2/access_token"),
                client_auth: Some(ClientAuth::Basic),
                username: "x-token-auth",
                kills_old_token: false,
                opportunistic_refresh: false,
                max_concurrent_refreshes: 16,
                wants_redirect_uri: false,
                unstated_lifetime: None,
                // Atlassian, "OAuth 2.0 and API authentication changes for Bitbucket Cloud" (in force since 2026-05-04):
                // three months unused.
                refresh_token_idle_lifetime: Some(Duration::from_hours(24 * 90)),
            },
            Self::BitbucketServer => Profile {
                token_path: Some("/rest/oauth2/latest/token"),
                client_auth: Some(ClientAuth::Body),
                username: "x-token-auth",
                kills_old_token: true,
                opportunistic_refresh: true,
                max_concurrent_refreshes: 2,
                wants_redirect_uri: true,
                unstated_lifetime: None,
                // The installation's …oauth2.provider.refresh.token.expiration.seconds, 7776000 unless it is set.
                refresh_token_idle_lifetime: Some(Duration::from_hours(24 * 90)),
            },
            Self::Generic => Profile {
                token_path: None,
                client_auth: None,
                username: "oauth2",
                kills_old_token: true,
                opportunistic_refresh: false,
                max_concurrent_refreshes: 8,
                wants_redirect_uri: false,
                unstated_lifetime: None,
                refresh_token_idle_lifetime: None,
            },
        }
    }
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

impl FromStr for ProviderKind {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| UnknownName(name.into()))
    }
}

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

impl fmt::Display for ProviderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The token endpoint of an installation of `kind` at `host`, where the kind knows it.
pub fn default_token_url(kind: ProviderKind, host: &str) -> Option<Url> {
    let path = kind.profile().token_path?;
    Url::parse(&format!("https://{host}{path}")).ok()
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
    fn names_are_read_back_as_what_they_name() {
        for kind in ProviderKind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        assert_eq!("gitea".parse::<ProviderKind>(), Err(UnknownName("gitea".into())));
    }

    #[test]
    fn opportunistic_refresh_is_on_by_default_for_bitbucket_server_alone() {
        let on: Vec<_> =
            ProviderKind::ALL.into_iter().filter(|kind| kind.profile().opportunistic_refresh).collect();
        assert_eq!(on, [ProviderKind::BitbucketServer]);
    }

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
