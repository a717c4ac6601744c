//! `tokenkeeper housekeeping`

use std::sync::Arc;

use tokenkeeper::clock::{Clock, SystemClock, Timestamp};
use tokenkeeper::database;
use tokenkeeper::housekeeping::{Chore, Housekeeper, Pass};
use tokenkeeper::oauth::TokenClient;
use tokenkeeper::refresh::{RefreshOptions, Refresher};
use tokenkeeper::settings::Settings;
use tokenkeeper::store::Store;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cli::output::{Output, cell, note, or_nothing, table};
use crate::cli::relative::distance;
use crate::cli::{Ending, Failure};

/// Removes tokens that are of no use any more, and refreshes pairs that would become so
///
/// Workers do this by themselves, one of them at a time (settings `housekeeping.*`). This does one pass at once, beside
/// them: a token that expired `housekeeping.remove_after_days` ago and cannot be refreshed is removed, its identity
/// stays; a pair whose refresh token dies soon is refreshed, `housekeeping.refresh_batch` of them at most.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tokenkeeper housekeeping --dry-run
  tokenkeeper housekeeping --dry-run --json | jq -r '.[] | select(.action == \"remove\") | .user_id'
  tokenkeeper housekeeping")]
pub(crate) struct Arguments {
    /// Shows what a pass would do, and does nothing
    #[arg(long)]
    dry_run: bool,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(settings: Settings, arguments: Arguments) -> Result<Ending, Failure> {
    let Arguments { dry_run, json } = arguments;
    let keys = settings.key_ring()?;
    let store = Store::new(database::open_migrated(&settings.database).await?, keys);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let refresh = &settings.refresh;
    let client = TokenClient::new(refresh.connect_timeout, refresh.total_timeout, Arc::clone(&clock))?;
    let flights = TaskTracker::new();
    let refresher = Arc::new(Refresher::new(
        store.clone(),
        client,
        Arc::clone(&clock),
        RefreshOptions::from(refresh),
        flights.clone(),
        CancellationToken::new(),
    ));
    let housekeeper = Housekeeper { store, refresher, clock, settings: settings.housekeeping };
    let mut output = Output::new();
    if dry_run {
        print_due(&housekeeper.due().await?, json, &mut output)?;
        return Ok(Ending::Good);
    }
    let passed = housekeeper.pass().await;
    // A pair that the provider has issued is stored before the process ends.
    flights.close();
    flights.wait().await;
    print_pass(passed?, json, &mut output)?;
    Ok(Ending::Good)
}

fn print_due(chores: &[Chore], json: bool, output: &mut Output) -> anyhow::Result<()> {
    if json {
        return output.json(&chores);
    }
    if chores.is_empty() {
        note("There is nothing to do.");
    }
    let now = SystemClock.now();
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
