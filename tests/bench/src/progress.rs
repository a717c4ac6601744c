//! Tells on standard error how far the run has come.

use std::{
    io::{self, Write},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

/// The voice of one scenario.
pub(crate) struct Progress {
    scenario: &'static str,
    began: Instant,
    bar: ProgressBar,
}

impl Progress {
    pub(crate) fn new(scenario: &'static str) -> Self {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{elapsed:>5} {spinner} {prefix}: {msg}") {
            bar.set_style(style);
        }
        bar.set_prefix(scenario);
        // Once a second: drawing is work too, on the cores that are measured.
        bar.enable_steady_tick(Duration::from_secs(1));
        Self { scenario, began: Instant::now(), bar }
    }

    /// Says for good what has happened.
    pub(crate) fn step(&self, what: &str) {
        let line = format!("{:>5} s  {}: {what}", self.began.elapsed().as_secs(), self.scenario);
        // Where this cannot be written nobody reads it.
        self.bar.suspend(|| {
            let _ = writeln!(io::stderr(), "{line}");
        });
    }

    /// Shows what happens now, where there is a terminal.
    pub(crate) fn show(&self, what: &str) {
        self.bar.set_message(what.to_owned());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
