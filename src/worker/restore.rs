//! A parked pair's way from the queue back to the database.

use std::sync::Arc;

use lapin::message::Delivery;
use tokio_util::sync::CancellationToken;

use super::acks::Disposition;
use super::settlement::Settlement;
use crate::broker::{DeadLetter, Feed, Names, Publisher};
use crate::domain::clock::Clock;
use crate::parking::{Return, restore};
use crate::store::{ParkedPair, Store, StoreError};
use crate::telemetry;

/// The reason in the dead letters of a parked pair that cannot be read.
const UNREADABLE: &str = "unreadable_parked_pair";

/// The reason of one that the database refuses.
const REFUSED: &str = "refused_parked_pair";

pub(super) struct Restorer {
    pub(super) store: Store,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) publisher: Publisher,
    pub(super) names: Names,
    /// A pair that is not stored by then is given back, because any other worker can store it. It may be a pair that this worker
    /// parked itself. To wait for the database with that would take the whole grace period.
    pub(super) soft_stop: CancellationToken,
}

impl Restorer {
    /// Stores one pair and settles its message.
    pub(super) async fn process(self: Arc<Self>, delivery: Delivery, settlement: Settlement) {
        let is_done = self.store_pair(&delivery).await;
        settlement.settle(if is_done { Disposition::Ack } else { Disposition::Nack });
    }

    /// Whether the message may be acked.
    async fn store_pair(&self, delivery: &Delivery) -> bool {
        let Ok(parked) = ParkedPair::decode(&delivery.data) else {
            // The decoder's own error could repeat what the body contains.
            let detail = "the body is not one that a worker parked";
            telemetry::parked_pair_unreadable("unknown", &detail);
            return self.lay_into_dead_letters(delivery, UNREADABLE, detail).await;
        };
        match restore(&self.store, &*self.clock, &parked, &self.soft_stop).await {
            Return::Restored => true,
            Return::Stopped => false,
            Return::Unstorable(error) => {
                telemetry::parked_pair_unreadable(&parked.host, &error);
                let reason = match *error {
                    StoreError::Database { .. } | StoreError::NoAnswer => REFUSED,
                    StoreError::Sealed { .. } | StoreError::Changed { .. } | StoreError::Corrupt { .. } => {
                        UNREADABLE
                    }
                };
                self.lay_into_dead_letters(delivery, reason, &error.to_string()).await
            }
        }
    }

    /// Whether the broker took it. It can be replayed once the reason is gone.
    async fn lay_into_dead_letters(&self, delivery: &Delivery, reason: &'static str, detail: &str) -> bool {
        let routing_key = self.names.queue(Feed::ParkedPairs);
        let properties = &delivery.properties;
        let at = self.clock.now();
        let letter = DeadLetter { routing_key: &routing_key, properties, reason, detail, at };
        self.publisher.dead_letter(&letter, &delivery.data).await.is_ok()
    }
}
