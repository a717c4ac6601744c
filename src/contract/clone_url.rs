//! Clone URLs: a workspace start needs the host in them.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use schemars::JsonSchema;
use serde::Deserialize;
use url::Url;

use crate::domain::text::Host;

/// The clone URL of a repository, reduced to the host whose token it needs.
///
/// The rest is dropped: a path names a private project, and the user info may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "Cow<'_, str>")]
#[schemars(
    with = "String",
    description = "https://host[:port]/path, ssh://user@host/path, or user@host:path"
)]
pub struct CloneUrl {
    host: Host,
}

/// A repository of a workspace start. An unreadable one costs only its own token.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(from = "Cow<'_, str>")]
#[schemars(with = "CloneUrl")]
pub enum Repository {
    /// Its clone URL.
    At(CloneUrl),
    /// The text is not a clone URL.
    Unreadable,
}

impl From<Cow<'_, str>> for Repository {
    fn from(text: Cow<'_, str>) -> Self {
        CloneUrl::try_from(text).map_or(Self::Unreadable, Self::At)
    }
}

/// The text is not a clone URL. The error does not repeat it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a clone URL: https://host/path, ssh://user@host/path or user@host:path")]
pub struct CloneUrlError;

impl CloneUrl {
    /// The host whose token it needs. For http(s) with the port that the URL names. For ssh the bare name, because its port
    /// says nothing about the provider's web address.
    pub fn host(&self) -> &Host {
        &self.host
    }
}

impl TryFrom<Cow<'_, str>> for CloneUrl {
    type Error = CloneUrlError;

    fn try_from(text: Cow<'_, str>) -> Result<Self, Self::Error> {
        let host = match text.split_once("://") {
            Some(("https" | "http", _)) => http_host(&text),
            Some(("ssh" | "git+ssh" | "ssh+git", rest)) => ssh_host(rest),
            Some(_) => None,
            None => scp_host(&text),
        };
        let host = host.and_then(|host| Host::try_from(Cow::Owned(host)).ok());
        host.map(|host| Self { host }).ok_or(CloneUrlError)
    }
}

