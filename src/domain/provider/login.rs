//! Where a user logs in at a provider, and what the login asks for.
//!
//! The endpoints are found from the token endpoint: a kind has all of them below the same path, wherever the installation is, behind
//! whatever context path, and for whichever tenant. An operator names them where that is not so.

use url::Url;

use super::{Provider, ProviderKind, is_safe_token_url};
use crate::domain::network::names_loopback;

/// An operator's own settings for logins. A field that is not set, or empty, takes the kind's default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoginSettings {
    /// The authorisation endpoint, where a browser is sent (RFC 6749, section 3.1).
    pub authorization_url: Option<Url>,
    /// The device authorisation endpoint (RFC 8628, section 3.1).
    pub device_authorization_url: Option<Url>,
    pub scopes: Vec<String>,
}

/// What a kind has for logins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoginProfile {
    /// How the path of its token endpoint ends.
    token_path: &'static str,
    /// What stands in its place for the authorisation endpoint. None: the operator must say.
    authorization_path: Option<&'static str>,
    /// The same for the device authorisation endpoint. None: the kind has no device flow.
    device_path: Option<&'static str>,
    /// What git needs to clone and push. Empty: the scopes are those of the registered client.
    pub scopes: &'static [&'static str],
    /// Where a client is registered, in the words of the provider's own pages.
    pub registered_at: &'static str,
    /// What the host part of a redirect to this machine must be.
    pub loopback_host: &'static str,
    /// What else a person who registers should know. Empty: nothing.
    pub remark: &'static str,
}

impl LoginProfile {
    const UNKNOWN: Self = Self {
        token_path: "",
        authorization_path: None,
        device_path: None,
        scopes: &[],
        registered_at: "where the provider registers OAuth clients",
        // RFC 8252, section 8.3: not `localhost`, which may be resolved to something else.
        loopback_host: "127.0.0.1",
        remark: "",
    };
}

impl ProviderKind {
    pub const fn login(self) -> LoginProfile {
        match self {
            // https://docs.github.com/apps/oauth-apps/building-oauth-apps/authorizing-oauth-apps: both flows, PKCE with S256, any
            // port of 127.0.0.1. OAuth apps have scopes; GitHub Apps have permissions, and ignore scopes.
            Self::Github => LoginProfile {
                token_path: "/login/oauth/access_token",
                authorization_path: Some("/login/oauth/authorize"),
                device_path: Some("/login/device/code"),
                scopes: &["repo"],
                registered_at: "Settings > Developer settings > GitHub Apps (or OAuth Apps)",
                remark: "Only a GitHub App with expiring user tokens issues refresh tokens. The device flow has a checkbox of its own.",
                ..LoginProfile::UNKNOWN
            },
            // https://docs.gitlab.com/api/oauth2/: PKCE with S256; the device flow since 17.1.
            Self::Gitlab => LoginProfile {
                token_path: "/oauth/token",
                authorization_path: Some("/oauth/authorize"),
                device_path: Some("/oauth/authorize_device"),
                scopes: &["read_repository", "write_repository"],
                registered_at: "Preferences > Applications, or those of a group or the instance; confidential",
                ..LoginProfile::UNKNOWN
            },
            // https://developer.atlassian.com/cloud/bitbucket/oauth-2/: no device flow; scopes belong to the consumer, and the
            // parameter does nothing. PKCE is not mentioned, and parameters that a server does not know are ignored (RFC 6749,
            // section 3.1).
            Self::Bitbucket => LoginProfile {
                token_path: "/site/oauth2/access_token",
                authorization_path: Some("/site/oauth2/authorize"),
                registered_at: "Workspace settings > OAuth consumers; private, with the permissions Repositories: Read, Write",
                ..LoginProfile::UNKNOWN
            },
            // https://confluence.atlassian.com/bitbucketserver/bitbucket-oauth-2-0-provider-api-1108483661.html: PKCE with S256, no
            // device flow, a code lives for ten seconds. The remark: …/oauth-2-0-provider-system-properties-1108483660.html.
            Self::BitbucketServer => LoginProfile {
                token_path: "/rest/oauth2/latest/token",
                authorization_path: Some("/rest/oauth2/latest/authorize"),
                scopes: &["REPO_WRITE"],
                registered_at: "Administration > Application links > Create link > External application, Incoming",
                remark: "It takes a redirect URI with http only where atlassian.oauth2.provider.skip.redirect.url.https.requirement is true.",
                ..LoginProfile::UNKNOWN
            },
            // https://docs.gitea.com/development/oauth2-provider, https://forgejo.org/docs/latest/user/oauth2-provider/: PKCE with S256,
            // no device flow. A public client may be redirected to any port of 127.0.0.1, a confidential one is not.
            Self::Gitea => LoginProfile {
                token_path: "/login/oauth/access_token",
                authorization_path: Some("/login/oauth/authorize"),
                scopes: &["write:repository"],
                registered_at: "Settings > Applications > Manage OAuth2 applications; confidential",
                ..LoginProfile::UNKNOWN
            },
            // https://learn.microsoft.com/entra/identity-platform/v2-oauth2-auth-code-flow and …/v2-oauth2-device-code: PKCE with S256.
            // https://learn.microsoft.com/entra/identity-platform/reply-url: http for `localhost` alone, at any port. The scope is
            // that of refreshes: the application id of Azure DevOps.
            Self::AzureDevops => LoginProfile {
                token_path: "/oauth2/v2.0/token",
                authorization_path: Some("/oauth2/v2.0/authorize"),
                device_path: Some("/oauth2/v2.0/devicecode"),
                scopes: &["499b84ac-1321-427f-aa17-267ca6975798/.default", "offline_access"],
                registered_at: "Entra admin centre > App registrations > Authentication > Web",
                loopback_host: "localhost",
                remark: "The device flow needs \"Allow public client flows\".",
            },
            Self::Generic => LoginProfile::UNKNOWN,
        }
    }
}

