//! A worker's place among the replicas that share the partitions.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{FORGOTTEN_AFTER, HEARTBEAT, Share, TTL};
use crate::domain::clock::Clock;
use crate::store::{Replica, Store, StoreError};
use crate::telemetry;

/// How long one look may take: after that the next one may find a better connection.
const PATIENCE: Duration = Duration::from_secs(2);

/// A worker that shares the partitions with others.
#[derive(Debug)]
pub struct Membership {
    /// Where the replicas are listed.
    pub store: Store,
    /// The database's clock: what replicas wrote is compared.
    pub clock: Arc<dyn Clock>,
    /// This worker's name.
    pub me: String,
    /// The first part of the names of the queues.
    pub prefix: String,
    /// How many partitions of each kind there are; 0: there is nothing to share.
    pub partitions: u16,
}

impl Membership {
    /// What is known before the first look.
    pub fn unknown(&self) -> Option<Share> {
        (self.partitions == 0).then(Share::default)
    }

    /// Takes part until `leave` fires, and says in `share` what this worker gets. The others learn at once that it leaves;
    /// that it does not look any more, they learn after the [`TTL`].
    pub async fn take_part(&self, share: &watch::Sender<Option<Share>>, leave: &CancellationToken) {
        if self.partitions == 0 {
            return;
        }
        loop {
            match timeout(PATIENCE, self.look()).await.unwrap_or(Err(StoreError::NoAnswer)) {
                Ok(found) => {
                    share.send_if_modified(|known| {
                        let changed = known.as_ref() != Some(&found);
                        if changed {
                            let none = Share::default();
                            let before = known.as_ref().unwrap_or(&none);
                            let (taken, given_up) = (found.beyond(before), before.beyond(&found));
                            let (owned, replicas) = (found.len(), found.replicas());
                            telemetry::share_changed(owned, taken, given_up, replicas, self.partitions);
                            *known = Some(found);
                        }
                        changed
                    });
                }
                // The share stays as it is: whether messages can be worked on at all is not decided here.
                Err(error) => telemetry::replicas_not_seen(&error),
            }
            tokio::select! {
                () = leave.cancelled() => break,
                () = sleep(HEARTBEAT) => {}
            }
        }
        let left = timeout(PATIENCE, self.store.remove_replica(&self.me)).await;
        if let Err(error) = left.unwrap_or(Err(StoreError::NoAnswer)) {
            telemetry::share_not_handed_over(&error, TTL);
        }
        telemetry::no_share();
    }

    async fn look(&self) -> Result<Share, StoreError> {
        let now = self.clock.now();
        let me = Replica { id: self.me.clone(), partitions: self.partitions, seen_at: now };
        self.store.see_replica(&self.prefix, &me).await?;
        let replicas = self.store.replicas(&self.prefix).await?;
        if replicas.iter().any(|replica| now >= replica.seen_at.plus(FORGOTTEN_AFTER)) {
            self.store.forget_replicas(now.minus(FORGOTTEN_AFTER)).await?;
        }
        Ok(Share::of(&replicas, &self.me, self.partitions, now))
    }
}
