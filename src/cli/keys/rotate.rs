//! `tokenkeeper keys rotate`

use std::time::Duration;

use anyhow::{Context, anyhow};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokenkeeper::app::lifecycle::StopSignals;
use tokenkeeper::app::presence::{Presence, names};
use tokenkeeper::domain::clock::Clock;
use tokenkeeper::domain::key_use::{KnownWorker, LIVING_FOR};
use tokenkeeper::domain::problem::Problem;
use tokenkeeper::domain::secret::Format;
use tokenkeeper::parking::{Spool, waiting};
use tokenkeeper::settings::Settings;
use tokenkeeper::store::database::clock_sync;
use tokenkeeper::store::{Resealed, Store};
use tokio::time::{Instant, sleep};

use super::status::outside;
use crate::cli::ending::Interrupted;
use crate::cli::output::{Output, note};
use crate::cli::provider::open_store_to_write;
use crate::cli::{Ending, Failure};

/// Between two looks at what changed meanwhile.
const PAUSE: Duration = Duration::from_millis(200);

/// So many rows that do not open are named.
const NAMED: usize = 20;

/// Re-encrypts everything with the first key and in the newest format, while workers run
///
/// Needs the new key in front of the old ones, and all workers with the same keys and of this version. Tokens and client secrets
/// are re-encrypted in place. Parked pairs, which lie encrypted on the broker's queue or in this machine's spool folder, are
/// stored. In the end it says which keys are not needed any more. It can be interrupted at any time: run it again, and it
/// goes on where it stopped.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  TOKENKEEPER_KEYS=k-new:…,k-old:… tokenkeeper keys rotate")]
pub(crate) struct Arguments {}

pub(super) async fn run(settings: &Settings, _: &Arguments) -> Result<Ending, Failure> {
    let mut signals = StopSignals::listen().context("cannot listen for signals")?;
    let store = open_store_to_write(settings).await?;
    let mut presence = Presence::of_command(&store, "keys rotate").await?;
    let usable = newest_format_is_usable(&presence).and(first_key_is_usable(&presence, &store));
    let rotation = Rotation { settings, store: &store, own_id: presence.id().to_owned(), bar: bar() };
    let work = async {
        usable?;
        rotation.run().await
    };
    let ended = tokio::select! {
        ended = presence.keep_during(work) => ended,
        () = signals.next() => {
            let done = rotation.bar.position();
            Err(anyhow!(Interrupted)
                .context(format!("{done} rows are re-encrypted; run it again: it goes on where it stopped")))
        }
    };
    rotation.bar.finish_and_clear();
    presence.end().await;
    Ok(ended?)
}

/// Others must have the first key, too.
fn first_key_is_usable(presence: &Presence, store: &Store) -> Result<(), Problem> {
    let first = store.keys().keys().first();
    let Some(first) = first.filter(|first| first.id() != store.keys().sealing_key().id()) else {
        return Ok(());
    };
    let lacking = presence.waits().map(|waits| names(&waits.lacking)).unwrap_or_default();
    Err(Problem::new(
        format!("key `{}` cannot be used yet", first.id()),
        format!("it is not among the encryption keys of {lacking}"),
        "put it in front of the keys of every worker, restart them one after the other, and run this again",
    ))
}

/// Others must read the newest format, too.
fn newest_format_is_usable(presence: &Presence) -> Result<(), Problem> {
    if presence.behind().is_empty() {
        return Ok(());
    }
    Err(Problem::new(
        format!("format {} of encrypted rows cannot be used yet", Format::NEWEST.number()),
        format!("{} are of an older version", names(presence.behind())),
        "update every worker, one after the other, and run this again",
    ))
}

/// Hidden unless standard error is a terminal.
fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos} of {len}  {msg}  {eta} to go") {
        bar.set_style(style);
    }
    bar
}

struct Rotation<'a> {
    settings: &'a Settings,
    store: &'a Store,
    own_id: String,
    bar: ProgressBar,
}