/// Why a login cannot take a redirect URI.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedirectError {
    /// The provider would refuse every refresh of the pair: it compares the redirect URI of the login with that of the refresh.
    #[error("the provider's redirect_uri is {set}, and a refresh of a pair from {offered} would be refused")]
    Differs { set: String, offered: String },
    /// The same, because no refresh would send one.
    #[error(
        "kind {kind} wants the redirect URI of the login with each refresh, and the provider has no redirect_uri"
    )]
    Missing { kind: ProviderKind },
}

impl Provider {
    /// The authorisation endpoint. None: neither the operator nor the kind says.
    pub fn authorization_url(&self) -> Option<Url> {
        let own = self.login.authorization_url.clone();
        own.or_else(|| self.beside_the_token_url(self.kind.login().authorization_path?))
    }

    /// The device authorisation endpoint. None: there is no device flow.
    pub fn device_authorization_url(&self) -> Option<Url> {
        let own = self.login.device_authorization_url.clone();
        own.or_else(|| self.beside_the_token_url(self.kind.login().device_path?))
    }

    /// The scopes that a login asks for.
    pub fn login_scopes(&self) -> Vec<String> {
        if self.login.scopes.is_empty() {
            return self.kind.login().scopes.iter().map(|&scope| scope.to_owned()).collect();
        }
        self.login.scopes.clone()
    }

    /// Whether a pair of a login with this redirect URI can be refreshed: its refresh sends the provider's own `redirect_uri`. A
    /// provider of an unknown kind may compare them.
    ///
    /// # Errors
    /// [`RedirectError`]: it cannot.
    pub fn check_login_redirect(&self, offered: &str) -> Result<(), RedirectError> {
        let (kind, wants) = (self.kind, self.kind.profile().wants_redirect_uri);
        match &self.redirect_uri {
            Some(set) if set == offered => Ok(()),
            Some(set) if wants || kind == ProviderKind::Generic => {
                Err(RedirectError::Differs { set: set.clone(), offered: offered.to_owned() })
            }
            None if wants => Err(RedirectError::Missing { kind }),
            Some(_) | None => Ok(()),
        }
    }

    /// The provider's `redirect_uri`, if a program on this machine can listen there.
    pub fn loopback_redirect(&self) -> Option<Url> {
        let url = Url::parse(self.redirect_uri.as_deref()?).ok()?;
        (url.scheme() == "http" && names_loopback(&url)).then_some(url)
    }

    /// The token endpoint's URL with another end of its path. None: it does not end as the kind's does.
    fn beside_the_token_url(&self, path: &str) -> Option<Url> {
        let before = self.token_url.path().strip_suffix(self.kind.login().token_path)?;
        let path = format!("{before}{path}");
        let mut url = self.token_url.clone();
        url.set_path(&path);
        url.set_query(None);
        Some(url)
    }
}

