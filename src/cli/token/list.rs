//! `tokenkeeper token list`

use comfy_table::{Cell, Table};
use tokenkeeper::domain::clock::{Clock, SystemClock, Timestamp};
use tokenkeeper::store::{ListedIdentity, ListedToken, Listing, ListingFilter};

use crate::cli::output::{NOTHING, Output, cell, note, or_nothing, table, verdict};
use crate::cli::relative::distance;
use crate::cli::{Ending, Failure};

/// Identities that are read, and aligned in one table, at once.
const PAGE: u64 = 500;

/// Lists identities and the state of their tokens, never the tokens themselves
///
/// Works without encryption keys.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tokenkeeper token list --host bitbucket.example.org
  tokenkeeper token list --json | jq -r '.[] | select(.token.failure) | .user_id'")]
pub(crate) struct Arguments {
    /// Only of this user
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Only at this host
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// Prints a JSON array
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(listing: &Listing, arguments: Arguments) -> Result<Ending, Failure> {
    let Arguments { user, host, json } = arguments;
    let filter = ListingFilter { user_id: user, host };
    let mut output = Output::new();
    let mut printer = if json { Printer::Json { first: true } } else { Printer::Table };
    let (mut after, mut found) = (0, false);
    printer.begin(&mut output)?;
    loop {
        let page = listing.page(&filter, after, PAGE).await?;
        let Some(last) = page.last() else { break };
        (after, found) = (last.id, true);
        printer.page(&page, &mut output)?;
        if output.is_closed() {
            break;
        }
    }
    printer.end(&mut output)?;
    if !found && !json {
        note("There are no identities that match.");
    }
    Ok(Ending::Good)
}

/// Prints page by page, so that the whole list is never in memory.
enum Printer {
    Table,
    Json { first: bool },
}

impl Printer {
    fn begin(&self, output: &mut Output) -> anyhow::Result<()> {
        match self {
            Self::Table => Ok(()),
            Self::Json { .. } => output.json_text("["),
        }
    }

    fn page(&mut self, page: &[ListedIdentity], output: &mut Output) -> anyhow::Result<()> {
        match self {
            Self::Table => output.table(rows(page, SystemClock.now())),
            Self::Json { first } => {
                let mut text = String::new();
                for identity in page {
                    text.push_str(if *first { "\n" } else { ",\n" });
                    text.push_str(&serde_json::to_string(identity)?);
                    *first = false;
                }
                output.json_text(&text)
            }
        }
    }

    fn end(&self, output: &mut Output) -> anyhow::Result<()> {
        match self {
            Self::Table => Ok(()),
            Self::Json { .. } => output.json_text("\n]\n"),
        }
    }
}

fn rows(page: &[ListedIdentity], now: Timestamp) -> Table {
    let mut rows =
        table(["USER", "HOST", "EXPIRES", "RESERVED", "LEASE", "STORED", "PAIR", "FAILURE", "SCOPES"]);
    rows.add_rows(page.iter().map(|identity| match &identity.token {
        Some(token) => row(identity, token, now),
        None => row_without_token(identity),
    }));
    rows
}

fn row(identity: &ListedIdentity, token: &ListedToken, now: Timestamp) -> [Cell; 9] {
    let live =
        |until: Option<Timestamp>| until.filter(|until| *until > now).map(|until| distance(until, now));
    [
        cell(&identity.user_id),
        cell(&identity.host),
        match token.expires_at {
            Some(at) => verdict(at > now, distance(at, now)),
            None => verdict(true, "never"),
        },
        cell(or_nothing(live(token.reserved_until))),
        cell(or_nothing(live(token.lease.as_ref().map(|lease| lease.until)))),
        cell(distance(token.updated_at, now)),
        cell(token.generation),
        match &token.failure {
            Some(failure) => verdict(false, format_args!("{} {}", failure.code, distance(failure.at, now))),
            None => cell(NOTHING),
        },
        cell(if token.scopes.is_empty() { NOTHING.to_owned() } else { token.scopes.join(" ") }),
    ]
}

fn row_without_token(identity: &ListedIdentity) -> [Cell; 9] {
    let mut cells = [(); 9].map(|()| cell(NOTHING));
    cells[0] = cell(&identity.user_id);
    cells[1] = cell(&identity.host);
    cells[2] = verdict(false, "no token");
    cells
}
