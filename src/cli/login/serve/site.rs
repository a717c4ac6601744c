//! Where browsers find the page, and where providers send them back to.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use tokenkeeper::domain::provider::{Provider, is_safe_page};
use url::{Position, Url};

use super::Options;

/// Below the page's own URL.
pub(super) const CALLBACK: &str = "/callback";

#[derive(Debug)]
pub(super) struct Site {
    url: Url,
    is_given: bool,
    /// What a request may name as its host: the public name, and the address that a proxy may put in its place.
    authorities: Vec<String>,
    redirect_uri: String,
}

impl Site {
    pub(super) fn read(options: &Options) -> anyhow::Result<Self> {
        let text = options.public_url.clone().unwrap_or_else(|| format!("http://{}", options.listen));
        let url = Url::parse(&text).with_context(|| format!("--public-url {text} is not a URL"))?;
        let is_bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        if !is_safe_page(&url) || !is_bare {
            bail!(
                "--public-url must be https (http for this machine alone), without a path; without it, --listen must be this machine"
            );
        }
        Ok(Self {
            url,
            is_given: options.public_url.is_some(),
            authorities: Vec::new(),
            redirect_uri: String::new(),
        })
    }

    /// The same with the address that the page really listens at.
    pub(super) fn listening_at(mut self, address: SocketAddr) -> Self {
        if !self.is_given {
            // The address has a port, and so has a URL with one.
            let _ = self.url.set_port(Some(address.port()));
        }
        self.authorities =
            vec![self.url[Position::BeforeHost..Position::AfterPort].to_owned(), address.to_string()];
        self.redirect_uri = format!("{}{CALLBACK}", self.origin());
        self
    }

    pub(super) fn url(&self) -> &str {
        self.url.as_str()
    }

    /// As a browser writes it.
    pub(super) fn origin(&self) -> String {
        self.url.origin().ascii_serialization()
    }

    pub(super) fn authorities(&self) -> &[String] {
        &self.authorities
    }

    pub(super) fn redirect_uri(&self) -> &str {
        &self.redirect_uri
    }

    pub(super) fn is_secure(&self) -> bool {
        self.url.scheme() == "https"
    }

    /// Why nobody can log in at this provider here. None: nothing is against it.
    pub(super) fn obstacle(&self, provider: &Provider) -> Option<String> {
        if provider.authorization_url().is_none() {
            return Some("its authorization_url is not known; set it in the provider file".to_owned());
        }
        provider.check_login_redirect(&self.redirect_uri).err().map(|error| error.to_string())
    }
}
