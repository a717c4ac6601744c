//! `tokenkeeper workspace-start`

use std::borrow::Cow;
use std::time::Duration;

use anyhow::anyhow;
use comfy_table::{Cell, Table};
use tokenkeeper::contract::CloneUrl;
use tokenkeeper::domain::clock::{Clock, SystemClock, Timestamp};
use tokenkeeper::settings::Settings;
use tokenkeeper_client::wire::{Status, TokenReply, WorkspaceStartReply};

use super::exchange::{Asked, Options, exchange, patience};
use super::output::{NOTHING, Output, cell, key_value_table, or_nothing, table, verdict};
use super::relative::distance;
use super::reply::{self, of_client};
use super::request::add_error;
use super::{Ending, Failure};

/// Requests the tokens that a workspace needs to clone its repositories, and prints the reply
///
/// Publishes a workspace.start like an upstream service: it asks for one token for each host of the repositories. A
/// worker must be running; this command needs no database.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tokenkeeper workspace-start --user u-1 --workspace ws-1 \\
    https://bitbucket.example.org/scm/proj/repo.git git@github.com:owner/repo.git
  tokenkeeper workspace-start --user u-1 --workspace ws-1 --json \\
    git@github.com:owner/repo.git | jq -r '.tokens[] | [.host, .token.value] | @tsv'

Exit codes:
    0  there is a token for every host
    1  a host has no token
    2  wrong usage or settings, no reply came, or --sealed cannot open it
  130  interrupted: the error says whether the request was published")]
pub(crate) struct Arguments {
    /// The platform's user
    #[arg(long, value_name = "USER")]
    user: String,
    /// The workspace
    #[arg(long, value_name = "WORKSPACE")]
    workspace: String,
    /// Clone URLs, 1 to 16 of them: `https://host/path`, `ssh://user@host/path` or `user@host:path`
    #[arg(value_name = "REPO", required = true)]
    repositories: Vec<String>,
    /// How long to wait for the reply
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = patience)]
    timeout: Duration,
    #[command(flatten)]
    options: Options,
}

pub(crate) async fn run(settings: Settings, arguments: Arguments) -> Result<Ending, Failure> {
    let Arguments { user, workspace, repositories, timeout, options } = arguments;
    // A worker would only answer with an error for this URL. Here the user can correct it.
    for (place, repository) in repositories.iter().enumerate() {
        CloneUrl::try_from(Cow::Borrowed(repository.as_str()))
            .map_err(|error| Failure::Usage(anyhow!("repositories[{place}]: {error}")))?;
    }
    let asked = Asked::Workspace { workspace, user, repositories };
    let body = exchange(&settings, &asked, &options, timeout).await?;
    let mut output = Output::new();
    if options.json {
        output.body(body.expose())?;
    }
    let reply: WorkspaceStartReply = reply::read(&body)?;
    if !options.json {
        output.table(whole(&reply))?;
        output.table(tokens(&reply.tokens, options.show_token, SystemClock.now()))?;
    }
    Ok(reply.status.into())
}

/// The error of the message as a whole, if there is one.
fn whole(reply: &WorkspaceStartReply) -> Table {
    let mut rows = key_value_table();
    if let Some(error) = &reply.error {
        add_error(&mut rows, error);
    }
    rows
}

fn tokens(replies: &[TokenReply], show_token: bool, now: Timestamp) -> Table {
    let mut rows =
        table(["HOST", "STATUS", "REFRESH", "EXPIRES", "RESERVED", "USERNAME", "TOKEN", "REMARKS"]);
    rows.add_rows(replies.iter().map(|reply| token(reply, show_token, now)));
    rows
}

fn token(reply: &TokenReply, show_token: bool, now: Timestamp) -> [Cell; 8] {
    let token = reply.token.as_ref();
    let distance = |at| distance(of_client(at), now);
    [
        cell(or_nothing(reply.host.as_ref())),
        verdict(reply.status == Status::Ok, reply.status.name()),
        cell(or_nothing(reply.refresh.as_ref())),
        cell(or_nothing(token.map(|token| token.expires_at.map_or_else(|| "never".to_owned(), distance)))),
        cell(or_nothing(token.map(|token| distance(token.reserved_until)))),
        cell(or_nothing(token.map(|token| &token.username))),
        cell(or_nothing(token.map(|token| reply::shown_value(token, show_token)))),
        cell(remarks(reply)),
    ]
}

fn remarks(reply: &TokenReply) -> String {
    match &reply.error {
        Some(error) => format!("{}: {}", error.code, error.message),
        None if reply.warnings.is_empty() => NOTHING.to_owned(),
        None => reply.warnings.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
    }
}
