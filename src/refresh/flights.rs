//! Which flights are under way in this process, and how requests join them.

use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::Landing;
use crate::telemetry::{self, Panicking};

/// The flights under way, by entry.
#[derive(Debug, Clone, Default)]
pub(super) struct Flights(Arc<Mutex<HashMap<i64, watch::Receiver<Option<Landing>>>>>);

/// A seat on a flight.
#[derive(Debug)]
pub struct Boarding {
    /// Whether this request started it.
    pub role: Role,
    landing: watch::Receiver<Option<Landing>>,
}

/// How a request came to be on a flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It started it.
    Started,
    /// It joined one that was under way.
    Joined,
}

impl Boarding {
    /// Waits until the flight ends.
    pub async fn landing(&mut self) -> Landing {
        let landed = self.landing.wait_for(Option::is_some).await;
        // None: the task was dropped, since the process ends.
        landed.ok().and_then(|landing| landing.clone()).unwrap_or(Landing::Moved)
    }
}

/// Who waits for a flight. One that has begun goes on without them; one that nobody waits for any more need not begin.
#[derive(Debug)]
pub(super) struct Passengers(watch::Sender<Option<Landing>>);

impl Passengers {
    /// Whether anybody waits.
    pub(super) fn any(&self) -> bool {
        // One receiver is the list's own.
        self.0.receiver_count() > 1
    }
}

impl Flights {
    /// Whether this entry has a flight to join.
    pub(super) fn is_under_way(&self, entry_id: i64) -> bool {
        self.0.lock().contains_key(&entry_id)
    }

    /// Joins the flight of this entry, or starts `flight` as a task.
    pub(super) fn board<F>(
        &self,
        entry_id: i64,
        tracker: &TaskTracker,
        flight: impl FnOnce(Passengers) -> F,
    ) -> Boarding
    where
        F: Future<Output = Landing> + Send + 'static,
    {
        let mut under_way = self.0.lock();
        if let Some(landing) = under_way.get(&entry_id) {
            return Boarding { role: Role::Joined, landing: landing.clone() };
        }
        let (landed, landing) = watch::channel(None);
        under_way.insert(entry_id, landing.clone());
        let done = RemoveWhenDone { flights: self.clone(), entry_id };
        let flight = flight(Passengers(landed.clone()));
        let flight = async move {
            let ending = AssertUnwindSafe(flight).catch_unwind().await.unwrap_or_else(|_| {
                telemetry::panicked(Panicking::Refresh);
                Landing::Panicked
            });
            // First off the list, then the word: whoever looks after this starts a flight of their own instead of
            // joining one that has ended.
            drop(done);
            landed.send_replace(Some(ending));
        };
        // Its log lines belong to the request that started it. In a box at once: on its way into a task it is moved.
        tracker.spawn(Box::pin(flight.in_current_span()));
        Boarding { role: Role::Started, landing }
    }
}

/// Takes a flight off the list, also when its task is dropped.
struct RemoveWhenDone {
    flights: Flights,
    entry_id: i64,
}

impl Drop for RemoveWhenDone {
    fn drop(&mut self) {
        self.flights.0.lock().remove(&self.entry_id);
    }
}
