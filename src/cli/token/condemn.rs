//! `tokenkeeper token condemn`

use std::sync::Arc;

use anyhow::anyhow;
use tokenkeeper::broker::{EventFate, Publisher};
use tokenkeeper::contract::{ErrorReason, Event};
use tokenkeeper::domain::clock::Timestamp;
use tokenkeeper::domain::problem::Problem;
use tokenkeeper::domain::provider::Provider;
use tokenkeeper::settings::Settings;
use tokenkeeper::store::{Guarded, Store};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::cli::confirm::Confirmation;
use crate::cli::output::{Output, note};
use crate::cli::{Ending, Failure};

/// Pairs that are loaded at once.
const PAGE: u64 = 500;

/// Asks users to log in again whose stored pair is known to be dead
///
/// For a database that is older than the pairs that were handed out since, where no journal can bring these back (docs/journal.md).
/// Every pair of the host that was stored before the given date is marked: its refresh token is not sent to the host again, and
/// where a refresh ends the old access token, that is not handed out again either. Each user gets an event
/// `token.reauthorization_required`. A login mends it. Pairs without a refresh token are left alone.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tokenkeeper token condemn --host bitbucket.example.org --updated-before 2026-11-29T03:00:00Z --dry-run
  tokenkeeper token condemn --host bitbucket.example.org --updated-before 2026-11-29T03:00:00Z")]
pub(crate) struct Arguments {
    /// The provider's host
    #[arg(long)]
    host: String,
    /// Pairs that were stored before this date (RFC 3339): when the backup was made, or when the standby fell behind
    #[arg(long, value_name = "DATE", value_parser = Timestamp::parse_rfc3339)]
    updated_before: Timestamp,
    /// Only counts them
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    confirmation: Confirmation,
}

pub(super) async fn run(
    settings: &Settings,
    store: &Store,
    arguments: &Arguments,
) -> Result<Ending, Failure> {
    let Arguments { host, updated_before, dry_run, confirmation } = arguments;
    let Some(provider) = store.provider(host).await? else {
        let what = format!("no provider has the host {host}");
        return Err(Failure::Usage(Problem::new(what, "", "tokenkeeper provider list").into()));
    };
    let count = store.count_stored_before(provider.id, *updated_before).await?;
    let mut output = Output::new();
    if *dry_run {
        output.line(format_args!("{count} users of {host} would be asked to log in again"))?;
        return Ok(Ending::Good);
    }
    if count > 0 && !confirmation.given(&format!("{count} users of {host} must log in again"))? {
        return Ok(Ending::Good);
    }
    let condemned = condemn_all(settings, store, &provider, *updated_before).await?;
    output.line(format_args!("{condemned} users of {host} are asked to log in again"))?;
    Ok(Ending::Good)
}

/// Page by page: a pair that changes meanwhile is a newer one, and stays.
async fn condemn_all(
    settings: &Settings,
    store: &Store,
    provider: &Provider,
    before: Timestamp,
) -> Result<u64, Failure> {
    let (stop, closed) = (CancellationToken::new(), CancellationToken::new());
    let (broker, keys) = (Arc::new(settings.broker.clone()), Arc::new(store.keys().clone()));
    let name = format!("tokenkeeper condemn {}", Uuid::new_v4().simple());
    let (publisher, keep_publishing) = Publisher::new(broker, keys, name, stop, closed.clone());
    let publishing = tokio::spawn(keep_publishing);
    let why = "an operator condemned it: the database is older than the pair that was handed out last";
    let (mut after, mut condemned, mut unheard) = (0, 0, 0);
    loop {
        let page = store.stored_before(provider.id, before, after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = last.id;
        for entry in &page {
            let at = store.now().await?;
            if store.condemn(entry, why, at).await? == Guarded::Moved {
                continue;
            }
            condemned += 1;
            let event = Event::ReauthorizationRequired {
                host: provider.host.clone(),
                user_id: entry.user_id.clone(),
                at,
                generation: entry.generation,
                reason: ErrorReason::RefreshInterrupted,
            };
            match publisher.event(&event).await {
                EventFate::Published => {}
                EventFate::Unwanted | EventFate::Stopped => unheard += 1,
            }
        }
    }
    closed.cancel();
    publishing.await.map_err(|_| anyhow!("the task of the broker connection ended unexpectedly"))?;
    if unheard > 0 {
        note(format_args!(
            "The broker took no event of {unheard} of them; the next request of each is told."
        ));
    }
    Ok(condemned)
}
