//! A parked pair's way from the queue back to the database.

use std::sync::Arc;

use lapin::message::Delivery;
use tokio_util::sync::CancellationToken;

use super::acks::Verdict;
use super::settlement::Settlement;
use crate::broker::{DeadLetter, Feed, Names, Publisher};
use crate::domain::clock::Clock;
use crate::parking::{Return, restore};
use crate::store::{ParkedPair, Store, StoreError};
use crate::telemetry;

/// What the dead letters say of a parked pair that cannot be read.
const UNREADABLE: &str = "unreadable_parked_pair";

/// And of one that the database refuses.
const REFUSED: &str = "refused_parked_pair";

/// Brings parked pairs back.
pub(super) struct Restorer {
    pub(super) store: Store,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) publisher: Publisher,
    pub(super) names: Names,
    /// What is not stored by then is given back: any other worker can store it. It may be a pair that this worker
    /// parked itself, delivered to it before its consumer was cancelled; waiting with that for the database would
    /// take the whole grace period.
    pub(super) soft_stop: CancellationToken,
}

impl Restorer {
    /// Takes one pair all the way.
    pub(super) async fn process(self: Arc<Self>, delivery: Delivery, settlement: Settlement) {
        let dealt_with = self.deal_with(&delivery).await;
        settlement.settle(if dealt_with { Verdict::Ack } else { Verdict::Nack });
    }

    /// Whether the message is done with.
    async fn deal_with(&self, delivery: &Delivery) -> bool {
        let Ok(parked) = ParkedPair::decode(&delivery.data) else {
            // The decoder's own words could repeat what stands there.
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
                    StoreError::Sealed { .. } | StoreError::Corrupt { .. } => UNREADABLE,
                };
                self.lay_into_dead_letters(delivery, reason, &error.to_string()).await
            }
        }
    }

    /// Whether it lies there. It can be replayed once the reason is gone.
    async fn lay_into_dead_letters(&self, delivery: &Delivery, reason: &'static str, detail: &str) -> bool {
        let routing_key = self.names.queue(Feed::ParkedPairs);
        let properties = &delivery.properties;
        let at = self.clock.now();
        let letter = DeadLetter { routing_key: &routing_key, properties, reason, detail, at };
        self.publisher.dead_letter(&letter, &delivery.data).await.is_ok()
    }
}
