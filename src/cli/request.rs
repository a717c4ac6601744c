//! `tokenkeeper request`

use std::time::Duration;

use comfy_table::Table;
use tokenkeeper::domain::clock::{Clock, SystemClock, Timestamp};
use tokenkeeper::settings::Settings;
use tokenkeeper_client::wire::{ErrorBody, GrantedToken, Status, TokenReply};

use super::exchange::{Asked, Options, exchange, patience};
use super::output::{Output, cell, key_value_table, or_nothing, verdict, yes_no};
use super::relative::date_and_distance;
use super::reply::{self, of_client};
use super::{Ending, Failure};

/// Requests one token from a worker through RabbitMQ, and prints the reply
///
/// Publishes a token.request like an upstream service. A worker must be running; this command needs no database.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tokenkeeper request --user u-1 --host bitbucket.example.org --lifetime 10m
  tokenkeeper request --user u-1 --host bitbucket.example.org --json |
    jq -r .token.value
  tokenkeeper request --user u-1 --host bitbucket.example.org --sealed --show-token

Exit codes:
    0  the reply is ok
    1  the reply is an error
    2  wrong usage or settings, no reply came, or --sealed cannot open it
  130  interrupted: the error says whether the request was published")]
pub(crate) struct Arguments {
    /// The platform's user
    #[arg(long, value_name = "USER")]
    user: String,
    /// The provider's host, as in clone URLs
    #[arg(long, value_name = "HOST")]
    host: String,
    /// How long to wait for the reply
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = patience)]
    timeout: Duration,
    #[command(flatten)]
    options: Options,
}

pub(crate) async fn run(settings: Settings, arguments: Arguments) -> Result<Ending, Failure> {
    let Arguments { user, host, timeout, options } = arguments;
    let body = exchange(&settings, &Asked::Token { user, host }, &options, timeout).await?;
    let mut output = Output::new();
    if options.json {
        output.body(body.expose())?;
    }
    let reply: TokenReply = reply::read(&body)?;
    if !options.json {
        output.table(table(&reply, options.show_token, SystemClock.now()))?;
    }
    Ok(reply.status.into())
}

fn table(reply: &TokenReply, show_token: bool, now: Timestamp) -> Table {
    let mut rows = key_value_table();
    rows.add_row([cell("status"), verdict(reply.status == Status::Ok, reply.status.name())]);
    rows.add_row([cell("user"), cell(or_nothing(reply.user_id.as_ref()))]);
    rows.add_row([cell("host"), cell(or_nothing(reply.host.as_ref()))]);
    if let Some(token) = &reply.token {
        add_token(&mut rows, token, show_token, now);
        rows.add_row([cell("refresh"), cell(or_nothing(reply.refresh.as_ref()))]);
        rows.add_row([cell("warnings"), cell(or_nothing(joined(&reply.warnings)))]);
    }
    if let Some(error) = &reply.error {
        add_error(&mut rows, error);
    }
    rows
}

fn add_token(rows: &mut Table, token: &GrantedToken, show_token: bool, now: Timestamp) {
    let date = |at| date_and_distance(of_client(at), now);
    rows.add_row([cell("token"), cell(reply::shown_value(token, show_token))]);
    rows.add_row([cell("username"), cell(&token.username)]);
    if let Some(userinfo) = reply::shown_userinfo(token, show_token) {
        rows.add_row([cell("userinfo"), cell(userinfo)]);
    }
    rows.add_row([cell("scopes"), cell(or_nothing(joined(&token.scopes)))]);
    rows.add_row([cell("stored"), cell(date(token.updated_at))]);
    rows.add_row([cell("expires"), cell(token.expires_at.map_or_else(|| "never".to_owned(), date))]);
    rows.add_row([cell("reserved until"), cell(date(token.reserved_until))]);
}

pub(super) fn add_error(rows: &mut Table, error: &ErrorBody) {
    rows.add_row([cell("error"), cell(&error.code)]);
    rows.add_row([cell("message"), cell(&error.message)]);
    rows.add_row([cell("retryable"), cell(yes_no(error.retryable))]);
    if let Some(secs) = error.retry_after_secs {
        rows.add_row([cell("retry after"), cell(format_args!("{secs}s"))]);
    }
}

fn joined(words: &[impl ToString]) -> Option<String> {
    let words: Vec<String> = words.iter().map(ToString::to_string).collect();
    Some(words.join(" ")).filter(|words| !words.is_empty())
}