/// One scope (RFC 6749, section 3.3).
pub fn is_scope(text: &str) -> bool {
    let is_sign = |byte| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
    (1..=255).contains(&text.len()) && text.bytes().all(is_sign)
}

/// Whether a person may be sent to a page that a provider names: with TLS, or on this machine.
pub fn is_safe_page(url: &Url) -> bool {
    is_safe_token_url(url) && url.username().is_empty() && url.password().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::provider::record::tests::provider;

    fn at(kind: ProviderKind, token_url: &str) -> Provider {
        Provider { token_url: token_url.parse().unwrap(), ..provider(kind) }
    }

    #[test]
    fn the_endpoints_of_a_login_stand_beside_the_token_endpoint() {
        use ProviderKind::{AzureDevops, Bitbucket, BitbucketServer, Generic, Gitea, Github, Gitlab};
        for (kind, token_url, authorization, device) in [
            (
                Github,
                "https://github.com/login/oauth/access_token",
                Some("https://github.com/login/oauth/authorize"),
                Some("https://github.com/login/device/code"),
            ),
            (
                Gitlab,
                "https://git.example.org/gitlab/oauth/token",
                Some("https://git.example.org/gitlab/oauth/authorize"),
                Some("https://git.example.org/gitlab/oauth/authorize_device"),
            ),
            (
                Bitbucket,
                "https://bitbucket.org/site/oauth2/access_token",
                Some("https://bitbucket.org/site/oauth2/authorize"),
                None,
            ),
            (
                BitbucketServer,
                "https://git.example.org/bitbucket/rest/oauth2/latest/token?x=1",
                Some("https://git.example.org/bitbucket/rest/oauth2/latest/authorize"),
                None,
            ),
            (
                Gitea,
                "https://git.example.org:3000/login/oauth/access_token",
                Some("https://git.example.org:3000/login/oauth/authorize"),
                None,
            ),
            (
                AzureDevops,
                "https://login.microsoftonline.com/tenant/oauth2/v2.0/token",
                Some("https://login.microsoftonline.com/tenant/oauth2/v2.0/authorize"),
                Some("https://login.microsoftonline.com/tenant/oauth2/v2.0/devicecode"),
            ),
            (Github, "https://git.example.org/elsewhere", None, None),
            (Generic, "https://git.example.org/token", None, None),
        ] {
            let provider = at(kind, token_url);
            let text = |url: Option<Url>| url.map(String::from);
            assert_eq!(text(provider.authorization_url()).as_deref(), authorization, "{kind} {token_url}");
            assert_eq!(text(provider.device_authorization_url()).as_deref(), device, "{kind} {token_url}");
        }
    }

    #[test]
    fn every_kind_logs_in_beside_its_own_token_endpoint() {
        for kind in ProviderKind::ALL {
            let Some(token_url) = kind.token_url("git.example.org") else { continue };
            assert!(at(kind, token_url.as_str()).authorization_url().is_some(), "{kind}");
        }
    }

    #[test]
    fn what_an_operator_names_wins() {
        let login = LoginSettings {
            authorization_url: Some("https://login.example.org/authorize".parse().unwrap()),
            device_authorization_url: Some("https://login.example.org/device".parse().unwrap()),
            scopes: vec!["api".to_owned()],
        };
        let provider = Provider { login, ..at(ProviderKind::Gitlab, "https://git.example.org/oauth/token") };
        assert_eq!(provider.authorization_url().unwrap().as_str(), "https://login.example.org/authorize");
        assert_eq!(provider.device_authorization_url().unwrap().as_str(), "https://login.example.org/device");
        assert_eq!(provider.login_scopes(), ["api"]);
    }

    #[test]
    fn a_login_takes_the_redirect_uri_that_its_refreshes_will_send() {
        use ProviderKind::{BitbucketServer, Generic, Github, Gitlab};
        const HERE: &str = "http://127.0.0.1:7919/callback";
        const APP: &str = "https://app.example.org/callback";
        for (kind, set, is_good) in [
            (Gitlab, Some(HERE), true),
            (Gitlab, Some(APP), false),
            (Gitlab, None, false),
            (BitbucketServer, None, false),
            (Generic, Some(APP), false),
            (Generic, None, true),
            (Github, Some(APP), true),
            (Github, None, true),
        ] {
            let provider = Provider { redirect_uri: set.map(str::to_owned), ..provider(kind) };
            assert_eq!(provider.check_login_redirect(HERE).is_ok(), is_good, "{kind} {set:?}");
        }
    }
}
