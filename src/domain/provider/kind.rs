//! The kinds of providers, and their defaults.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use url::Url;

use super::{ClientAuth, Lifespan, UnknownName};

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
    /// Gitea and Forgejo.
    Gitea,
    /// Azure DevOps Services, with the users of Microsoft Entra.
    AzureDevops,
    /// Anything else that follows RFC 6749. Nothing more is assumed.
    Generic,
}

/// Where a kind has its token endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenEndpoint {
    /// This path at the installation's own host.
    Path(&'static str),
    /// One URL for all installations.
    Url(&'static str),
    /// The operator must say.
    Told,
}

/// A kind's defaults (docs/contract.md, Providers).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    pub token_endpoint: TokenEndpoint,
    /// Hosts of the vendor beside the installation's own that get tokens: its API, its login service.
    pub token_hosts: &'static [&'static str],
    /// None: the operator must say.
    pub client_auth: Option<ClientAuth>,
    pub username: &'static str,
    /// How long the old access token works after a refresh. If that is unknown, zero is the safe assumption: an unneeded wait
    /// for a reservation costs a little time, and a broken reservation costs somebody's clone.
    pub old_token_grace: Lifespan,
    /// How long a spent refresh token may be sent again, as after a lost answer, counted from its first use. If that is
    /// unknown, zero is the safe assumption.
    pub refresh_token_grace: Lifespan,
    /// Whether opportunistic refresh is on unless the operator says otherwise.
    pub opportunistic_refresh: bool,
    /// Refreshes in flight at once; Bitbucket Data Center serialises them behind one cluster-wide lock.
    pub max_concurrent_refreshes: usize,
    /// Whether a refresh without `redirect_uri` is refused although the refresh token is good.
    pub wants_redirect_uri: bool,
    /// The `scope` to send if an entry's scopes are unknown. None: send no scope, and get what was granted before (RFC 6749,
    /// section 6).
    pub scope: Option<&'static str>,
    /// How long an access token lives if neither its answer nor the one before had `expires_in`. None: unknown.
    pub unstated_lifetime: Option<Lifespan>,
    /// How long an unused refresh token lives if the answer has no `refresh_token_expires_in`. None: unknown, or for ever.
    pub refresh_token_idle_lifetime: Option<Duration>,
}

impl Profile {
    /// The profile of an unknown OAuth server.
    const UNKNOWN: Self = Self {
        token_endpoint: TokenEndpoint::Told,
        token_hosts: &[],
        client_auth: None,
        username: "oauth2",
        old_token_grace: Lifespan::NONE,
        refresh_token_grace: Lifespan::NONE,
        opportunistic_refresh: false,
        max_concurrent_refreshes: 8,
        wants_redirect_uri: false,
        scope: None,
        unstated_lifetime: None,
        refresh_token_idle_lifetime: None,
    };

    /// Whether the host answers a wrong client secret or redirect URI with `invalid_grant`, as it answers a dead refresh token.
    /// Only at such a host can a refusal of everybody be a wrong setting. Elsewhere it is a mass revocation, as at GitHub in
    /// April 2022, and all users must log in again.
    pub const fn refuses_for_settings(self) -> bool {
        // The same kinds do both.
        self.wants_redirect_uri
    }
}

impl ProviderKind {
    /// Every kind, in the order of the table in docs/contract.md.
    pub const ALL: [Self; 7] = [
        Self::Github,
        Self::Gitlab,
        Self::Bitbucket,
        Self::BitbucketServer,
        Self::Gitea,
        Self::AzureDevops,
        Self::Generic,
    ];

