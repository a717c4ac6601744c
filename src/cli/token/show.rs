//! `tokenkeeper token show`

use anyhow::anyhow;
use comfy_table::Table;
use tokenkeeper::domain::clock::{Clock, SystemClock, Timestamp};
use tokenkeeper::store::{ListedIdentity, ListedToken, Listing, ListingFilter};

use crate::cli::output::{Output, cell, key_value_table, or_nothing, verdict, yes_no};
use crate::cli::relative::date_and_distance;
use crate::cli::{Ending, Failure};

/// Shows the state of one user's token at one host, never the token itself
///
/// Works without encryption keys.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  tokenkeeper token show --user u-1 --host bitbucket.example.org")]
pub(crate) struct Arguments {
    /// The platform's user
    #[arg(long, value_name = "USER")]
    user: String,
    /// The provider's host
    #[arg(long, value_name = "HOST")]
    host: String,
    /// Prints a JSON object
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(listing: &Listing, arguments: Arguments) -> Result<Ending, Failure> {
    let Arguments { user, host, json } = arguments;
    let missing = anyhow!("user {user} has no identity at {host}; `tokenkeeper token list` lists them");
    let filter = ListingFilter { user_id: Some(user), host: Some(host) };
    let identity = listing.page(&filter, 0, 1).await?.pop().ok_or(missing)?;
    let mut output = Output::new();
    if json {
        output.json(&identity)?;
    } else {
        output.table(rows(&identity, SystemClock.now()))?;
    }
    Ok(Ending::Good)
}

fn rows(identity: &ListedIdentity, now: Timestamp) -> Table {
    let mut rows = key_value_table();
    rows.add_row([cell("user"), cell(&identity.user_id)]);
    rows.add_row([cell("host"), cell(&identity.host)]);
    rows.add_row([cell("account"), cell(&identity.auth_id)]);
    rows.add_row([cell("account name"), cell(or_nothing(identity.auth_name.as_ref()))]);
    match &identity.token {
        Some(token) => add_token(&mut rows, token, now),
        None => {
            rows.add_row([cell("token"), verdict(false, "none")]);
        }
    }
    rows
}

fn add_token(rows: &mut Table, token: &ListedToken, now: Timestamp) {
    let date = |at: Timestamp| date_and_distance(at, now);
    let mut add = |name: &str, value: String| {
        rows.add_row([cell(name), cell(value)]);
    };
    add("username", token.username.clone().unwrap_or_else(|| "the provider's".to_owned()));
    add("scopes", or_nothing(Some(token.scopes.join(" ")).filter(|scopes| !scopes.is_empty())));
    add("pair", token.generation.to_string());
    add("stored", date(token.updated_at));
    add("expires", token.expires_at.map_or_else(|| "never".to_owned(), date));
    add("granted lifetime", or_nothing(token.granted_lifetime_secs.map(|secs| format!("{secs}s"))));
    add("refreshable", yes_no(token.refreshable).to_owned());
    add("refresh token expires", token.refresh_token_expires_at.map_or_else(|| "not known".to_owned(), date));
    add("reserved until", or_nothing(token.reserved_until.map(date)));
    add(
        "refresh lease",
        or_nothing(token.lease.as_ref().map(|lease| format!("{} until {}", lease.holder, date(lease.until)))),
    );
    if token.in_doubt {
        let how = "in doubt: the last refresh started and its outcome is unknown; the next one will tell";
        add("refresh", how.to_owned());
    }
    if let Some(at) = token.reported_at {
        add("reported", format!("as rejected by its host, {}", date(at)));
    }
    add(
        "failure",
        or_nothing(
            token
                .failure
                .as_ref()
                .map(|failure| format!("{} at {}: {}", failure.code, date(failure.at), failure.message)),
        ),
    );
}
