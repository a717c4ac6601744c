//! The admin endpoint: `/metrics`, `/healthz`, `/readyz`.

mod progress;
mod readiness;
mod scrape;
mod serve;
mod tls;
mod token;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::time::Instant;

pub(crate) use self::progress::Progress;
use self::progress::Watched;
pub use self::readiness::Readiness;
pub use self::scrape::Metrics;
pub use self::serve::Endpoint;
use crate::app::services::Services;
use crate::broker::Feed;
use crate::broker::Publisher;
use crate::journal::{Gate, Journal};
use crate::parking::Spool;
use crate::store::database::Availability;

/// What keeps this worker from doing its job.
#[derive(Debug)]
pub struct Health {
    database: Availability,
    publisher: Publisher,
    journal: Journal,
    /// One for each of [`Feed::ALL`].
    consuming: [Arc<AtomicBool>; Feed::ALL.len()],
    /// Whether messages in hand are being settled.
    watched: Watched,
    services: Services,
    spool: Spool,
    /// Whether the broker blocks the connection for requests and replies.
    blocked: Arc<AtomicBool>,
    /// The number of consumed partition queues.
    partitions: Arc<AtomicUsize>,
    /// The number of partition queues that should be consumed.
    partitions_due: usize,
    address: OnceLock<SocketAddr>,
}

impl Health {
    pub fn new(
        database: Availability,
        publisher: Publisher,
        services: Services,
        spool: Spool,
        partitions: u16,
    ) -> Self {
        let partitions_due = Feed::partitions(partitions).count();
        let (consuming, watched, blocked, partitions, address) = Default::default();
        Self {
            database,
            publisher,
            journal: Journal::none(),
            consuming,
            watched,
            services,
            spool,
            blocked,
            partitions,
            partitions_due,
            address,
        }
    }

    #[must_use]
    pub fn with_journal(self, journal: Journal) -> Self {
        Self { journal, ..self }
    }

    /// Marks a queue as consumed until the mark is dropped.
    pub(crate) fn consuming(&self, feed: Feed) -> Mark {
        if let Some(flag) = self.flag(feed) {
            return Mark::flag(flag);
        }
        self.partitions.fetch_add(1, Ordering::Relaxed);
        Mark::Count(Arc::clone(&self.partitions))
    }

    /// Whether this worker consumes it. No for partitions, which are only counted.
    pub(crate) fn consumes(&self, feed: Feed) -> bool {
        self.flag(feed).is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    /// Marks the connection for requests and replies as blocked until the mark is dropped.
    pub(crate) fn blocked(&self) -> Mark {
        Mark::flag(&self.blocked)
    }

    /// Watches whether a queue's messages in hand are being settled, until the result is dropped. All partitions of a kind
    /// share one.
    pub(crate) fn watch(&self, feed: Feed, prefetch: u16) -> Arc<Progress> {
        let name = match feed {
            Feed::Partition(kind, _) => format!("{kind} in partitions"),
            Feed::Messages(_) | Feed::ParkedPairs | Feed::Suspects | Feed::Isolated => feed.to_string(),
        };
        self.watched.watch(name, prefetch)
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
        problems.extend(match self.journal.gate() {
            Gate::Open => None,
            Gate::Reading { records } => Some(format!(
                "journal: it is read from where the database stands, {records} records so far (docs/journal.md)"
            )),
            Gate::Asking => Some("journal: the database does not say how far it is".to_owned()),
        });
        problems.extend(self.spool.problem().map(|problem| format!("worker: {problem}")));
        let troubles = self.publisher.troubles().problems();
        problems.extend(troubles.into_iter().map(|problem| format!("broker: {problem}")));
        if !self.publisher.is_ready() {
            problems.push("broker: the publishing connection is down".to_owned());
        }
        if self.blocked.load(Ordering::Relaxed) {
            problems.push(
                "broker: it blocks the connection for replies; check its memory and disk alarms".to_owned(),
            );
        }
        let paused: Vec<String> = Feed::ALL
            .into_iter()
            .filter(|feed| self.flag(*feed).is_some_and(|flag| !flag.load(Ordering::Relaxed)))
            .map(|feed| feed.to_string())
            .collect();
        if !paused.is_empty() {
            problems.push(format!("worker: it does not consume {}", paused.join(", ")));
        }
        let (consumed, due) = (self.partitions.load(Ordering::Relaxed), self.partitions_due);
        if consumed < due {
            problems.push(format!("broker: {consumed} of the {due} queues of partitions are consumed"));
        }
        problems.extend(self.watched.problems(Instant::now()));
        let ended = self.services.ended().into_iter();
        problems.extend(
            ended.map(|name| format!("worker: its task for {name} ended by a bug; restart the worker")),
        );
        problems
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
