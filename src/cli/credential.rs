//! `tokenkeeper credential`: a credential helper for git.

mod answer;
mod input;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokenkeeper::contract::MessageKind;
use tokenkeeper::domain::text::Host;
use tokenkeeper::settings::Settings;
use tokenkeeper_client::{Error, ErrorCode, Refusal, SecretString};

use self::answer::Answer;
use self::input::{Input, Target};
use super::exchange::{lifetime, patience};
use super::output::Output;
use super::requester::{NoReply, client};
use super::{Ending, Failure};

/// Gives git a user's token: a credential helper, asked by git and not by people
///
/// Publishes a token.request for the host that git names. A worker must be running; this command needs no database. The reply
/// is sealed, so that the broker cannot read the token.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  git config --global credential.helper '!tokenkeeper credential --user u-1'
  git clone https://bitbucket.example.org/scm/proj/repo.git

`get` answers with the token, `erase` reports it (token.report) and deletes
nothing, `store` does nothing. A host that no provider has is left to git's
other helpers, without a word.

Settings come from the environment, and from a file that --config or
TOKENKEEPER_CONFIG names. A tokenkeeper.toml in the working folder is not read:
git runs a helper in the repository, whose files are somebody else's.

Exit codes:
    0  answered, or nothing to say
    1  there is no token: the error says why
    2  wrong usage or settings, or no reply came")]
pub(crate) struct Arguments {
    /// The platform's user
    #[arg(long, value_name = "USER", env = "TOKENKEEPER_USER")]
    user: Option<String>,
    /// How long from now a token must work, 1s to 24h [default: the worker decides]
    #[arg(long, value_name = "DURATION", value_parser = lifetime)]
    lifetime: Option<u64>,
    /// How long to wait for the reply
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = patience)]
    timeout: Duration,
    /// Also answers for http:// on other machines: the token crosses the network in plain text
    #[arg(long)]
    allow_http: bool,
    /// What git wants: get, store or erase
    #[arg(value_name = "OPERATION")]
    operation: String,
}

/// How often a token is asked for again, within the timeout.
const RETRIES: u32 = 3;

pub(crate) async fn run(config: Option<&Path>, arguments: Arguments) -> Result<Ending, Failure> {
    let input = match &*arguments.operation {
        "get" | "erase" => {
            Input::read(std::io::stdin().lock()).map_err(|error| Failure::Usage(error.into()))?
        }
        // Nothing is kept here: `store`. And what a newer git may want.
        _ => return Ok(Ending::Good),
    };
    let Some(target) = input.target(arguments.allow_http) else { return Ok(Ending::Good) };
    // A password without a date is another helper's: a person's own, perhaps, whose digest must not cross the broker.
    if arguments.operation == "erase" && (input.password.is_none() || !input.expires) {
        return Ok(Ending::Good);
    }
    let user = arguments.user.as_deref().filter(|user| !user.is_empty());
    let user = user.context("which user? Set TOKENKEEPER_USER, or write --user USER behind `credential`");
    let user = user.map_err(Failure::Usage)?;
    let settings = Settings::load_named(config)?;
    let Target { host } = &target;
    match input.password {
        Some(password) if arguments.operation == "erase" => {
            erase(&settings, user, host, &password, arguments.timeout).await
        }
        _ => get(&settings, user, host, &arguments, input.knows_authtype).await,
    }
}

async fn get(
    settings: &Settings,
    user: &str,
    host: &Host,
    arguments: &Arguments,
    knows_authtype: bool,
) -> Result<Ending, Failure> {
    let kind = MessageKind::TokenRequest;
    let client = client(&settings.broker, "tokenkeeper credential").await;
    let client = client.map_err(|error| no_reply(error, kind, settings))?;
    let request = client.token(user, host.as_str()).sealed(true).retries(RETRIES).timeout(arguments.timeout);
    let token = match arguments.lifetime {
        Some(secs) => request.lifetime(Duration::from_secs(secs)).send().await,
        None => request.send().await,
    };
    client.close().await;
    match token {
        Ok(token) => {
            let answer =
                Answer::of(&token, knows_authtype).ok_or_else(|| refused(host, "it is not fit for git"))?;
            Output::new().raw(answer.text().as_bytes())?;
            Ok(Ending::Good)
        }
        Err(Error::Refused(refusal)) if refusal.code == ErrorCode::UnknownHost => Ok(Ending::Good),
        Err(Error::Refused(refusal)) if needs_login(&refusal) => {
            Err(Failure::Failed(anyhow!("tokenkeeper: user {user} must log in at {host} ({refusal})")))
        }
        Err(Error::Refused(refusal)) => Err(refused(host, &refusal.to_string())),
        Err(error) => Err(no_reply(error, kind, settings)),
    }
}

/// A host that rejected a token is no reason to delete it: a proxy may have said so, or another host. A worker finds out by a
/// refresh.
async fn erase(
    settings: &Settings,
    user: &str,
    host: &Host,
    password: &SecretString,
    timeout: Duration,
) -> Result<Ending, Failure> {
    let kind = MessageKind::TokenReport;
    let client = client(&settings.broker, "tokenkeeper credential").await;
    let client = client.map_err(|error| no_reply(error, kind, settings))?;
    let report = client.report(user, host.as_str(), password).timeout(timeout).send().await;
    client.close().await;
    match report {
        // A refusal as well: of a host that nobody knows, or of a token that another helper had.
        Ok(_) | Err(Error::Refused(_)) => Ok(Ending::Good),
        Err(error) => Err(no_reply(error, kind, settings)),
    }
}

fn needs_login(refusal: &Refusal) -> bool {
    matches!(
        refusal.code,
        ErrorCode::UserNotFound
            | ErrorCode::IdentityNotFound
            | ErrorCode::TokenNotFound
            | ErrorCode::NotRefreshable
            | ErrorCode::ReauthorizationRequired
    )
}

fn refused(host: &Host, why: &str) -> Failure {
    Failure::Failed(anyhow!("tokenkeeper: no token for {host}: {why}"))
}

fn no_reply(error: Error, kind: MessageKind, settings: &Settings) -> Failure {
    let error = match error {
        Error::Reply(unusable) => anyhow::Error::from(unusable),
        error => NoReply::of(error, kind, &settings.broker).into(),
    };
    Failure::NoReply(error.context("tokenkeeper"))
}
