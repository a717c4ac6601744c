//! Signals, the soft and the hard stop, and the grace period between them.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// Take nothing new; finish what is in hand.
    pub soft: CancellationToken,
    /// The grace period is over: return what is still in hand.
    pub hard: CancellationToken,
}

#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Replaces the default action of SIGTERM and SIGINT, which ends the process at once.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The first signal starts the soft stop, and the hard stop after the grace period. Returns on the second signal.
    pub async fn drive(mut self, stop: Stop, grace_period: Duration) {
        self.next().await;
        tracing::info!(grace_period_secs = grace_period.as_secs(), "stopping: finishing what is in hand");
        stop.soft.cancel();
        if timeout(grace_period, self.next()).await.is_err() {
            tracing::warn!("the grace period is over: returning what is still in hand");
            stop.hard.cancel();
            self.next().await;
        }
        tracing::warn!("second signal: stopping at once");
    }

    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
