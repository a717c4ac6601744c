//! `tokenkeeper housekeeping`

use std::convert::Infallible;
use std::future;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use tokenkeeper::app::lifecycle::{Stop, StopSignals};
use tokenkeeper::domain::clock::{SystemClock, Timestamp};
use tokenkeeper::housekeeping::{Chore, Pass, Passed, due, pass_alone};
use tokenkeeper::settings::Settings;
use tokenkeeper::store::Store;
use tokenkeeper::store::database;

use crate::cli::ending::Interrupted;
use crate::cli::interruption::FINISHING;
use crate::cli::output::{Output, cell, note, or_nothing, table};
use crate::cli::relative::distance;
use crate::cli::{Ending, Failure};

/// Removes tokens that are useless, and refreshes pairs before they become so
///
/// Workers do this themselves, one of them at a time (settings `housekeeping.*`). This command does one pass now. A
/// token that expired `housekeeping.remove_after_days` ago and cannot be refreshed is removed; its identity stays. A
/// pair whose refresh token expires soon is refreshed, at most `housekeeping.refresh_batch` of them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tokenkeeper housekeeping --dry-run
  tokenkeeper housekeeping --dry-run --json | jq -r '.[] | select(.action == \"remove\") | .user_id'
  tokenkeeper housekeeping")]
pub(crate) struct Arguments {
    /// Only shows what a pass would do
    #[arg(long)]
    dry_run: bool,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(settings: Settings, arguments: Arguments) -> Result<Ending, Failure> {
    let Arguments { dry_run, json } = arguments;
    let mut output = Output::new();
    if dry_run {
        let store = Store::new(database::open_migrated(&settings.database).await?, settings.key_ring()?);
        let now = store.now().await?;
        let due = due(&store, now, &settings.housekeeping).await?;
        print_due(&due, now, json, &mut output)?;
        return Ok(Ending::Good);
    }
    let signals = StopSignals::listen().context("cannot listen for signals")?;
    let stop = Stop::default();
    let second_signal = signals.drive(stop.clone(), settings.worker.grace_period);
    let say_so = async {
        stop.soft.cancelled().await;
        note(FINISHING);
        future::pending::<Infallible>().await
    };
    let passed = tokio::select! {
        never = say_so => match never {},
        passed = pass_alone(&settings, Arc::new(SystemClock), &stop) => passed?,
        () = second_signal => {
            Err(anyhow!(Interrupted).context("interrupted twice, so stopped at once; run the command again for the rest"))?
        }
    };
    match passed {
        Passed::ToTheEnd(pass) => {
            print_pass(pass, json, &mut output)?;
            Ok(Ending::Good)
        }
        Passed::Stopped(pass) => {
            print_pass(pass, json, &mut output)?;
            Err(anyhow!(Interrupted)
                .context("the pass did not come to its end; run the command again for the rest"))?
        }
    }
}

fn print_due(chores: &[Chore], now: Timestamp, json: bool, output: &mut Output) -> anyhow::Result<()> {
    if json {
        return output.json(&chores);
    }
    if chores.is_empty() {
        note("There is nothing to do.");
    }
    let when = |at: Option<Timestamp>| or_nothing(at.map(|at| distance(at, now)));
    let mut rows = table(["ACTION", "USER", "HOST", "WHY", "EXPIRES", "REFRESH TOKEN EXPIRES", "STORED"]);
    rows.add_rows(chores.iter().map(|chore| {
        [
            cell(chore.action),
            cell(&chore.user_id),
            cell(or_nothing(chore.host.as_ref())),
            cell(chore.reason),
            cell(when(chore.expires_at)),
            cell(when(chore.refresh_token_expires_at)),
            cell(distance(chore.updated_at, now)),
        ]
    }));
    output.table(rows)
}

fn print_pass(pass: Pass, json: bool, output: &mut Output) -> anyhow::Result<()> {
    if json {
        return output.json(&pass);
    }
    let Pass { removed, refreshed, failed, moved } = pass;
    output.line(format_args!(
        "removed {removed}, refreshed {refreshed}, failed {failed}, taken meanwhile {moved}"
    ))
}
