//! The admin endpoint: `/metrics`, `/healthz`, `/readyz`.

mod connections;
mod progress;
mod serve;
mod tls;
mod token;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

pub(crate) use self::progress::Progress;
pub use self::serve::Endpoint;
use crate::app::services::Services;
use crate::broker::Feed;
use crate::broker::Publisher;
use crate::contract::MessageKind;
use crate::partitions::Share;
use crate::store::database::Availability;

/// What keeps this worker from doing its job.
#[derive(Debug)]
pub struct Health {
    database: Availability,
    publisher: Publisher,
    /// One for each of [`Feed::ALL`].
    consuming: [Arc<AtomicBool>; Feed::ALL.len()],
    /// One for each consumed queue: whether its messages are being settled.
    watched: Mutex<Vec<Weak<Progress>>>,
    services: Services,
    /// Whether the broker blocks the connection for requests and replies.
    blocked: Arc<AtomicBool>,
    /// The number of consumed partition queues.
    partitions: Arc<AtomicUsize>,
    /// The partitions that should be consumed. `None`: not known yet.
    share: watch::Receiver<Option<Share>>,
    address: OnceLock<SocketAddr>,
}

impl Health {
    pub fn new(
        database: Availability,
        publisher: Publisher,
        services: Services,
        share: watch::Receiver<Option<Share>>,
    ) -> Self {
        let (consuming, watched, blocked, partitions, address) = Default::default();
        Self { database, publisher, consuming, watched, services, blocked, partitions, share, address }
    }

    /// Marks a queue as consumed until the mark is dropped.
    pub(crate) fn consuming(&self, feed: Feed) -> Mark {
        if let Some(flag) = self.flag(feed) {
            return Mark::flag(flag);
        }
        self.partitions.fetch_add(1, Ordering::Relaxed);
        Mark::Count(Arc::clone(&self.partitions))
    }

    /// Marks the connection for requests and replies as blocked until the mark is dropped.
    pub(crate) fn blocked(&self) -> Mark {
        Mark::flag(&self.blocked)
    }

    /// Watches whether a queue's messages in hand are being settled, until the result is dropped.
    pub(crate) fn watch(&self, feed: Feed, prefetch: u16) -> Arc<Progress> {
        let progress = Arc::new(Progress::new(feed, prefetch));
        let mut watched = self.watched.lock();
        watched.retain(|progress| progress.strong_count() > 0);
        watched.push(Arc::downgrade(&progress));
        progress
    }

    pub fn address(&self) -> Option<SocketAddr> {
        self.address.get().copied()
    }

    pub(crate) fn set_address(&self, address: SocketAddr) {
        // It is set once, at start.
        let _ = self.address.set(address);
    }

    /// Empty if the worker is ready.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(problem) = self.database.problem() {
            problems.push(format!("database: {problem}"));
        }
        if !self.publisher.is_ready() {
            problems.push("broker: the publishing connection is down".to_owned());
        }
        if self.blocked.load(Ordering::Relaxed) {
            problems.push(
                "broker: it blocks the connection for replies; check its memory and disk alarms".to_owned(),
            );
        }
        for feed in Feed::ALL {
            if self.flag(feed).is_some_and(|flag| !flag.load(Ordering::Relaxed)) {
                problems.push(format!("broker: {feed} is not consumed"));
            }
        }
        problems.extend(self.problem_of_partitions());
        let now = Instant::now();
        problems.extend(self.watched.lock().iter().filter_map(|progress| progress.upgrade()?.problem(now)));
        let ended = self.services.ended().into_iter();
        problems.extend(
            ended.map(|name| format!("worker: its task for {name} ended by a bug; restart the worker")),
        );
        problems
    }

    fn problem_of_partitions(&self) -> Option<String> {
        let Some(owned) = self.share.borrow().as_ref().map(Share::len) else {
            return Some("partitions: this worker's share is not known yet".to_owned());
        };
        let (consumed, due) =
            (self.partitions.load(Ordering::Relaxed), owned * MessageKind::PARTITIONED.len());
        (consumed < due).then(|| {
            format!("broker: {consumed} of the {due} queues of this worker's partitions are consumed")
        })
    }

    /// `None` for queues of partitions, which are only counted.
    fn flag(&self, feed: Feed) -> Option<&Arc<AtomicBool>> {
        let place = Feed::ALL.into_iter().position(|other| other == feed)?;
        self.consuming.get(place)
    }
}

/// A condition that holds until this is dropped.
#[derive(Debug)]
pub(crate) enum Mark {
    Flag(Arc<AtomicBool>),
    Count(Arc<AtomicUsize>),
}

impl Mark {
    fn flag(flag: &Arc<AtomicBool>) -> Self {
        flag.store(true, Ordering::Relaxed);
        Self::Flag(Arc::clone(flag))
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        match self {
            Self::Flag(flag) => flag.store(false, Ordering::Relaxed),
            Self::Count(count) => {
                count.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}
