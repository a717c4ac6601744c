//! A steady beat, finer than tokio's milliseconds.

use std::{
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::{Receiver, channel};

/// So far may the beat run ahead of who hears it.
const AHEAD: usize = 4096;

/// Instants that are as far from each other as they should be, each told when it has come.
pub(super) struct Ticks(Receiver<Instant>);

impl Ticks {
    /// So many a second, from now on until this is dropped.
    pub(super) fn start(rate: f64) -> Self {
        let (sender, receiver) = channel(AHEAD);
        let interval = Duration::from_secs_f64(1.0 / rate.max(f64::MIN_POSITIVE));
        // A thread of its own: tokio's timer has a resolution of a millisecond, which is what is to be measured.
        thread::spawn(move || {
            let mut due = Instant::now();
            loop {
                due += interval;
                thread::sleep(due.saturating_duration_since(Instant::now()));
                if sender.blocking_send(due).is_err() {
                    return;
                }
            }
        });
        Self(receiver)
    }

    /// When the next request was to be sent, as soon as it is time.
    pub(super) async fn next(&mut self) -> Instant {
        match self.0.recv().await {
            Some(due) => due,
            // The thread ends after this alone.
            None => std::future::pending().await,
        }
    }
}