    /// The kind's name in provider files, the database and lists.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Github => "github",
            Self::Gitlab => "gitlab",
            Self::Bitbucket => "bitbucket",
            Self::BitbucketServer => "bitbucket_server",
            Self::Gitea => "gitea",
            Self::AzureDevops => "azure_devops",
            Self::Generic => "generic",
        }
    }

    pub const fn profile(self) -> Profile {
        match self {
            Self::Github => Profile {
                token_endpoint: TokenEndpoint::Path("/login/oauth/access_token"),
                token_hosts: &["api.github.com"],
                client_auth: Some(ClientAuth::Body),
                username: "x-access-token",
                max_concurrent_refreshes: 16,
                // docs.github.com, "Refreshing user access tokens": access tokens live eight hours, refresh tokens six
                // months, used or not.
                unstated_lifetime: Some(Lifespan::Ends(Duration::from_hours(8))),
                refresh_token_idle_lifetime: Some(Duration::from_hours(24 * 182)),
                ..Profile::UNKNOWN
            },
            Self::Gitlab => Profile {
                token_endpoint: TokenEndpoint::Path("/oauth/token"),
                client_auth: Some(ClientAuth::Body),
                max_concurrent_refreshes: 16,
                wants_redirect_uri: true,
                // docs.gitlab.com, "OAuth 2.0 identity provider API".
                unstated_lifetime: Some(Lifespan::Ends(Duration::from_hours(2))),
                ..Profile::UNKNOWN
            },
            Self::Bitbucket => Profile {
                token_endpoint: TokenEndpoint::Path("/site/oauth2/access_token"),
                token_hosts: &["api.bitbucket.org"],
                client_auth: Some(ClientAuth::Basic),
                username: "x-token-auth",
                // Atlassian, "OAuth 2.0 and API authentication changes for Bitbucket Cloud" (in force since 2026-05-04): a
                // spent refresh token dies ten minutes after its first use, an unused one after three months. The text does
                // not mention the old access token. Atlassian's note on its other products says that it ends, too.
                old_token_grace: Lifespan::secs(600),
                refresh_token_grace: Lifespan::secs(600),
                max_concurrent_refreshes: 16,
                refresh_token_idle_lifetime: Some(Duration::from_hours(24 * 90)),
                ..Profile::UNKNOWN
            },
            Self::BitbucketServer => Profile {
                token_endpoint: TokenEndpoint::Path("/rest/oauth2/latest/token"),
                client_auth: Some(ClientAuth::Body),
                username: "x-token-auth",
                opportunistic_refresh: true,
                max_concurrent_refreshes: 2,
                wants_redirect_uri: true,
                // The installation's …oauth2.provider.refresh.token.expiration.seconds, 7776000 unless it is set.
                refresh_token_idle_lifetime: Some(Duration::from_hours(24 * 90)),
                ..Profile::UNKNOWN
            },
            Self::Gitea => Profile {
                token_endpoint: TokenEndpoint::Path("/login/oauth/access_token"),
                client_auth: Some(ClientAuth::Body),
                // docs.gitea.com, "Configuration Cheat Sheet", section oauth2: ACCESS_TOKEN_EXPIRATION_TIME 3600 s,
                // REFRESH_TOKEN_EXPIRATION_TIME 730 h. Access tokens are signed and not looked up, so they live on; with
                // INVALIDATE_REFRESH_TOKENS a spent refresh token is refused, so it is never sent twice on purpose.
                old_token_grace: Lifespan::Unlimited,
                max_concurrent_refreshes: 16,
                unstated_lifetime: Some(Lifespan::Ends(Duration::from_hours(1))),
                refresh_token_idle_lifetime: Some(Duration::from_hours(730)),
                ..Profile::UNKNOWN
            },
            Self::AzureDevops => Profile {
                token_endpoint: TokenEndpoint::Url(
                    "https://login.microsoftonline.com/common/oauth2/v2.0/token",
                ),
                // learn.microsoft.com, "National clouds", and "Profiles" of the Azure DevOps REST API.
                token_hosts: &[
                    "login.microsoftonline.us",
                    "login.partner.microsoftonline.cn",
                    "app.vssps.visualstudio.com",
                ],
                client_auth: Some(ClientAuth::Body),
                // learn.microsoft.com, "Refresh tokens in the Microsoft identity platform": 90 days, and not revoked by
                // use. Access tokens are signed, live about an hour and cannot be revoked.
                old_token_grace: Lifespan::Unlimited,
                refresh_token_grace: Lifespan::Unlimited,
                max_concurrent_refreshes: 16,
                // The application id of Azure DevOps: learn.microsoft.com, "Authenticate to Azure DevOps with Microsoft
                // Entra".
                scope: Some("499b84ac-1321-427f-aa17-267ca6975798/.default offline_access"),
                unstated_lifetime: Some(Lifespan::Ends(Duration::from_hours(1))),
                refresh_token_idle_lifetime: Some(Duration::from_hours(24 * 90)),
                ..Profile::UNKNOWN
            },
            Self::Generic => Profile::UNKNOWN,
        }
    }

    /// The token endpoint of an installation at `host`, if the kind determines it.
    pub fn token_url(self, host: &str) -> Option<Url> {
        match self.profile().token_endpoint {
            TokenEndpoint::Path(path) => Url::parse(&format!("https://{host}{path}")).ok(),
            TokenEndpoint::Url(url) => Url::parse(url).ok(),
            TokenEndpoint::Told => None,
        }
    }
}

impl FromStr for ProviderKind {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| UnknownName(name.into()))
    }
}

impl fmt::Display for ProviderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
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
        assert_eq!("gogs".parse::<ProviderKind>(), Err(UnknownName("gogs".into())));
    }

    #[test]
    fn opportunistic_refresh_is_on_by_default_for_bitbucket_server_alone() {
        let on: Vec<_> =
            ProviderKind::ALL.into_iter().filter(|kind| kind.profile().opportunistic_refresh).collect();
        assert_eq!(on, [ProviderKind::BitbucketServer]);
    }

    #[test]
    fn every_kind_but_generic_knows_its_token_endpoint() {
        let url = |kind: ProviderKind| kind.token_url("git.example.org").map(String::from);
        for (kind, expected) in [
            (ProviderKind::Github, Some("https://git.example.org/login/oauth/access_token")),
            (ProviderKind::Gitlab, Some("https://git.example.org/oauth/token")),
            (ProviderKind::Bitbucket, Some("https://git.example.org/site/oauth2/access_token")),
            (ProviderKind::BitbucketServer, Some("https://git.example.org/rest/oauth2/latest/token")),
            (ProviderKind::Gitea, Some("https://git.example.org/login/oauth/access_token")),
            (ProviderKind::AzureDevops, Some("https://login.microsoftonline.com/common/oauth2/v2.0/token")),
            (ProviderKind::Generic, None),
        ] {
            assert_eq!(url(kind).as_deref(), expected);
        }
    }
}
