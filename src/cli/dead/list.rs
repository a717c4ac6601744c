//! `tokenkeeper dead list`

use comfy_table::{Cell, Table};
use tokenkeeper::domain::clock::{Clock, SystemClock, Timestamp};
use tokenkeeper::domain::secret::KeyRing;
use tokenkeeper::settings::Broker;

use super::summary::Summary;
use super::{open, progress};
use crate::cli::output::{Output, cell, note, or_nothing, table, verdict};
use crate::cli::relative::distance;
use crate::cli::{Ending, Failure};

/// Lists the dead letters, without their bodies
///
/// The oldest comes first. An unreadable letter is listed with what is known of it. The user of a sealed letter is shown
/// only with the encryption keys.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tokenkeeper dead list
  tokenkeeper dead list --reason expired
  tokenkeeper dead list --json | jq -r '.[] | select(.reason == \"delivery_limit\") | .id'")]
pub(crate) struct Arguments {
    /// Only those with this reason, as the column REASON shows it; may be given several times
    #[arg(long, value_name = "REASON")]
    reason: Vec<String>,
    /// Prints a JSON array
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(
    settings: &Broker,
    keys: Option<&KeyRing>,
    arguments: &Arguments,
) -> Result<Ending, Failure> {
    let mut letters = open(settings).await?;
    let bar = progress(&letters);
    let mut summaries = Vec::new();
    while let Some(letter) = letters.next().await? {
        bar.inc(1);
        if arguments.reason.is_empty() || arguments.reason.contains(&letter.reason()) {
            summaries.push(Summary::of(&letter, letter.open(keys).ok().as_deref()));
        }
    }
    bar.finish_and_clear();
    // Before printing, because a pager may block for hours.
    letters.close().await?;
    let mut output = Output::new();
    if arguments.json {
        output.json(&summaries)?;
    } else if summaries.is_empty() && !arguments.reason.is_empty() {
        note("There are no such dead letters; `tokenkeeper dead summary` counts those there are.");
    } else if summaries.is_empty() {
        note("There are no dead letters.");
    } else {
        output.table(rows(&summaries, SystemClock.now()))?;
    }
    Ok(Ending::Good)
}

fn rows(summaries: &[Summary], now: Timestamp) -> Table {
    let mut rows = table(["WHEN", "REASON", "TYPE", "USER", "HOST", "REPLAYS", "ID", "DETAIL"]);
    rows.add_rows(summaries.iter().map(|summary| row(summary, now)));
    rows
}

fn row(summary: &Summary, now: Timestamp) -> [Cell; 8] {
    [
        cell(or_nothing(summary.at.map(|at| distance(at, now)))),
        verdict(false, &summary.reason),
        cell(or_nothing(summary.kind.as_ref())),
        cell(or_nothing(summary.user_id.as_ref())),
        cell(or_nothing(summary.hosts())),
        cell(summary.replays),
        cell(&summary.id),
        cell(or_nothing(summary.detail.as_ref())),
    ]
}
