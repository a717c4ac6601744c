//! `tokenkeeper dead summary`

use std::collections::BTreeMap;

use comfy_table::Table;
use serde::Serialize;
use tokenkeeper::broker::dead_letters::Letter;
use tokenkeeper::domain::clock::{Clock, SystemClock, Timestamp};
use tokenkeeper::settings::Broker;

use super::summary::origin;
use super::{open, progress};
use crate::cli::output::{Output, cell, note, or_nothing, table, verdict};
use crate::cli::relative::distance;
use crate::cli::{Ending, Failure};

/// Counts the dead letters by reason and type
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tokenkeeper dead summary
  tokenkeeper dead summary --json | jq 'map(select(.reason != \"expired\") | .letters) | add'")]
pub(crate) struct Arguments {
    /// Prints a JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Group {
    reason: String,
    /// The kind of message, or the queue that it came from.
    #[serde(rename = "type")]
    kind: Option<String>,
    letters: u64,
    /// When the first and the last of them became dead letters.
    oldest: Option<Timestamp>,
    newest: Option<Timestamp>,
}

pub(super) async fn run(settings: &Broker, arguments: &Arguments) -> Result<Ending, Failure> {
    let mut letters = open(settings).await?;
    let bar = progress(&letters);
    let mut groups = BTreeMap::new();
    while let Some(letter) = letters.next().await? {
        bar.inc(1);
        count(&mut groups, &letter);
    }
    bar.finish_and_clear();
    letters.close().await?;
    let groups: Vec<Group> = groups.into_values().collect();
    let mut output = Output::new();
    if arguments.json {
        output.json(&groups)?;
    } else if groups.is_empty() {
        note("There are no dead letters.");
    } else {
        output.table(rows(&groups, SystemClock.now()))?;
    }
    Ok(Ending::Good)
}

fn count(groups: &mut BTreeMap<(String, Option<String>), Group>, letter: &Letter) {
    let (reason, kind, at) = (letter.reason(), origin(letter), letter.died_at());
    let group = groups.entry((reason.clone(), kind.clone())).or_insert(Group {
        reason,
        kind,
        letters: 0,
        oldest: at,
        newest: at,
    });
    group.letters += 1;
    // Of a letter without a date nothing is known.
    group.oldest = group.oldest.into_iter().chain(at).min();
    group.newest = group.newest.max(at);
}

fn rows(groups: &[Group], now: Timestamp) -> Table {
    let when = |at: Option<Timestamp>| cell(or_nothing(at.map(|at| distance(at, now))));
    let mut rows = table(["REASON", "TYPE", "LETTERS", "OLDEST", "NEWEST"]);
    rows.add_rows(groups.iter().map(|group| {
        [
            verdict(false, &group.reason),
            cell(or_nothing(group.kind.as_ref())),
            cell(group.letters),
            when(group.oldest),
            when(group.newest),
        ]
    }));
    rows
}
