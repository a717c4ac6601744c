//! Goes through the dead letters once and removes some of them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, anyhow};
use indicatif::ProgressBar;
use tokenkeeper::broker::dead_letters::{DeadLetters, Letter};
use tokenkeeper::domain::problem::Problem;
use tokio_util::sync::CancellationToken;

use super::progress;
use crate::cli::ending::Interrupted;
use crate::cli::interruption::stoppable;
use crate::cli::output::{Output, note};
use crate::cli::{Ending, Failure};

#[derive(Debug, clap::Args)]
#[group(multiple = false)]
pub(super) struct Selection {
    /// Those with this reason, as `dead list` shows it; may be given several times
    #[arg(long, value_name = "REASON")]
    reason: Vec<String>,
    /// Those with this ID, as `dead list` shows it; may be given several times
    #[arg(long, value_name = "ID")]
    id: Vec<String>,
    /// All that are there when the command starts
    #[arg(long)]
    all: bool,
}

impl Selection {
    /// # Errors
    /// [`Failure::Usage`]: nothing is selected. Nobody replays or drops everything by accident.
    pub(super) fn check(&self) -> Result<(), Failure> {
        if self.all || !self.reason.is_empty() || !self.id.is_empty() {
            return Ok(());
        }
        let next = "pass --reason, --id or --all";
        Err(Failure::Usage(Problem::new("no dead letters are selected", "", next).into()))
    }

    fn takes(&self, letter: &Letter) -> bool {
        match (self.reason.as_slice(), self.id.as_slice()) {
            ([], []) => true,
            (reasons, []) => reasons.contains(&letter.reason()),
            (_, ids) => ids.contains(&letter.id()),
        }
    }
}

/// What is done to a letter before it is removed.
pub(super) trait Treatment {
    /// The past participle for messages: `replayed`.
    const DONE: &'static str;

    /// The letter is removed only if this succeeds.
    async fn treat(&mut self, letter: &Letter) -> Result<(), Untreated>;
}

/// Why a letter stays.
pub(super) enum Untreated {
    /// This letter failed; others may succeed.
    Stays(String),
    /// Every other letter would fail too.
    Stop(anyhow::Error),
}

/// Letters that are not removed return to the queue.
pub(super) async fn sweep(
    letters: DeadLetters,
    selection: &Selection,
    treatment: &mut impl Treatment,
) -> Result<Ending, Failure> {
    let stop = CancellationToken::new();
    // Unacknowledged letters return to the queue when the connection closes.
    let left = "no letter is lost; run the command again for the rest";
    stoppable(&stop, left, Sweep::new(letters, selection).run(treatment, &stop)).await
}

struct Sweep<'a> {
    letters: DeadLetters,
    selection: &'a Selection,
    bar: ProgressBar,
    done: u64,
    /// Letters that stay, counted by reason.
    staying: BTreeMap<String, u64>,
    found: BTreeSet<String>,
}

impl<'a> Sweep<'a> {
    fn new(letters: DeadLetters, selection: &'a Selection) -> Self {
        let bar = progress(&letters);
        Self { letters, selection, bar, done: 0, staying: BTreeMap::new(), found: BTreeSet::new() }
    }

    async fn run<T: Treatment>(
        mut self,
        treatment: &mut T,
        stop: &CancellationToken,
    ) -> Result<Ending, Failure> {
        let ended = self.go_through(treatment, stop).await;
        self.bar.finish_and_clear();
        let Self { letters, selection, done, staying, found, .. } = self;
        let closed = letters.close().await;
        let failed: u64 = staying.values().sum();
        for (reason, count) in staying {
            note(format_args!("{count} not {}: {reason}", T::DONE));
        }
        Output::new().line(format_args!("{} {done}, failed {failed}", T::DONE))?;
        ended.with_context(|| format!("not all were {}; run the command again for the rest", T::DONE))?;
        closed.with_context(|| {
            format!("the last letters that were {} may still be there; they would be {0} twice", T::DONE)
        })?;
        for reason in selection.reason.iter().filter(|reason| !found.contains(*reason)) {
            note(format_args!("No dead letter has the reason {reason}."));
        }
        let missing: Vec<&str> =
            selection.id.iter().filter(|id| !found.contains(*id)).map(String::as_str).collect();
        if !missing.is_empty() {
            Err(anyhow!("no dead letter has the ID {}", missing.join(", ")))?;
        }
        Ok(if failed == 0 { Ending::Good } else { Ending::Bad })
    }

    async fn go_through(
        &mut self,
        treatment: &mut impl Treatment,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        while let Some(letter) = self.next(stop).await? {
            self.bar.inc(1);
            if !self.selection.takes(&letter) {
                continue;
            }
            self.found.extend([letter.id(), letter.reason()]);
            match treatment.treat(&letter).await {
                Ok(()) => {
                    self.letters.take_out(&letter).await?;
                    self.done += 1;
                }
                Err(Untreated::Stays(reason)) => *self.staying.entry(reason).or_default() += 1,
                Err(Untreated::Stop(error)) => return Err(error),
            }
            let failed: u64 = self.staying.values().sum();
            self.bar.set_message(format!("{} done, {failed} failed", self.done));
        }
        Ok(())
    }

    /// An interruption takes effect only between two letters.
    async fn next(&mut self, stop: &CancellationToken) -> anyhow::Result<Option<Letter>> {
        tokio::select! {
            biased;
            () = stop.cancelled() => Err(Interrupted.into()),
            letter = self.letters.next() => Ok(letter?),
        }
    }
}
