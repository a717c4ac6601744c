//! `tokenkeeper login --serve`: a page on which the users of a team log in at their hosts, and see where they are logged in.

mod handlers;
mod page;
mod pending;
mod session;
mod site;
mod who;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use tokenkeeper::app::lifecycle::StopSignals;
use tokenkeeper::app::presence::Presence;
use tokenkeeper::domain::problem::{Problem, of_system};
use tokenkeeper::settings::{LogFormat, Settings};
use tokenkeeper::telemetry::logs;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::handlers::{Page, router};
use self::pending::PendingLogins;
use self::session::Sessions;
use self::site::Site;
use self::who::Who;
use super::deposit::Deposit;
use super::registration::Registration;
use super::{Arguments, token_client, web};
use crate::cli::output::{Output, note};
use crate::cli::provider::open_store_to_write;
use crate::cli::{Ending, Failure};

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "With --serve")]
pub(super) struct Options {
    /// Where the page listens
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7919")]
    listen: SocketAddr,
    /// Where browsers find it: https, or http on this machine, without a path [default: that of --listen]
    #[arg(long, value_name = "URL", requires = "serve")]
    public_url: Option<String>,
    /// The header in which a proxy in front of the page says who the user is, as X-Forwarded-User
    ///
    /// The proxy must set it on every request, and take away what the browser sent under that name. Without it the page is for the
    /// one user of --user, and must listen on this machine alone.
    #[arg(long, value_name = "NAME", requires = "serve")]
    user_header: Option<String>,
    /// The address of that proxy; may be repeated [default: this machine, if the page listens on it alone]
    #[arg(long = "proxy", value_name = "ADDRESS", requires = "user_header")]
    proxies: Vec<IpAddr>,
    /// A file with a text that the proxy sends in the header X-Tokenkeeper-Proxy-Secret, so that nobody else can name a user
    #[arg(long, value_name = "FILE", requires = "user_header")]
    proxy_secret_file: Option<PathBuf>,
}

pub(super) async fn run(settings: Settings, arguments: Arguments) -> Result<Ending, Failure> {
    let options = &arguments.page;
    let who = Who::read(options, arguments.user.as_deref(), settings.files).map_err(Failure::Usage)?;
    let site = Site::read(options).map_err(Failure::Usage)?;
    let listener = TcpListener::bind(options.listen).await;
    let listener = listener.map_err(|error| not_opened(options.listen, &error))?;
    let site = site.listening_at(listener.local_addr()?);
    let format = install_logs(&settings)?;
    let store = open_store_to_write(&settings).await?;
    print_registrations(&store, &site).await?;
    let deposit = Deposit::open(&settings, &store).await?;
    let mut signals = StopSignals::listen().context("cannot listen for signals")?;
    let mut presence = Presence::of_command(&store, "login").await?;
    let stop = CancellationToken::new();
    let page = Arc::new(Page {
        client: token_client(&settings)?,
        store,
        deposit,
        who,
        pending: PendingLogins::new(arguments.timeout),
        sessions: Sessions::new(site.is_secure()),
        site,
    });
    Output::new().line(format_args!("Serving {} until it is interrupted", page.site.url()))?;
    let served = web::accept(listener, router(&page), stop.clone());
    let work = async {
        tokio::select! {
            () = served => {}
            () = signals.next() => stop.cancel(),
        }
        Ok::<_, anyhow::Error>(())
    };
    let done = presence.keep_during(work).await;
    presence.end().await;
    match format {
        logs::Format::Human => done?,
        logs::Format::Json => done.map_err(|error| Failure::from(error).log())?,
    }
    Ok(Ending::Good)
}

fn install_logs(settings: &Settings) -> Result<logs::Format, Failure> {
    let format = match settings.log.format {
        LogFormat::Auto => logs::Format::detect(),
        LogFormat::Human => logs::Format::Human,
        LogFormat::Json => logs::Format::Json,
    };
    logs::install(settings.log.level, format, io::stderr, None)?;
    Ok(format)
}

/// What has to be registered where, and where nobody can log in.
async fn print_registrations(store: &tokenkeeper::store::Store, site: &Site) -> Result<(), Failure> {
    let providers = store.usable_providers().await?;
    if providers.is_empty() {
        note("There are no providers; `tokenkeeper provider apply FILE` creates them.");
    }
    let mut output = Output::new();
    for provider in &providers {
        if let Some(why) = site.obstacle(provider) {
            note(format_args!("warning: nobody can log in at {} here: {why}", provider.host));
            continue;
        }
        let (scopes, redirect_uri) = (&provider.login_scopes(), Some(site.redirect_uri()));
        Registration { provider, scopes, redirect_uri }.print(&mut output)?;
    }
    Ok(())
}

fn not_opened(address: SocketAddr, error: &io::Error) -> Problem {
    let cause = match error.kind() {
        io::ErrorKind::AddrInUse => "another program listens there".to_owned(),
        io::ErrorKind::AddrNotAvailable => "this machine does not have that address".to_owned(),
        io::ErrorKind::PermissionDenied => "this user may not open a port below 1024".to_owned(),
        _ => of_system(error),
    };
    Problem::new(format!("cannot listen on {address}"), cause, "another address in --listen")
}
