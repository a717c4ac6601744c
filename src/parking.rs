//! PARK: where a rotated pair goes when the database refuses it, or does not take it before its worker must stop (invariant 4).
//!
//! To the durable queue `<prefix>.parked-pairs`, which every worker consumes; or, where the broker is away too, to a
//! file in the spool folder, which the next worker that starts there picks up. Either way the pair is encrypted, and
//! is stored by the same guarded UPDATE as ever.

mod spool;

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

/// How long the broker has to take a parked pair before it goes to the spool folder. Short: whoever told us to stop
/// may lose patience.
const BROKER_PATIENCE: Duration = Duration::from_secs(3);

/// How often a parked pair is tried to be stored.
const RESTORE_AGAIN: Backoff = Backoff::doubling(Duration::from_millis(50), Duration::from_secs(1));

/// How long one try to store a parked pair may take: a worker that stops waits for it. It may have taken effect all the
/// same; the next one then finds that out.
const RESTORE_PATIENCE: Duration = Duration::from_secs(5);

/// Where pairs are parked, and from when on.
#[derive(Debug, Clone)]
pub struct Parking {
    publisher: Publisher,
    spool: Spool,
    soft_stop: CancellationToken,
}

/// Neither the broker nor the spool folder took a pair.
#[derive(Debug, thiserror::Error)]
#[error("{broker}; and cannot write it to the spool folder {}: {spool}", folder.display())]
pub struct ParkError {
    broker: BrokerError,
    spool: std::io::Error,
    folder: PathBuf,
}

/// How an attempt to bring a parked pair back ended.
#[derive(Debug)]
pub enum Return {
    /// It is where it belongs.
    Restored,
    /// It never will be as things are: a key is missing, somebody changed it, or the database refuses it.
    Unstorable(Arc<StoreError>),
    /// The worker stops before the database took it.
    Stopped,
}

impl Parking {
    /// Pairs that the database only does not take are parked from `soft_stop` on.
    pub const fn new(publisher: Publisher, spool: Spool, soft_stop: CancellationToken) -> Self {
        Self { publisher, spool, soft_stop }
    }

    /// Whether a pair that the database does not take is to be parked.
    pub fn is_due(&self) -> bool {
        self.soft_stop.is_cancelled()
    }

    /// Waits until pairs are to be parked.
    pub async fn due(&self) {
        self.soft_stop.cancelled().await;
    }

    /// Parks a pair: confirmed by the broker, or synced to disk.
    ///
    /// # Errors
    /// [`ParkError`]; worth another try.
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

/// Stores a parked pair, for as long as that takes; once `stop` fires it is not tried again.
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
    retry_until(stop.cancelled(), RESTORE_AGAIN, store_once).await.unwrap_or(Return::Stopped)
}

/// Brings back what an earlier worker left in the spool folder.
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
            // One that stays is stored again at the next start, which changes nothing.
            Return::Restored => match spool.remove(&file).await {
                Ok(()) => {}
                Err(error) => telemetry::spool_unusable(&file, &error),
            },
            // It stays where it is, for an operator who mends that.
            Return::Unstorable(error) => telemetry::parked_pair_unreadable(&parked.host, &error),
            Return::Stopped => return,
        }
    }
}
