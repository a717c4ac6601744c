//! What happened at the token endpoint: every refresh request, and how many there were at once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::sync::watch;

use crate::wait::{PATIENCE, within};

/// One refresh request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefreshEvent {
    /// Whose refresh token was sent; `None` where the SCM never issued it.
    pub user: Option<String>,
    /// The number of the pair whose refresh token was sent.
    pub pair: Option<u64>,
    /// The number of the pair that was issued, whatever the client saw of it.
    pub new_pair: Option<u64>,
    /// When the request arrived, in epoch milliseconds of the SCM's clock.
    pub started_at_ms: i64,
    /// When it was answered or its client left; `None` while it is in flight.
    pub ended_at_ms: Option<i64>,
    /// How it ended, as the client saw it.
    pub outcome: RefreshOutcome,
    /// Whether the SCM issued a new pair, whatever the client saw of it.
    pub rotated: bool,
}

/// How a refresh request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefreshOutcome {
    /// It has not.
    InFlight,
    /// With a new pair.
    Accepted,
    /// With a refusal of the SCM's own: wrong client, dead refresh token, malformed request.
    Refused,
    /// With a [`Fault`](super::Fault), or because the SCM could not take its lock.
    Failed,
    /// The client left before the answer.
    Abandoned,
}

/// The SCM's clock: epoch milliseconds.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// The record of all refresh requests.
pub(super) struct Traffic {
    clock: Clock,
    record: Mutex<Record>,
    in_flight: watch::Sender<usize>,
}

#[derive(Default)]
struct Record {
    events: Vec<RefreshEvent>,
    users: HashMap<String, Overlap>,
    total: Overlap,
    at_work: Overlap,
}

#[derive(Default)]
struct Overlap {
    now: usize,
    max: usize,
}

impl Traffic {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, record: Mutex::default(), in_flight: watch::Sender::default() }
    }

    /// Records that a refresh request has arrived. It is in flight until it is finished or its flight dropped.
    pub(super) fn begin(self: &Arc<Self>, sent: Option<(String, u64)>) -> Flight {
        let (user, pair) = sent.unzip();
        let mut record = self.record();
        record.events.push(RefreshEvent {
            user: user.clone(),
            pair,
            new_pair: None,
            started_at_ms: (self.clock)(),
            ended_at_ms: None,
            outcome: RefreshOutcome::InFlight,
            rotated: false,
        });
        record.total.enter();
        if let Some(user) = user {
            record.users.entry(user).or_default().enter();
        }
        let index = record.events.len() - 1;
        self.in_flight.send_replace(record.total.now);
        Flight { traffic: self.clone(), index, if_dropped: RefreshOutcome::Abandoned }
    }

    /// Records that the SCM is changing tokens, until the guard is dropped.
    pub(super) fn work(self: &Arc<Self>) -> Work {
        self.record().at_work.enter();
        Work(self.clone())
    }

    /// Records that the request has led to a new pair, the one with this number.
    pub(super) fn rotated(&self, index: usize, number: u64) {
        let event = &mut self.record().events[index];
        event.rotated = true;
        event.new_pair = Some(number);
    }

    pub(super) fn log(&self) -> Vec<RefreshEvent> {
        self.record().events.clone()
    }

    /// How many requests in the log satisfy `condition`.
    pub(super) fn count(&self, condition: impl Fn(&RefreshEvent) -> bool) -> usize {
        self.record().events.iter().filter(|event| condition(event)).count()
    }

    pub(super) fn max_overlap(&self, user: &str) -> usize {
        self.record().users.get(user).map_or(0, |overlap| overlap.max)
    }

    pub(super) fn max_overlap_total(&self) -> usize {
        self.record().total.max
    }

    pub(super) fn max_at_work(&self) -> usize {
        self.record().at_work.max
    }

    /// Waits until at least `count` refresh requests are in flight at once.
    pub(super) async fn wait_for_in_flight(&self, count: usize) {
        let mut in_flight = self.in_flight.subscribe();
        let what = format!("{count} refresh requests in flight");
        within(&what, PATIENCE, in_flight.wait_for(|now| *now >= count)).await.expect("the record is alive");
    }

    fn end(&self, index: usize, outcome: RefreshOutcome) {
        let mut record = self.record();
        let event = &mut record.events[index];
        event.ended_at_ms = Some((self.clock)());
        event.outcome = outcome;
        let user = event.user.clone();
        record.total.leave();
        if let Some(overlap) = user.and_then(|user| record.users.get_mut(&user)) {
            overlap.leave();
        }
        self.in_flight.send_replace(record.total.now);
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().expect("the record of refreshes")
    }
}

impl Overlap {
    fn enter(&mut self) {
        self.now += 1;
        self.max = self.max.max(self.now);
    }

    fn leave(&mut self) {
        self.now -= 1;
    }
}

/// A refresh request in flight, as its client sees it.
pub(super) struct Flight {
    traffic: Arc<Traffic>,
    index: usize,
    if_dropped: RefreshOutcome,
}

impl Flight {
    pub(super) fn index(&self) -> usize {
        self.index
    }

    pub(super) fn finish(mut self, outcome: RefreshOutcome) {
        self.if_dropped = outcome;
    }

    /// From now on the request counts as failed when its client leaves.
    pub(super) fn will_fail(&mut self) {
        self.if_dropped = RefreshOutcome::Failed;
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.traffic.end(self.index, self.if_dropped);
    }
}

/// The SCM is changing tokens.
pub(super) struct Work(Arc<Traffic>);

impl Drop for Work {
    fn drop(&mut self) {
        self.0.record().at_work.leave();
    }
}
