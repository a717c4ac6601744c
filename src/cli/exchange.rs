//! What the commands that send a request to a worker share: options, and the exchange itself.

use std::time::Duration;

use anyhow::{Context, anyhow};
use serde::Serialize;
use tokenkeeper::app::lifecycle::StopSignals;
use tokenkeeper::contract::{LifetimeSecs, MessageKind, decode};
use tokenkeeper::settings::{Broker, Settings};
use tokenkeeper_client::{Body, Error, Progress, Published, wire};

use super::Failure;
use super::ending::Interrupted;
use super::requester::{NoReply, client};

/// What is asked.
pub(super) enum Asked {
    Token { user: String, host: String },
    Workspace { workspace: String, user: String, repositories: Vec<String> },
}

impl Asked {
    const fn kind(&self) -> MessageKind {
        match self {
            Self::Token { .. } => MessageKind::TokenRequest,
            Self::Workspace { .. } => MessageKind::WorkspaceStart,
        }
    }

    /// A worker would refuse it too, and the message would end up in the dead letters.
    fn check(&self) -> Result<(), Failure> {
        let checked = match self {
            Self::Token { user, host } => self.decoded(&wire::TokenRequest {
                user_id: user,
                host,
                requested_lifetime_secs: None,
                reply_public_key: None,
            }),
            Self::Workspace { workspace, user, repositories } => self.decoded(&wire::WorkspaceStart {
                workspace_id: workspace,
                user_id: user,
                repositories,
                requested_lifetime_secs: None,
                reply_public_key: None,
            }),
        };
        checked.map_err(Failure::Usage)
    }

    fn decoded(&self, body: &impl Serialize) -> anyhow::Result<()> {
        decode(self.kind(), &serde_json::to_vec(body)?).map(drop).map_err(|invalid| anyhow!(invalid.reason))
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// How long from now a token must work, 1s to 24h [default: the worker decides]
    #[arg(long, value_name = "DURATION", value_parser = lifetime)]
    lifetime: Option<u64>,
    /// Asks for a reply that the broker cannot read, and opens it
    ///
    /// Makes a key pair for this one request. The worker seals the token to its public key.
    #[arg(long)]
    sealed: bool,
    /// Shows tokens in the table
    #[arg(long)]
    pub(super) show_token: bool,
    /// Prints the reply as JSON, with the tokens in it
    #[arg(long)]
    pub(super) json: bool,
}

/// Publishes a request and returns the body of the reply, opened if it is sealed.
pub(super) async fn exchange(
    settings: &Settings,
    asked: &Asked,
    options: &Options,
    timeout: Duration,
) -> Result<Body, Failure> {
    asked.check()?;
    let mut signals = StopSignals::listen().context("cannot listen for signals")?;
    let progress = Progress::new();
    tokio::select! {
        reply = ask(&settings.broker, asked, options, timeout, &progress) => match reply {
            Ok(reply) => Ok(reply),
            // What is wrong with the reply, and not with the way to it.
            Err(Error::Reply(unusable)) => Err(Failure::NoReply(unusable.into())),
            Err(error) => {
                Err(Failure::NoReply(NoReply::of(error, asked.kind(), &settings.broker).into()))
            }
        },
        () = signals.next() => Err(anyhow!(Interrupted).context(left_behind(progress.published())).into()),
    }
}

async fn ask(
    settings: &Broker,
    asked: &Asked,
    options: &Options,
    timeout: Duration,
    progress: &Progress,
) -> Result<Body, Error> {
    let client = client(settings, "tokenkeeper request").await?;
    let lifetime = options.lifetime.map(Duration::from_secs);
    let reply = match asked {
        Asked::Token { user, host } => {
            let request = client.token(user, host).timeout(timeout).sealed(options.sealed).progress(progress);
            match lifetime {
                Some(lifetime) => request.lifetime(lifetime).body().await,
                None => request.body().await,
            }
        }
        Asked::Workspace { workspace, user, repositories } => {
            let request = client.workspace_start(workspace, user, repositories);
            let request = request.timeout(timeout).sealed(options.sealed).progress(progress);
            match lifetime {
                Some(lifetime) => request.lifetime(lifetime).body().await,
                None => request.body().await,
            }
        }
    };
    client.close().await;
    reply
}

/// What becomes of a request that nobody waits for any more.
const fn left_behind(published: Published) -> &'static str {
    match published {
        Published::No => "no request was published",
        Published::Perhaps => "the request may have been published; its reply is not waited for",
        Published::Yes => {
            "the request was published, and its reply is not waited for; a worker still handles it, unless its \
             time is over before"
        }
    }
}

/// Parses how long to wait for a reply.
pub(super) fn patience(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_hours(24);
    match duration(text)? {
        timeout if timeout < Duration::from_millis(1) => Err("must be at least 1ms".to_owned()),
        timeout if timeout > LONGEST => Err("must be at most 24h".to_owned()),
        timeout => Ok(timeout),
    }
}

/// Parses how long a token must work, into seconds.
pub(super) fn lifetime(text: &str) -> Result<u64, String> {
    let lifetime = duration(text)?;
    if lifetime.subsec_nanos() != 0 {
        return Err("must be whole seconds".to_owned());
    }
    LifetimeSecs::try_from(lifetime.as_secs()).map(|_| lifetime.as_secs()).map_err(str::to_owned)
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a duration like 30s, 10m or 1h 30m"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_is_within_the_contracts_range() {
        for (text, expected) in
            [("1s", Some(1)), ("10m", Some(600)), ("24h", Some(86_400)), ("1h 30m", Some(5_400))]
        {
            assert_eq!(lifetime(text).ok(), expected, "{text}");
        }
        for text in ["", "0s", "25h", "500ms", "10", "soon", "-1s"] {
            assert!(lifetime(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_timeout_fits_into_the_expiration_of_a_message() {
        assert_eq!(patience("1ms"), Ok(Duration::from_millis(1)));
        assert_eq!(patience("24h"), Ok(Duration::from_hours(24)));
        assert!(patience("0s").is_err() && patience("1us").is_err() && patience("2days").is_err());
    }
}
