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

use super::FlightOutcome;
use crate::telemetry::{self, Panicking};

/// The flights under way, by entry.
#[derive(Debug, Clone, Default)]
pub(super) struct Flights(Arc<Mutex<HashMap<i64, watch::Receiver<Option<FlightOutcome>>>>>);

#[derive(Debug)]
pub struct InFlight {
    pub role: Role,
    outcome: watch::Receiver<Option<FlightOutcome>>,
}

/// How a request came to wait for a flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Started,
    Joined,
}

impl InFlight {
    pub async fn outcome(&mut self) -> FlightOutcome {
        let ended = self.outcome.wait_for(Option::is_some).await;
        // None: the task was dropped, because the process ends.
        ended.ok().and_then(|outcome| outcome.clone()).unwrap_or(FlightOutcome::Moved)
    }
}

/// The requests that wait for a flight. A flight goes on without them once it has begun, and need not begin if none is left.
#[derive(Debug)]
pub(super) struct Waiters(watch::Sender<Option<FlightOutcome>>);

impl Waiters {
    pub(super) fn any(&self) -> bool {
        // One receiver is the list's own.
        self.0.receiver_count() > 1
    }
}

impl Flights {
    pub(super) fn is_under_way(&self, entry_id: i64) -> bool {
        self.0.lock().contains_key(&entry_id)
    }

    /// Joins the flight of this entry, or starts `flight` as a task.
    pub(super) fn join_or_start<F>(
        &self,
        entry_id: i64,
        tracker: &TaskTracker,
        flight: impl FnOnce(Waiters) -> F,
    ) -> InFlight
    where
        F: Future<Output = FlightOutcome> + Send + 'static,
    {
        let mut under_way = self.0.lock();
        if let Some(outcome) = under_way.get(&entry_id) {
            return InFlight { role: Role::Joined, outcome: outcome.clone() };
        }
        let (ended, outcome) = watch::channel(None);
        under_way.insert(entry_id, outcome.clone());
        let done = RemoveWhenDone { flights: self.clone(), entry_id };
        let flight = flight(Waiters(ended.clone()));
        let flight = async move {
            let ending = AssertUnwindSafe(flight).catch_unwind().await.unwrap_or_else(|_| {
                telemetry::panicked(Panicking::Refresh);
                FlightOutcome::Panicked
            });
            // The flight leaves the list before the outcome is sent. A request that comes later starts a flight of its own
            // instead of joining one that has ended.
            drop(done);
            ended.send_replace(Some(ending));
        };
        // Its log lines belong to the request that started it. Boxed at once, because it is moved on its way into a task.
        tracker.spawn(Box::pin(flight.in_current_span()));
        InFlight { role: Role::Started, outcome }
    }
}

/// Removes a flight from the list, also if its task is dropped.
struct RemoveWhenDone {
    flights: Flights,
    entry_id: i64,
}

impl Drop for RemoveWhenDone {
    fn drop(&mut self) {
        self.flights.0.lock().remove(&self.entry_id);
    }
}
