//! The admin endpoint: `/metrics`, `/healthz`, `/readyz`.

mod connections;
mod progress;
mod serve;
mod tls;
mod token;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::{Mutex, MutexGuard};
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

/// Whether this worker does its job, and if not, why.
#[derive(Debug)]
pub struct Health {
    database: Availability,
    publisher: Publisher,
    /// One for each of [`Feed::ALL`].
    consuming: [Arc<AtomicBool>; Feed::ALL.len()],
    /// The queues whose messages in hand do not move.
    stuck: Mutex<Vec<Weak<Progress>>>,
    services: Services,
    /// The broker blocks the connection that requests and replies go over.
    blocked: Arc<AtomicBool>,
    /// How many queues of partitions are consumed.
    partitions: Arc<AtomicUsize>,
    /// Which partitions should be; none: not known yet.
    share: watch::Receiver<Option<Share>>,
    address: OnceLock<SocketAddr>,
}

impl Health {
    /// The health of a worker with this database, publisher and share of the partitions.
    pub fn new(
        database: Availability,
        publisher: Publisher,
        services: Services,
        share: watch::Receiver<Option<Share>>,
    ) -> Self {
        let (consuming, stuck, blocked, partitions, address) = Default::default();
        Self { database, publisher, consuming, stuck, services, blocked, partitions, share, address }
    }

    /// Notes that a queue is consumed, until the mark is dropped.
    pub(crate) fn consuming(&self, feed: Feed) -> Mark {
        if let Some(flag) = self.flag(feed) {
            return Mark::flag(flag);
        }
        self.partitions.fetch_add(1, Ordering::Relaxed);
        Mark::Count(Arc::clone(&self.partitions))
    }

    /// Notes that the broker blocks the connection that requests and replies go over, until the mark is dropped.
    pub(crate) fn blocked(&self) -> Mark {
        Mark::flag(&self.blocked)
    }

    /// Watches whether the messages of a queue that are in hand move, for as long as that lives.
    pub(crate) fn watch(&self, feed: Feed, prefetch: u16) -> Arc<Progress> {
        let progress = Arc::new(Progress::new(feed, prefetch));
        let mut watched = lock(&self.stuck);
        watched.retain(|progress| progress.strong_count() > 0);
        watched.push(Arc::downgrade(&progress));
        progress
    }

    /// Where the admin endpoint listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address.get().copied()
    }

    pub(crate) fn set_address(&self, address: SocketAddr) {
        // Set once, at start.
        let _ = self.address.set(address);
    }

    /// What keeps this worker from doing its job; empty: it is ready.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(problem) = self.database.problem() {
            problems.push(format!("database: {problem}"));
        }
        if !self.publisher.is_ready() {
            problems.push("broker: the publishing connection is not up".to_owned());
        }
        if self.blocked.load(Ordering::Relaxed) {
            problems.push("broker: it blocks the connection that replies go over (an alarm)".to_owned());
        }
        for feed in Feed::ALL {
            if self.flag(feed).is_some_and(|flag| !flag.load(Ordering::Relaxed)) {
                problems.push(format!("broker: {feed} is not consumed"));
            }
        }
        problems.extend(self.problem_of_partitions());
        let now = Instant::now();
        problems.extend(lock(&self.stuck).iter().filter_map(|progress| progress.upgrade()?.problem(now)));
        let ended = self.services.ended().into_iter();
        problems.extend(
            ended.map(|name| format!("worker: its task for {name} ended by a bug; start the worker again")),
        );
        problems
    }

    fn problem_of_partitions(&self) -> Option<String> {
        let Some(owned) = self.share.borrow().as_ref().map(Share::len) else {
            return Some("partitions: it is not known yet which ones are this worker's".to_owned());
        };
        let (consumed, due) =
            (self.partitions.load(Ordering::Relaxed), owned * MessageKind::PARTITIONED.len());
        (consumed < due).then(|| {
            format!("broker: {consumed} of the {due} queues of this worker's partitions are consumed")
        })
    }

    /// None: one of many, which are counted.
    fn flag(&self, feed: Feed) -> Option<&Arc<AtomicBool>> {
        let place = Feed::ALL.into_iter().position(|other| other == feed)?;
        self.consuming.get(place)
    }
}

/// Something is so for as long as this lives.
#[derive(Debug)]
pub(crate) enum Mark {
    /// Of one thing.
    Flag(Arc<AtomicBool>),
    /// One of many, which are counted.
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

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock()
}
