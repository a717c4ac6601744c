//! Where a provider's secrets and tokens may be sent.

use url::Url;

use super::{Provider, ProviderKind, ProviderRecord, TokenEndpoint, is_safe_token_url};
use crate::domain::network::{Reach, names_loopback};

/// Why nothing is sent to a URL. A provider file and the row in the database are judged alike: by `provider apply`, and
/// by a worker before each call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    #[error("the URL is not https; correct it")]
    NotSafe,
    #[error(
        "its host {host} is not the provider's; if tokens may go there, add token_hosts = [\"{host}\"] to the provider file and apply it"
    )]
    ForeignHost { host: String },
}

impl Provider {
    /// Which addresses a call of this URL may go to.
    ///
    /// # Errors
    /// [`EndpointError`]: the URL is none to send a secret to.
    pub fn reach(&self, url: &Url) -> Result<Reach, EndpointError> {
        let hosts = [&self.host].into_iter().chain(&self.other_hosts).chain(&self.token_hosts);
        check(url, self.kind, hosts.map(String::as_str))?;
        Ok(Reach::of(url, self.allow_private_network))
    }
}

impl ProviderRecord {
    /// The same for a record that is not applied yet.
    ///
    /// # Errors
    /// As [`Provider::reach`].
    pub fn reach(&self, url: &Url) -> Result<Reach, EndpointError> {
        check(url, self.kind, self.hosts().chain(self.overrides.token_hosts.iter().map(String::as_str)))?;
        Ok(Reach::of(url, self.overrides.allow_private_network))
    }
}

fn check<'a>(
    url: &Url,
    kind: ProviderKind,
    hosts: impl Iterator<Item = &'a str>,
) -> Result<(), EndpointError> {
    if !is_safe_token_url(url) {
        return Err(EndpointError::NotSafe);
    }
    let host = url.host_str().unwrap_or_default();
    let is_own = |known: &str| name_of(known).eq_ignore_ascii_case(host);
    // This machine is no other provider's.
    if names_loopback(url) || is_of_kind(kind, host) || hosts.into_iter().any(is_own) {
        return Ok(());
    }
    Err(EndpointError::ForeignHost { host: host.to_owned() })
}

/// Whether the kind's vendor has this host for all installations.
fn is_of_kind(kind: ProviderKind, host: &str) -> bool {
    let profile = kind.profile();
    let endpoint = match profile.token_endpoint {
        TokenEndpoint::Url(url) => Url::parse(url).ok(),
        TokenEndpoint::Path(_) | TokenEndpoint::Told => None,
    };
    endpoint.is_some_and(|url| url.host_str() == Some(host)) || profile.token_hosts.contains(&host)
}

/// A host without its port. The colons of an IPv6 address stand in brackets.
fn name_of(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => name,
        _ => host,
    }
}

/// Whether the text is the host of a URL, as `token_hosts` has it: in lower case, and without a port.
pub fn is_token_host(text: &str) -> bool {
    let url = Url::parse(&format!("https://{text}/"));
    let of_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._[:]".contains(&byte);
    text.len() <= 255 && text.bytes().all(of_host) && url.is_ok_and(|url| url.host_str() == Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(kind: ProviderKind, hosts: &[&str], url: &str) -> Result<(), EndpointError> {
        check(&Url::parse(url).unwrap(), kind, hosts.iter().copied())
    }

    #[test]
    fn a_token_url_is_at_the_providers_host_its_kinds_or_a_listed_one() {
        use ProviderKind::{AzureDevops, Bitbucket, Generic, Github};
        for (kind, hosts, url, is_good) in [
            (Github, &["git.example.org"][..], "https://git.example.org/token", true),
            (Github, &["git.example.org:8443"], "https://git.example.org/token", true),
            (Github, &["git.example.org"], "https://git.example.org:8443/token", true),
            (Github, &["git.example.org", "login.example.org"], "https://login.example.org/token", true),
            (Github, &["[2001:db8::1]:8443"], "https://[2001:db8::1]/token", true),
            (Github, &["github.com"], "https://api.github.com/user", true),
            (Bitbucket, &["bitbucket.org"], "https://api.bitbucket.org/2.0/user", true),
            (
                AzureDevops,
                &["dev.azure.com"],
                "https://login.microsoftonline.com/tenant/oauth2/v2.0/token",
                true,
            ),
            (Generic, &["git.example.org"], "http://127.0.0.1:7990/token", true),
            (Generic, &["git.example.org"], "https://evil.example.org/token", false),
            (Generic, &["git.example.org"], "https://git.example.org.evil.example/token", false),
            (Generic, &["git.example.org"], "https://sub.git.example.org/token", false),
            (Github, &["git.example.org"], "https://login.microsoftonline.com/token", false),
            (Generic, &["git.example.org"], "https://169.254.169.254/token", false),
        ] {
            assert_eq!(checked(kind, hosts, url).is_ok(), is_good, "{kind} {hosts:?} {url}");
        }
        let plain = checked(Generic, &["git.example.org"], "http://git.example.org/token");
        assert_eq!(plain, Err(EndpointError::NotSafe));
    }

    #[test]
    fn a_token_host_is_a_bare_host_in_lower_case() {
        for host in ["login.example.org", "10.1.2.3", "[::1]", "localhost"] {
            assert!(is_token_host(host), "{host}");
        }
        for host in
            ["", "Login.example.org", "login.example.org:443", "login.example.org:8443", "a/b", "u@h", "*"]
        {
            assert!(!is_token_host(host), "{host}");
        }
    }
}
