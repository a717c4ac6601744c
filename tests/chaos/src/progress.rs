//! Tells on standard error how far a scenario has come.

use std::{
    io::{self, Write},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{Instant, interval};

use crate::upstream::Book;

const TICK: Duration = Duration::from_millis(250);
/// How often a line is written where there is no terminal to draw on.
const LINE: Duration = Duration::from_secs(10);

/// The voice of one scenario.
pub(crate) struct Progress {
    scenario: &'static str,
    began: Instant,
    bar: ProgressBar,
}

impl Progress {
    pub(crate) fn new(scenario: &'static str) -> Self {
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{elapsed:>5} {prefix} [{bar:30}] {msg}") {
            bar.set_style(style);
        }
        bar.set_prefix(scenario);
        Self { scenario, began: Instant::now(), bar }
    }

    /// Says what happens now.
    pub(crate) fn say(&self, what: &str) {
        let line = format!("{:>5} s  {}: {what}", self.began.elapsed().as_secs(), self.scenario);
        // Where this cannot be written nobody reads it.
        self.bar.suspend(|| {
            let _ = writeln!(io::stderr(), "{line}");
        });
    }

    /// Shows how many of `total` requests (0: nobody knows) are sent and answered, while `work` is done.
    pub(crate) async fn during<T>(&self, book: &Book, total: usize, work: impl Future<Output = T>) -> T {
        self.bar.set_length(total as u64);
        let showing = async {
            let mut ticks = interval(TICK);
            let mut last_line = Instant::now();
            loop {
                ticks.tick().await;
                let counts = book.counts();
                let of = if total > 0 { format!(" of {total}") } else { String::new() };
                let message = format!("{}{of} sent, {} answered", counts.sent, counts.answered);
                self.bar.set_position(counts.answered as u64);
                if self.bar.is_hidden() && last_line.elapsed() >= LINE {
                    last_line = Instant::now();
                    self.say(&message);
                }
                self.bar.set_message(message);
            }
        };
        tokio::select! {
            done = work => done,
            never = showing => never,
        }
    }

    /// How long it has taken so far.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
