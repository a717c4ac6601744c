//! `tokenkeeper restore`

use std::sync::Arc;

use anyhow::anyhow;
use tokenkeeper::app::presence::Presence;
use tokenkeeper::broker::Publisher;
use tokenkeeper::domain::clock::Timestamp;
use tokenkeeper::domain::problem::Problem;
use tokenkeeper::journal::{Done, replay};
use tokenkeeper::settings::Settings;
use tokenkeeper::store::Store;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::output::{Output, note};
use super::provider::open_store_to_write;
use super::{Ending, Failure};

/// Stores pairs that the database lacks, from the journal
///
/// Workers do this by themselves when they find that the database went back: a backup was restored, or a failover lost commits
/// (docs/journal.md). This command reads the journal from its beginning, or from a date on, and needs no worker. A row whose pair
/// is as new as the journal's, or newer, stays as it is. It can be run again at any time.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tokenkeeper restore --from-journal --dry-run
  tokenkeeper restore --from-journal --since 2026-11-29T03:00:00Z")]
pub(crate) struct Arguments {
    /// Reads the journal of pairs, which is the only source there is
    #[arg(long, required = true)]
    from_journal: bool,
    /// Reads what was stored from this date (RFC 3339) on [default: all that is there]
    #[arg(long, value_name = "DATE", value_parser = Timestamp::parse_rfc3339)]
    since: Option<Timestamp>,
    /// Only counts what would be stored
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(settings: Settings, arguments: Arguments) -> Result<Ending, Failure> {
    if settings.broker.journal_max_age.is_zero() {
        let what = "there is no journal (`broker.journal_max_age_secs` is 0)";
        return Err(Failure::Usage(Problem::new(what, "", "tokenkeeper token condemn --help").into()));
    }
    let store = open_store_to_write(&settings).await?;
    let work = Box::pin(restore(&settings, store.clone(), &arguments));
    let done = Presence::during(&store, "restore", work).await?;
    let Done { stored, already_there, left, .. } = done;
    let verb = if arguments.dry_run { "would be stored" } else { "stored" };
    let mut output = Output::new();
    output.line(format_args!("{stored} pairs {verb}, {already_there} there already, {left} left"))?;
    if left > 0 {
        note(
            "Left are records of hosts without a provider, of users without a login, or that need another key.",
        );
    }
    Ok(Ending::Good)
}

async fn restore(settings: &Settings, store: Store, arguments: &Arguments) -> Result<Done, Failure> {
    let (stop, closed) = (CancellationToken::new(), CancellationToken::new());
    let (broker, keys) = (Arc::new(settings.broker.clone()), Arc::new(store.keys().clone()));
    let name = format!("tokenkeeper restore {}", Uuid::new_v4().simple());
    let (publisher, keep_publishing) =
        Publisher::new(Arc::clone(&broker), keys, name.clone(), stop, closed.clone());
    let publishing = tokio::spawn(keep_publishing);
    let done = replay(&broker, &name, &publisher, store, arguments.since, arguments.dry_run).await;
    closed.cancel();
    publishing.await.map_err(|_| anyhow!("the task of the broker connection ended unexpectedly"))?;
    Ok(done?)
}
