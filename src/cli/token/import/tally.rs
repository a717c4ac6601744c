//! How far an import has come.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tokenkeeper::store::{LoginEffect, Store, StoreError};

use crate::cli::output::note;

pub(super) struct Tally {
    pub(super) bar: ProgressBar,
    created: AtomicU64,
    replaced: AtomicU64,
    kept: AtomicU64,
    failed: AtomicU64,
    database_lost: AtomicBool,
}

/// How many lines there were of each kind, or would be.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Counts {
    /// Their pairs are stored.
    imported: u64,
    /// Those of them that took the place of a stored pair.
    replaced: u64,
    /// The stored pair is newer and stays.
    kept: u64,
    pub(super) failed: u64,
}

impl Counts {
    pub(super) fn in_words(self, dry_run: bool) -> String {
        let Self { imported, replaced, kept, failed } = self;
        if dry_run {
            format!(
                "would import {imported} ({replaced} in place of a stored pair), would keep {kept}, failed {failed}"
            )
        } else if replaced > 0 {
            format!(
                "imported {imported} ({replaced} in place of a stored pair), kept {kept}, failed {failed}"
            )
        } else {
            format!("imported {imported}, kept {kept}, failed {failed}")
        }
    }
}

impl Tally {
    pub(super) fn new(size: Option<u64>) -> Self {
        // Hidden unless standard error is a terminal.
        let bar = ProgressBar::with_draw_target(size, ProgressDrawTarget::stderr());
        let template = match size {
            Some(_) => "{bar:30} {percent}%  {msg}  {eta} to go",
            None => "{spinner} {msg}  {elapsed}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self {
            bar,
            created: AtomicU64::new(0),
            replaced: AtomicU64::new(0),
            kept: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            database_lost: AtomicBool::new(false),
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let replaced = count(&self.replaced);
        Counts {
            imported: count(&self.created) + replaced,
            replaced,
            kept: count(&self.kept),
            failed: count(&self.failed),
        }
    }

    pub(super) fn database_is_lost(&self) -> bool {
        self.database_lost.load(Ordering::Relaxed)
    }

    pub(super) fn count(&self, effect: LoginEffect) {
        let counter = match effect {
            LoginEffect::Created => &self.created,
            LoginEffect::Replaced => &self.replaced,
            LoginEffect::Kept => &self.kept,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let Counts { imported, kept, .. } = self.counts();
        self.bar.set_message(format!("{imported} imported, {kept} kept"));
    }

    pub(super) fn fail(&self, line: usize, reason: &str) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.bar.suspend(|| note(format_args!("line {line}: {reason}")));
    }

    /// If the database caused the error, the import stops: the other lines would fail too.
    pub(super) async fn fail_in_store(&self, line: usize, error: &StoreError, store: &Store) {
        if error.is_transient() && store.ping().await.is_err() {
            self.database_lost.store(true, Ordering::Relaxed);
        }
        self.fail(line, &error.to_string());
    }
}
