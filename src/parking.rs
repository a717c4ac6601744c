//! PARK: keeps a rotated pair that the database refuses, or does not accept before its worker must stop (invariant 4).
//!
//! The pair goes to the durable queue `<prefix>.parked-pairs`, which every worker consumes. If the broker does not answer
//! either, the pair goes to a file in the spool folder, and the next worker that starts there picks it up. Either way
//! the pair is encrypted, and is stored by the usual guarded UPDATE.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod spool;
pub mod waiting;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use self::spool::Spool;
use crate::broker::{BrokerError, Publisher};
use crate::domain::clock::Clock;
use crate::retry::{Backoff, retry_until};
use crate::store::{ParkedPair, Restored, Store, StoreError};
use crate::telemetry;

/// How long to wait for the broker before the pair goes to the spool folder. It is short, because whoever stops us may
/// kill us soon.
const BROKER_PATIENCE: Duration = Duration::from_secs(3);

const RESTORE_WAITS: Backoff = Backoff::doubling(Duration::from_millis(50), Duration::from_secs(1));

/// How long one try to store a parked pair may take: a worker that stops waits for it. If the try took effect after all,
/// the next one sees that.
const RESTORE_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub struct Parking {
    publisher: Publisher,
    spool: Spool,
    soft_stop: CancellationToken,
}

/// Neither the broker nor the spool folder accepted the pair.
#[derive(Debug, thiserror::Error)]
#[error("{broker}; and cannot write it to the spool folder {}: {spool}", folder.display())]
pub struct ParkError {
    broker: BrokerError,
    spool: std::io::Error,
    folder: PathBuf,
}

/// The outcome of [`restore`].
#[derive(Debug)]
pub enum Return {
    /// Stored, or superseded by a newer pair.
    Restored,
    /// Another try is pointless: a key is missing, the pair was tampered with, or the database refuses it.
    Unstorable(Arc<StoreError>),
    /// The worker stopped before the database accepted it.
    Stopped,
}

impl Parking {
    /// Pairs are parked only after `soft_stop`, unless the database refuses them.
    pub const fn new(publisher: Publisher, spool: Spool, soft_stop: CancellationToken) -> Self {
        Self { publisher, spool, soft_stop }
    }

    /// Whether a pair that the database does not accept must be parked now.
    pub fn is_due(&self) -> bool {
        self.soft_stop.is_cancelled()
    }

    /// Waits until pairs must be parked.
    pub async fn due(&self) {
        self.soft_stop.cancelled().await;
    }

    /// Parks a pair: confirmed by the broker, or synced to disk. An error is worth another try.
    pub async fn park(&self, parked: &ParkedPair) -> Result<(), ParkError> {
        let broker = match self.publisher.park(&parked.encode(), BROKER_PATIENCE).await {
            Ok(()) => {
                telemetry::pair_parked(&parked.host);
                return Ok(());
            }
            Err(error) => error,
        };
        match self.spool.write(parked).await {
            Ok(file) => {
                telemetry::pair_spooled(&parked.host, &broker, &file);
                Ok(())
            }
            Err(spool) => Err(ParkError { broker, spool, folder: self.spool.folder().to_owned() }),
        }
    }
}

/// Stores a parked pair, however long that takes. After `stop` it is not tried again.
pub async fn restore(
    store: &Store,
    clock: &dyn Clock,
    parked: &ParkedPair,
    stop: &CancellationToken,
) -> Return {
    let store_once = |delay| async move {
        let stored = timeout(RESTORE_PATIENCE, store.store_parked(parked, clock.now())).await;
        match stored.unwrap_or_else(|_| Err(StoreError::NoAnswer.into())) {
            Ok(Restored::Stored) => telemetry::parked_pair_stored(&parked.host),
            Ok(Restored::Superseded) => telemetry::parked_pair_superseded(&parked.host),
            Err(error) if !error.is_transient() => return Some(Return::Unstorable(error)),
            Err(error) => {
                telemetry::parked_pair_waits(&parked.host, &error, delay);
                return None;
            }
        }
        Some(Return::Restored)
    };
    retry_until(stop.cancelled(), RESTORE_WAITS, store_once).await.unwrap_or(Return::Stopped)
}

/// Stores what an earlier worker left in the spool folder.
pub async fn pick_up(spool: Spool, store: Store, clock: Arc<dyn Clock>, hard_stop: CancellationToken) {
    let files = match spool.files().await {
        Ok(files) => files,
        Err(error) => return telemetry::spool_unusable(spool.folder(), &error),
    };
    for file in files {
        let parked = match spool.read(&file).await {
            Ok(parked) => parked,
            Err(error) => {
                telemetry::spool_unusable(&file, &error);
                continue;
            }
        };
        match restore(&store, &*clock, &parked, &hard_stop).await {
            // A file that stays is stored again at the next start, which changes nothing.
            Return::Restored => match spool.remove(&file).await {
                Ok(()) => {}
                Err(error) => telemetry::spool_unusable(&file, &error),
            },
            // The file stays until an operator solves the problem.
            Return::Unstorable(error) => telemetry::parked_pair_unreadable(&parked.host, &error),
            Return::Stopped => return,
        }
    }
}
