//! `tokenkeeper login`: a user logs in at a provider, and the pair goes to a worker.

mod code;
mod deposit;
mod device;
mod loopback;
mod registration;
mod serve;
mod web;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokenkeeper::app::lifecycle::StopSignals;
use tokenkeeper::app::presence::Presence;
use tokenkeeper::domain::clock::SystemClock;
use tokenkeeper::domain::problem::Problem;
use tokenkeeper::domain::provider::{Provider, is_scope};
use tokenkeeper::domain::text::UserId;
use tokenkeeper::oauth::TokenClient;
use tokenkeeper::oauth::login::LoggedIn;
use tokenkeeper::settings::Settings;
use tokenkeeper::store::Store;
use tokenkeeper_client::Published;

use self::code::Redirect;
use self::deposit::Deposit;
use self::registration::Registration;
use super::ending::Interrupted;
use super::exchange::patience;
use super::output::Output;
use super::provider::open_store_to_write;
use super::{Ending, Failure};

/// Logs a user in at a source-code host, and hands the tokens to a worker
///
/// Prints first what to register at the provider, then the page to open in a browser. The browser comes back to this machine
/// with a code, which is exchanged for the tokens (OAuth 2.0 with PKCE). They are published as a sealed token.store, so a
/// worker must be running. With --device the browser may be anywhere.
///
/// `--serve` serves a page on which the users of a team do the same, and see which hosts they have connected.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tokenkeeper login github.com --user u-1
  tokenkeeper login github.com --user u-1 --device
  tokenkeeper login bitbucket.example.org --user u-1 --dry-run
  tokenkeeper login --serve --user u-1
  tokenkeeper login --serve --listen 127.0.0.1:8080 \\
    --public-url https://logins.example.org --user-header X-Forwarded-User")]
pub(crate) struct Arguments {
    /// The provider's host
    #[arg(value_name = "HOST", required_unless_present = "serve", conflicts_with = "serve")]
    host: Option<String>,
    /// The platform's user whose tokens these will be
    #[arg(long, value_name = "USER", env = "TOKENKEEPER_USER")]
    user: Option<String>,
    /// Shows a code to type on any device, where the provider has that (RFC 8628)
    #[arg(long, conflicts_with_all = ["serve", "port"])]
    device: bool,
    /// The port of this machine that the browser comes back to; 0: any, for providers that ignore the port
    ///
    /// [default: that of the provider's `redirect_uri`, else 7919]
    #[arg(long, value_name = "PORT", conflicts_with = "serve")]
    port: Option<u16>,
    /// What to ask for; may be repeated [default: the provider's `login_scopes`]
    #[arg(long = "scope", value_name = "SCOPE", value_parser = scope, conflicts_with = "serve")]
    scopes: Vec<String>,
    /// Only prints what to register at the provider
    #[arg(long, conflicts_with = "serve")]
    dry_run: bool,
    /// How long to wait for the browser
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = patience)]
    timeout: Duration,
    /// Serves a page for the users of a team
    #[arg(long)]
    serve: bool,
    #[command(flatten)]
    page: serve::Options,
}

pub(crate) async fn run(settings: Settings, arguments: Arguments) -> Result<Ending, Failure> {
    let Some(host) = arguments.host.as_deref() else {
        return Box::pin(serve::run(settings, arguments)).await;
    };
    let user = user(arguments.user.as_deref())?;
    let store = open_store_to_write(&settings).await?;
    let provider = store.provider(host).await?.ok_or_else(|| unknown_host(host))?;
    let scopes = if arguments.scopes.is_empty() { provider.login_scopes() } else { arguments.scopes.clone() };
    let login = Login { settings: &settings, store: &store, provider: &provider, user, scopes: &scopes };
    if arguments.device {
        return login.by_device(&arguments).await;
    }
    login.by_code(&arguments).await
}

/// One login of one user.
struct Login<'a> {
    settings: &'a Settings,
    store: &'a Store,
    provider: &'a Provider,
    user: UserId,
    scopes: &'a [String],
}

impl Login<'_> {
    async fn by_device(&self, arguments: &Arguments) -> Result<Ending, Failure> {
        let Self { provider, scopes, .. } = self;
        if provider.device_authorization_url().is_none() {
            return Err(no_device_flow(provider).into());
        }
        Registration { provider, scopes, redirect_uri: None }.print(&mut Output::new())?;
        if arguments.dry_run {
            return Ok(Ending::Good);
        }
        let client = token_client(self.settings)?;
        let pair = async || device::log_in(&client, provider, scopes, arguments.timeout).await;
        self.keep(pair).await
    }

    async fn by_code(&self, arguments: &Arguments) -> Result<Ending, Failure> {
        let Self { provider, scopes, .. } = self;
        let redirect = Redirect::choose(provider, arguments.port)?;
        let redirect = if arguments.dry_run { redirect } else { redirect.listen().await? };
        Registration { provider, scopes, redirect_uri: Some(redirect.uri()) }.print(&mut Output::new())?;
        if arguments.dry_run {
            return Ok(Ending::Good);
        }
        let client = token_client(self.settings)?;
        let pair = async || code::log_in(&client, provider, scopes, redirect, arguments.timeout).await;
        self.keep(pair).await
    }

    /// Hands the pair to a worker. Connects to the broker first: nobody should log in for nothing.
    async fn keep(&self, login: impl AsyncFnOnce() -> Result<LoggedIn, Failure>) -> Result<Ending, Failure> {
        let mut signals = StopSignals::listen().context("cannot listen for signals")?;
        let deposit = Deposit::open(self.settings, self.store).await?;
        let work = async {
            let kept = deposit.keep(&self.user, self.provider, &login().await?).await?;
            Output::new().line(kept)?;
            Ok(Ending::Good)
        };
        let done = tokio::select! {
            done = Presence::during(self.store, "login", Box::pin(work)) => done,
            () = signals.next() => {
                let left = match deposit.published() {
                    Published::No => "nothing was stored; log in again",
                    Published::Perhaps | Published::Yes => "the tokens were published, and may have been stored",
                };
                Err(anyhow!(Interrupted).context(left).into())
            }
        };
        deposit.close().await;
        done
    }
}

/// The platform's user, as the contract has it.
fn user(user: Option<&str>) -> Result<UserId, Failure> {
    let user = user.filter(|user| !user.is_empty());
    let user =
        user.context("which user? Set TOKENKEEPER_USER, or write --user USER").map_err(Failure::Usage)?;
    UserId::try_from(user).map_err(|why| Failure::Usage(anyhow!("the user {why}")))
}

fn scope(text: &str) -> Result<String, String> {
    if is_scope(text) { Ok(text.to_owned()) } else { Err("must be one scope, without blanks".to_owned()) }
}

fn unknown_host(host: &str) -> Problem {
    Problem::new(
        format!("no provider has the host {host}"),
        "",
        "tokenkeeper provider list, or tokenkeeper provider apply FILE",
    )
}

fn no_device_flow(provider: &Provider) -> Problem {
    let Provider { host, kind, .. } = provider;
    Problem::new(
        format!("no login by a device at {host}"),
        format!("kind {kind} has no device flow that is known"),
        "log in without --device, or set device_authorization_url in the provider file",
    )
}

/// With the bounds that a worker's calls have.
fn token_client(settings: &Settings) -> anyhow::Result<TokenClient> {
    let refresh = &settings.refresh;
    let (connect, total) = (refresh.connect_timeout, refresh.total_timeout);
    Ok(TokenClient::with_tls(connect, total, Arc::new(SystemClock), &refresh.tls)?)
}
