//! Who sits at the browser. The page does not log anybody in at the platform: a proxy in front of it has done that and names the
//! user, or the page is for one person alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, anyhow, bail};
use axum::http::{HeaderMap, HeaderName};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokenkeeper::domain::text::UserId;
use tokenkeeper::private_file::FileRule;

use super::Options;

const SECRET_HEADER: HeaderName = HeaderName::from_static("x-tokenkeeper-proxy-secret");

const SHORTEST_SECRET: usize = 16;

#[derive(Debug)]
pub(super) enum Who {
    /// Whoever reaches the page.
    One(UserId),
    Named {
        header: HeaderName,
        proxies: Vec<IpAddr>,
        /// A digest: of the same length for every secret.
        secret: Option<[u8; 32]>,
    },
}

/// Why a request is nobody's. It says nothing that helps to become somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Nobody {
    #[error("this page is reached through its proxy alone")]
    NotFromTheProxy,
    #[error("the proxy does not say who you are")]
    NotNamed,
}

impl Who {
    pub(super) fn read(options: &Options, user: Option<&str>, files: FileRule) -> anyhow::Result<Self> {
        let is_local = options.listen.ip().is_loopback();
        let Some(header) = &options.user_header else {
            let user = user.filter(|user| !user.is_empty()).context(
                "who are the users? Write --user-header NAME if a proxy says it, or --user USER for one person",
            )?;
            if !is_local {
                bail!(
                    "with --user everybody who reaches the page would be {user}: let it listen on 127.0.0.1, or write --user-header NAME"
                );
            }
            return Ok(Self::One(UserId::try_from(user).map_err(|why| anyhow!("the user {why}"))?));
        };
        let header = header.parse().with_context(|| format!("{header} is no name of a header"))?;
        let proxies = match (&*options.proxies, is_local) {
            ([], true) => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            ([], false) => bail!("anybody could name a user: say with --proxy ADDRESS where the proxy is"),
            (proxies, _) => proxies.to_vec(),
        };
        let secret = options.proxy_secret_file.as_ref().map(|path| {
            let text = files.file(path.clone()).read();
            let text = text.with_context(|| format!("cannot use {}", path.display()))?;
            if text.trim().len() < SHORTEST_SECRET {
                bail!("{} must hold a text of at least {SHORTEST_SECRET} characters", path.display());
            }
            Ok(digest(text.trim().as_bytes()))
        });
        Ok(Self::Named { header, proxies, secret: secret.transpose()? })
    }

    /// The user of a request from this address.
    pub(super) fn of(&self, peer: IpAddr, headers: &HeaderMap) -> Result<UserId, Nobody> {
        let Self::Named { header, proxies, secret } = self else {
            let Self::One(user) = self else { return Err(Nobody::NotNamed) };
            return Ok(user.clone());
        };
        if !proxies.contains(&peer.to_canonical()) {
            return Err(Nobody::NotFromTheProxy);
        }
        let only = |name: &HeaderName| {
            let mut values = headers.get_all(name).iter();
            // Two of them: one is the browser's own, and nobody knows which.
            values.next().filter(|_| values.next().is_none())
        };
        if let Some(secret) = secret {
            let shown = only(&SECRET_HEADER).map(|value| digest(value.as_bytes()));
            if !shown.is_some_and(|shown| bool::from(shown.ct_eq(secret))) {
                return Err(Nobody::NotFromTheProxy);
            }
        }
        let named = only(header).and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
        named.and_then(|user| UserId::try_from(user).ok()).ok_or(Nobody::NotNamed)
    }
}

fn digest(text: &[u8]) -> [u8; 32] {
    Sha256::digest(text).into()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7));

    fn named(secret: Option<&str>) -> Who {
        let secret = secret.map(|secret| digest(secret.as_bytes()));
        Who::Named { header: HeaderName::from_static("x-forwarded-user"), proxies: vec![PROXY], secret }
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    #[test]
    fn a_user_is_whom_the_proxy_names_and_nobody_else_names_one() {
        let of = |peer, pairs: &[(&'static str, &str)]| {
            named(None).of(peer, &headers(pairs)).map(|user| user.to_string())
        };
        let user = ("x-forwarded-user", "jdoe");
        assert_eq!(of(PROXY, &[user]), Ok("jdoe".to_owned()));
        assert_eq!(of("::ffff:10.0.0.7".parse().unwrap(), &[user]), Ok("jdoe".to_owned()));
        assert_eq!(of("10.0.0.8".parse().unwrap(), &[user]), Err(Nobody::NotFromTheProxy));
        for hostile in [&[][..], &[user, ("x-forwarded-user", "root")], &[("x-forwarded-user", "")]] {
            assert_eq!(of(PROXY, hostile), Err(Nobody::NotNamed), "{hostile:?}");
        }
        assert_eq!(of(PROXY, &[("x-forwarded-user", "j\u{202e}doe")]), Err(Nobody::NotNamed));
    }

    #[test]
    fn where_the_proxy_has_a_secret_its_address_is_not_enough() {
        let secret = "0123456789abcdef";
        let of = |pairs: &[(&'static str, &str)]| named(Some(secret)).of(PROXY, &headers(pairs));
        let user = ("x-forwarded-user", "jdoe");
        let shown = ("x-tokenkeeper-proxy-secret", secret);
        assert!(of(&[user, shown]).is_ok());
        for pairs in [&[user][..], &[user, shown, shown], &[user, (shown.0, "0123456789abcdeF")]] {
            assert_eq!(of(pairs), Err(Nobody::NotFromTheProxy), "{pairs:?}");
        }
    }
}