fn http_host(text: &str) -> Option<String> {
    let url = Url::parse(text).ok()?;
    let name = without_final_dot(url.host_str()?)?.to_owned();
    if url.path().len() < 2 {
        return None;
    }
    // `Url` drops the scheme's default port. The contract keeps the written port, so that a provider applied as
    // `host:443` is found.
    let authority = text.split_once("://")?.1.split(['/', '?', '#']).next()?;
    let behind_user_info = authority.rsplit('@').next().filter(|rest| !rest.is_empty())?;
    match behind_user_info.rsplit_once(':') {
        Some((_, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(format!("{name}:{}", port.parse::<u16>().ok()?))
        }
        _ => Some(name),
    }
}

fn ssh_host(rest: &str) -> Option<String> {
    // As https: the URL standard neither checks nor lower-cases the host of an ssh URL.
    let url = Url::parse(&format!("https://{rest}")).ok()?;
    if url.path().len() < 2 { None } else { url.host_str().and_then(web_host) }
}

/// `[user@]host:path`, as git reads it: a colon before the first slash. Brackets hold an IPv6 address, or
/// `[user@]host:port`.
fn scp_host(text: &str) -> Option<String> {
    let (authority, path) = match text.split_once('[') {
        Some((user, rest)) if user.is_empty() || user.ends_with('@') => rest.split_once("]:")?,
        _ => text.split_once(':').filter(|(before, _)| !before.contains('/'))?,
    };
    let name = authority.rsplit('@').next().filter(|name| !name.is_empty() && !path.is_empty())?;
    let name = match name.parse::<Ipv6Addr>() {
        Ok(address) => format!("[{address}]"),
        Err(_) => name.to_owned(),
    };
    Url::parse(&format!("https://{name}/")).ok()?.host_str().and_then(web_host)
}

/// The host whose tokens an ssh host needs. Some providers serve ssh under another name, or under a second name for a
/// port that no firewall blocks.
fn web_host(ssh_host: &str) -> Option<String> {
    let name = match without_final_dot(ssh_host)? {
        "ssh.dev.azure.com" => "dev.azure.com",
        // https://docs.github.com/authentication/troubleshooting-ssh/using-ssh-over-the-https-port
        "ssh.github.com" => "github.com",
        "altssh.gitlab.com" => "gitlab.com",
        "altssh.bitbucket.org" => "bitbucket.org",
        name => name,
    };
    Some(name.to_owned())
}

/// Without the dot that ends a full name (RFC 1034, section 3.1). None: more dots than one end it, so it is no name, and without
/// them it would be that of another host.
fn without_final_dot(name: &str) -> Option<&str> {
    let name = name.strip_suffix('.').unwrap_or(name);
    (!name.ends_with('.')).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Option<String> {
        CloneUrl::try_from(Cow::Borrowed(text)).ok().map(|url| url.host().as_str().to_owned())
    }

    #[test]
    fn the_host_of_an_http_url_keeps_its_port_and_loses_its_user_info() {
        for (text, expected) in [
            ("https://bitbucket.example.org/scm/proj/repo.git", "bitbucket.example.org"),
            ("https://bitbucket.example.org:7990/scm/p/r.git", "bitbucket.example.org:7990"),
            ("http://127.0.0.1:41000/scm/p/r.git", "127.0.0.1:41000"),
            ("https://jdoe:pa:ss@git.example.org/p/r", "git.example.org"),
            ("https://jdoe:pass@git.example.org:8443/p/r", "git.example.org:8443"),
            ("https://git.example.org:443/p/r", "git.example.org:443"),
            ("https://GIT.Example.org/p/r", "git.example.org"),
            ("https://git.example.org./p/r", "git.example.org"),
            ("https://git.example.org.:8443/p/r", "git.example.org:8443"),
            ("https://[::1]:7990/p/r", "[::1]:7990"),
            ("https://[2001:db8::1]/p/r", "[2001:db8::1]"),
        ] {
            assert_eq!(host(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn the_host_of_an_ssh_form_is_the_bare_name() {
        for (text, expected) in [
            ("ssh://git@bitbucket.example.org:7999/proj/repo.git", "bitbucket.example.org"),
            ("ssh://bitbucket.example.org/proj/repo.git", "bitbucket.example.org"),
            ("git@github.com:owner/repo.git", "github.com"),
            ("github.com:owner/repo.git", "github.com"),
            ("git@GitHub.com:owner/repo.git", "github.com"),
            ("git@[2001:db8::1]:owner/repo.git", "[2001:db8::1]"),
            ("[2001:db8::1]:owner/repo.git", "[2001:db8::1]"),
            ("git@[bitbucket.example.org:7999]:proj/repo.git", "bitbucket.example.org"),
            ("[git@bitbucket.example.org:7999]:proj/repo.git", "bitbucket.example.org"),
            ("git@ssh.dev.azure.com:v3/org/project/repo", "dev.azure.com"),
            ("ssh://git@ssh.github.com:443/owner/repo.git", "github.com"),
            ("git@github.com.:owner/repo.git", "github.com"),
            ("git@bücher.example.org:owner/repo.git", "xn--bcher-kva.example.org"),
        ] {
            assert_eq!(host(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_git_could_not_clone_over_https_or_ssh_is_refused() {
        for text in [
            "",
            "repo",
            // Without its dots it would be another host, or no host at all.
            "https://127.0.0.1../p/r",
            "https://example.org../p/r",
            "ssh://git@example.org../p/r",
            "git@host.7..:p/r",
            "/srv/git/repo.git",
            "./repo:x",
            "file:///srv/repo.git",
            "git://example.org/r",
            "https://",
            "https:///p/r",
            "https://example.org",
            "https://example.org/",
            "git@:path",
            "git@host:",
            "git@[host:7999]",
            "git@[host:7999]:",
            "git@[]:path",
            "git@[::1:path",
            "x/[::1]:path",
            "https://example.org:99999/p",
            "ssh://",
            "https://exa mple.org/r",
        ] {
            assert_eq!(host(text), None, "{text}");
        }
    }
}
