//! When a queue is consumed, and with what prefetch: a plain queue always, a partition while this worker owns it.
//!
//! The plain queue of a kind has the whole prefetch, and the partitions share as much again. So the plain queue stays fast
//! while publishers change over, and is not subscribed again whenever a replica comes or goes. A worker has at most twice the
//! prefetch in hand. A stalled host still gets at most a quarter of the prefetch of both together (`bulkhead.rs`).

use std::future::pending;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::consume::Consumers;
use crate::broker::Feed;
use crate::contract::MessageKind;
use crate::domain::clock::Clock;
use crate::partitions::{Membership, Share};
use crate::settings::Broker;
use crate::store::Store;
use crate::telemetry;

/// Parked pairs in hand at once.
const PREFETCH_PARKED_PAIRS: u16 = 64;

/// This worker's partitions, as far as it consumes them.
pub(super) struct Partitions {
    membership: Membership,
    /// None: not known yet, or no connection.
    share: watch::Sender<Option<Share>>,
}

impl Partitions {
    /// Nothing is known yet. The receiver tells what this worker's share is.
    pub(super) fn new(
        settings: &Broker,
        store: &Store,
        clock: &Arc<dyn Clock>,
        instance: &str,
    ) -> (Self, watch::Receiver<Option<Share>>) {
        let membership = Membership {
            store: store.clone(),
            clock: Arc::clone(clock),
            me: instance.to_owned(),
            prefix: settings.prefix.clone(),
            partitions: settings.partitions,
        };
        let (share, known) = watch::channel(membership.unknown());
        (Self { membership, share }, known)
    }

    /// Every partition that this worker may own.
    pub(super) fn feeds(&self) -> impl Iterator<Item = Feed> {
        let indexes = (0..self.membership.partitions).map_while(|index| u8::try_from(index).ok());
        indexes.flat_map(|index| MessageKind::PARTITIONED.map(|kind| Feed::Partition(kind, index)))
    }

    /// Takes part until `leave` fires.
    pub(super) async fn take_part(&self, leave: &CancellationToken) {
        self.membership.take_part(&self.share, leave).await;
    }

    /// The connection is gone, and the share is unknown until there is a new one.
    pub(super) fn forget_share(&self) {
        telemetry::no_share();
        self.share.send_replace(self.membership.unknown());
    }

    /// Waits until the share satisfies a condition, and returns the result.
    async fn share_with<T>(&self, find: impl Fn(Option<&Share>) -> Option<T>) -> T {
        let mut share = self.share.subscribe();
        loop {
            let found = find(share.borrow_and_update().as_ref());
            if let Some(found) = found {
                return found;
            }
            if share.changed().await.is_err() {
                // The other end is ours, so this does not happen.
                pending::<()>().await;
            }
        }
    }
}

impl Consumers {
    /// Waits until it is time to consume this feed, and returns the prefetch.
    pub(super) async fn turn(&self, feed: Feed) -> u16 {
        loop {
            self.database.there().await;
            let prefetch = match &self.partitions {
                Some(partitions) => partitions.share_with(|share| self.prefetch(feed, share)).await,
                None => self.tier.prefetch(),
            };
            if self.database.problem().is_none() {
                return prefetch;
            }
        }
    }

    /// Waits until that turn is over: the database is away, or the share has changed.
    pub(super) async fn turn_over(&self, feed: Feed, prefetch: u16) {
        let changed = async {
            match &self.partitions {
                Some(partitions) => {
                    let changed = |share: Option<&Share>| self.prefetch(feed, share) != Some(prefetch);
                    partitions.share_with(|share| changed(share).then_some(())).await;
                }
                None => pending().await,
            }
        };
        tokio::select! {
            () = self.database.lost() => {}
            () = changed => {}
        }
    }

    fn prefetch(&self, feed: Feed, share: Option<&Share>) -> Option<u16> {
        let of_kind = |kind| match kind {
            MessageKind::TokenRequest => self.prefetch.prefetch_token_requests,
            MessageKind::WorkspaceStart => self.prefetch.prefetch_workspace_starts,
            MessageKind::TokenStore => self.prefetch.prefetch_token_stores,
            MessageKind::TokenReport => self.prefetch.prefetch_token_reports,
        };
        match feed {
            Feed::Messages(kind) => Some(of_kind(kind)),
            Feed::Partition(kind, index) => share?.prefetch(index, of_kind(kind)),
            Feed::ParkedPairs => Some(PREFETCH_PARKED_PAIRS),
            Feed::Suspects | Feed::Isolated => Some(self.tier.prefetch()),
        }
    }
}
