//! A login by a browser on this machine: authorisation code with PKCE and a loopback redirect (RFC 8252, section 7.3).

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokenkeeper::domain::problem::{Problem, of_system};
use tokenkeeper::domain::provider::{Provider, RedirectError};
use tokenkeeper::oauth::TokenClient;
use tokenkeeper::oauth::login::{LoggedIn, LoginError, Logins};
use tokio::net::TcpListener;
use tokio::time::timeout;
use url::{Host, Position, Url};

use super::loopback;
use crate::cli::Failure;
use crate::cli::output::Output;

/// The port where neither the provider's settings nor the operator say another. A fixed one, because most providers compare it with
/// the one that is registered.
const PORT: u16 = 7919;

const PATH: &str = "/callback";

/// How long the browser has to fetch the answer, once the code is here.
const LAST_ANSWER: Duration = Duration::from_secs(1);

/// Where the browser comes back to.
#[derive(Debug)]
pub(super) struct Redirect {
    /// As it is registered, byte for byte.
    uri: String,
    /// What the browser names as the host.
    authority: String,
    path: String,
    address: SocketAddr,
    listener: Option<TcpListener>,
}

impl Redirect {
    /// The provider's own redirect URI if that leads to this machine, else one with this port.
    pub(super) fn choose(provider: &Provider, port: Option<u16>) -> Result<Self, Problem> {
        let own = provider.loopback_redirect();
        if let (Some(own), Some(port)) = (&own, port)
            && own.port_or_known_default() != Some(port)
        {
            return Err(Problem::new(
                format!("the browser cannot come back to port {port}"),
                format!("the provider's redirect_uri is {own}"),
                "leave --port out, or change redirect_uri in the provider file",
            ));
        }
        let host = provider.kind.login().loopback_host;
        let made = || format!("http://{host}:{}{PATH}", port.unwrap_or(PORT));
        let uri = provider.redirect_uri.clone().filter(|_| own.is_some()).unwrap_or_else(made);
        provider.check_login_redirect(&uri).map_err(|error| not_from_here(provider, &error))?;
        let url = Url::parse(&uri)
            .map_err(|_| Problem::new("the redirect URI is not a URL", "", "redirect_uri"))?;
        let address = match url.host() {
            Some(Host::Ipv4(address)) => IpAddr::V4(address),
            Some(Host::Ipv6(address)) => IpAddr::V6(address),
            Some(Host::Domain(_)) | None => IpAddr::V4(Ipv4Addr::LOCALHOST),
        };
        let port = url.port_or_known_default().unwrap_or(PORT);
        Ok(Self {
            authority: url[Position::BeforeHost..Position::AfterPort].to_owned(),
            path: url.path().to_owned(),
            address: SocketAddr::new(address, port),
            uri,
            listener: None,
        })
    }

    /// Opens the port. Where any would do, it has a number from here on.
    pub(super) async fn listen(mut self) -> Result<Self, Problem> {
        let opened = TcpListener::bind(self.address).await;
        let listener = opened.map_err(|error| not_opened(self.address, &error))?;
        if self.address.port() == 0
            && let Ok(address) = listener.local_addr()
        {
            let port = format!(":{}", address.port());
            self.uri = self.uri.replacen(":0", &port, 1);
            self.authority = self.authority.replacen(":0", &port, 1);
        }
        self.listener = Some(listener);
        Ok(self)
    }

    pub(super) fn uri(&self) -> &str {
        &self.uri
    }
}

pub(super) async fn log_in(
    client: &TokenClient,
    provider: &Provider,
    scopes: &[String],
    redirect: Redirect,
    patience: Duration,
) -> Result<LoggedIn, Failure> {
    let logins = Logins::at(client, provider);
    let pending = logins.begin(redirect.uri(), scopes).map_err(|error| no_pair(provider, &error))?;
    let Redirect { authority, path, listener: Some(listener), .. } = redirect else {
        return Err(Failure::Usage(anyhow::anyhow!("nothing listens for the browser")));
    };
    let mut output = Output::new();
    output.line("Open this page in a browser on this machine, and authorise there:")?;
    output.line(format_args!("  {}", pending.url()))?;
    let mut waiting = loopback::Waiting::start(listener, authority, path, &provider.host, pending);
    let answered = timeout(patience, waiting.answer()).await;
    let (pending, callback) = answered.ok().flatten().ok_or_else(|| nobody_came(provider, patience))?;
    let code = callback.code(provider).map_err(|error| no_pair(provider, &error));
    let pair = match code {
        Ok(code) => logins.exchange(pending, &code).await.map_err(|error| no_pair(provider, &error)),
        Err(error) => Err(error),
    };
    let _ = timeout(LAST_ANSWER, waiting.end()).await;
    Ok(pair?)
}

/// What an operator reads of a login that brought no pair.
pub(super) fn no_pair(provider: &Provider, error: &LoginError) -> Problem {
    let next = match error {
        LoginError::NoEndpoint { .. } => "tokenkeeper provider apply FILE",
        LoginError::Refused { .. } | LoginError::Unavailable { .. } => "log in again",
    };
    Problem::new(format!("no login at {}", provider.host), error.to_string(), next)
}

pub(super) fn nobody_came(provider: &Provider, patience: Duration) -> Problem {
    Problem::new(
        format!("no login at {}", provider.host),
        format!("nobody authorised within {}", humantime::format_duration(patience)),
        "log in again, with a longer --timeout",
    )
}

fn not_from_here(provider: &Provider, error: &RedirectError) -> Problem {
    let (host, here) =
        (&provider.host, format!("http://{}:{PORT}{PATH}", provider.kind.login().loopback_host));
    let device = if provider.device_authorization_url().is_some() { ", or log in with --device" } else { "" };
    Problem::new(
        format!("no login at {host} from this machine"),
        error.to_string(),
        format!(
            "set redirect_uri = \"{here}\" in the provider file, or log in on the page at its redirect_uri (tokenkeeper login --serve){device}"
        ),
    )
}

fn not_opened(address: SocketAddr, error: &io::Error) -> Problem {
    let cause = match error.kind() {
        io::ErrorKind::AddrInUse => "another program listens there".to_owned(),
        io::ErrorKind::PermissionDenied => "this user may not open a port below 1024".to_owned(),
        _ => of_system(error),
    };
    Problem::new(
        format!("cannot listen on {address} for the browser"),
        cause,
        "another port: --port, or redirect_uri in the provider file",
    )
}
