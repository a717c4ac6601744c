//! Parked pairs that wait: which keys they need, and how a command stores them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Spool;
use crate::broker::{BrokerError, ParkedQueue};
use crate::domain::clock::Clock;
use crate::domain::secret::is_key_id;
use crate::settings::Broker;
use crate::store::{ParkedPair, Store, StoreError};

/// How many pairs are sealed with a key.
pub type PairsByKey = BTreeMap<String, u64>;

/// What came of storing parked pairs.
#[derive(Debug, Default)]
pub struct Stored {
    pub stored: u64,
    /// Those that stay where they are, and why.
    pub left: Vec<String>,
}

/// The key that sealed a parked pair. None: the message is no parked pair.
pub fn key_of(body: &[u8]) -> Option<String> {
    let pair = ParkedPair::decode(body).ok()?;
    is_key_id(pair.key_id()).then(|| pair.key_id().to_owned())
}

/// The pairs on the queue, by their keys.
pub async fn on_the_queue(settings: &Broker) -> Result<PairsByKey, BrokerError> {
    let mut queue = ParkedQueue::open(settings).await?;
    let mut pairs = PairsByKey::new();
    while let Some(delivery) = queue.next().await? {
        if let Some(key_id) = key_of(&delivery.data) {
            *pairs.entry(key_id).or_default() += 1;
        }
    }
    queue.close().await?;
    Ok(pairs)
}

/// The pairs in a spool folder of this machine, by their keys.
pub async fn in_the_folder(spool: &Spool) -> std::io::Result<PairsByKey> {
    let mut pairs = PairsByKey::new();
    for file in spool.files().await? {
        if let Ok(pair) = spool.read(&file).await {
            *pairs.entry(pair.key_id().to_owned()).or_default() += 1;
        }
    }
    Ok(pairs)
}

/// Stores the pairs on the queue, as a worker does. What cannot be stored stays there for a worker, which knows what to do.
pub async fn store_those_on_the_queue(
    settings: &Broker,
    store: &Store,
    clock: &dyn Clock,
) -> Result<Stored, BrokerError> {
    let mut queue = ParkedQueue::open(settings).await?;
    let mut done = Stored::default();
    while let Some(delivery) = queue.next().await? {
        let stored = match ParkedPair::decode(&delivery.data) {
            Ok(pair) => store_one(store, &pair, clock).await,
            Err(_) => Err("a message there is no parked pair".to_owned()),
        };
        match stored {
            Ok(()) => {
                queue.remove(&delivery).await?;
                done.stored += 1;
            }
            Err(reason) => done.left.push(reason),
        }
    }
    queue.close().await?;
    Ok(done)
}

/// The same for a spool folder of this machine.
pub async fn store_those_in_the_folder(
    spool: &Spool,
    store: &Store,
    clock: &dyn Clock,
) -> std::io::Result<Stored> {
    let mut done = Stored::default();
    for file in spool.files().await? {
        let stored = match spool.read(&file).await {
            Ok(pair) => store_one(store, &pair, clock).await,
            Err(error) => Err(format!("{}: {error}", file.display())),
        };
        match stored {
            Ok(()) => {
                spool.remove(&file).await?;
                done.stored += 1;
            }
            Err(reason) => done.left.push(reason),
        }
    }
    Ok(done)
}

/// Stored, or superseded by a newer pair. Else why not.
async fn store_one(store: &Store, pair: &ParkedPair, clock: &dyn Clock) -> Result<(), String> {
    let stored = store.store_parked(pair, clock.now()).await;
    stored.map(drop).map_err(|error: Arc<StoreError>| error.to_string())
}
