//! Stopping: signals, the soft and the hard stop, and the grace period between them.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// The two stops of a process.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// Take nothing new; finish what is in hand.
    pub soft: CancellationToken,
    /// The grace period is over: give back what is still in hand.
    pub hard: CancellationToken,
}

/// The signals that ask a process to stop.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Takes SIGTERM and SIGINT over from their default, which is to die at once.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// First signal: soft stop, and after the grace period the hard stop. Comes back on a second signal.
    pub async fn drive(mut self, stop: Stop, grace_period: Duration) {
        self.next().await;
        tracing::info!(grace_period_secs = grace_period.as_secs(), "stopping: finishing what is in hand");
        stop.soft.cancel();
        if timeout(grace_period, self.next()).await.is_err() {
            tracing::warn!("the grace period is over: giving back what is still in hand");
            stop.hard.cancel();
            self.next().await;
        }
        tracing::warn!("second signal: ending at once");
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