impl Rotation<'_> {
    async fn run(&self) -> anyhow::Result<Ending> {
        let mut output = Output::new();
        let key_id = self.store.keys().sealing_key().id();
        self.until_all_seal_with(key_id).await?;
        self.bar.set_length(self.store.rows_to_reseal().await?);
        // Pairs that are stored on the way are sealed with this key.
        let mut stored = self.store_spooled().await?;
        let rows = self.reseal_rows().await?;
        self.bar
            .suspend(|| output.line(format_args!("rows re-encrypted with key `{key_id}`: {}", rows.done)))?;
        let on_the_queue = self.store_parked().await;
        if let Ok(parked) = &on_the_queue {
            stored.stored += parked.stored;
            stored.left.extend_from_slice(&parked.left);
        }
        if stored.stored > 0 {
            output.line(format_args!("parked pairs stored: {}", stored.stored))?;
        }
        for row in rows.unopened.iter().take(NAMED) {
            note(format_args!("not re-encrypted: {row}"));
        }
        for pair in stored.left.iter().take(NAMED) {
            note(format_args!("not stored: {pair}"));
        }
        on_the_queue
            .context("the rows are re-encrypted, but the parked pairs were not looked at: run this again")?;
        self.retire_others(key_id, &mut output).await
    }

    /// Others begin to seal with the key within seconds, because all of them hold it.
    async fn until_all_seal_with(&self, key_id: &str) -> anyhow::Result<()> {
        let give_up_at = Instant::now() + LIVING_FOR;
        let mut is_told = false;
        loop {
            let mut others = self.store.workers().await?;
            let is_done = |worker: &KnownWorker| {
                worker.seals_with.as_deref() == Some(key_id)
                    && worker.seals_in_format.is_some_and(|format| format >= Format::NEWEST.number())
            };
            others.retain(|worker| worker.is_living && worker.id != self.own_id && !is_done(worker));
            if others.is_empty() {
                return Ok(());
            }
            if Instant::now() >= give_up_at {
                return Err(Problem::new(
                    format!("others do not encrypt with key `{key_id}`"),
                    format!("{} have another key in front of it", names(&others)),
                    "give all workers the same keys in the same order, and run this again",
                )
                .into());
            }
            if !is_told {
                note(format_args!("Waiting until all workers encrypt with key `{key_id}`."));
                is_told = true;
            }
            sleep(PAUSE).await;
        }
    }

    /// Goes through the rows until none is left that opens.
    async fn reseal_rows(&self) -> anyhow::Result<Resealed> {
        let mut done = 0;
        loop {
            let mut pass = self.store.reseal_providers().await?;
            self.bar.inc(pass.done);
            let mut after = 0;
            while let Some((last, page)) = self.store.reseal_entries(after).await? {
                self.bar.inc(page.done);
                pass.add(page);
                after = last;
            }
            done += pass.done;
            if pass.done + pass.moved == 0 {
                return Ok(Resealed { done, ..pass });
            }
            sleep(PAUSE).await;
        }
    }

    async fn store_spooled(&self) -> anyhow::Result<waiting::Stored> {
        let clock = clock_sync::compared_once(self.store).await?;
        let spool = Spool::new(&self.settings.worker.spool_dir);
        let stored = waiting::store_those_in_the_folder(&spool, self.store, &clock as &dyn Clock).await;
        stored.with_context(|| format!("cannot read the spool folder {}", spool.folder().display()))
    }

    async fn store_parked(&self) -> anyhow::Result<waiting::Stored> {
        let clock = clock_sync::compared_once(self.store).await?;
        Ok(waiting::store_those_on_the_queue(&self.settings.broker, self.store, &clock as &dyn Clock).await?)
    }

    /// Says which keys are needed no more, and lets workers start without them.
    async fn retire_others(&self, key_id: &str, output: &mut Output) -> anyhow::Result<Ending> {
        let outside =
            outside(&self.settings.broker).await.context("cannot look for what lies on the broker")?;
        let spooled = waiting::in_the_folder(&Spool::new(&self.settings.worker.spool_dir)).await?;
        let rows = self.store.rows_by_key().await?;
        let mut is_done = rows.keys().all(|id| id == key_id);
        for canary in self.store.canaries().await? {
            let id = canary.key_id.as_str();
            if id == key_id {
                continue;
            }
            let parked = outside.parked.get(id).copied().unwrap_or_default()
                + spooled.get(id).copied().unwrap_or_default();
            if rows.contains_key(id) || parked > 0 {
                is_done = false;
                output.line(format_args!(
                    "key `{id}` is still needed; `tokenkeeper keys status` shows for what"
                ))?;
                continue;
            }
            self.store.retire_key(id).await?;
            output.line(format_args!(
                "key `{id}` is not needed any more: take it away from the workers, one after the other"
            ))?;
        }
        match &outside.letters {
            Ok(letters) => {
                for (id, letters) in letters.iter().filter(|(id, _)| *id != key_id) {
                    note(format_args!(
                        "key `{id}` opens dead letters ({letters}): replay or drop them before you throw it away"
                    ));
                }
            }
            // Whoever fills the dead letters must not keep a rotation from its end.
            Err(error) => note(format_args!(
                "The dead letters were not looked at: {error}. Look at `tokenkeeper keys status` before you throw a key away."
            )),
        }
        let in_format_1: u64 = rows.values().map(|rows| rows.in_format_1).sum();
        is_done &= in_format_1 == 0;
        if in_format_1 > 0 {
            output.line(format_args!(
                "rows in format 1: {in_format_1}; they open only while that is accepted"
            ))?;
        } else if self.store.keys().accepts_format_1() {
            output.line(
                "no row is in format 1 any more: take encryption.accept_format_1 away from the workers, one after the other",
            )?;
        }
        note(
            "Spool folders of other machines were not looked at: a worker that starts there stores what they hold.",
        );
        Ok(if is_done { Ending::Good } else { Ending::Bad })
    }
}
