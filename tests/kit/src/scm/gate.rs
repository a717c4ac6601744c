//! Gates: places in the server where requests wait until a test lets them go on.

use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use crate::wait::{PATIENCE, within};

/// The place in the server where a gate may stand.
#[derive(Default)]
pub(super) struct GatePost(Mutex<Option<Arc<Gate>>>);

impl GatePost {
    /// Closes a new gate here. Requests parked at the one before stay parked at that one.
    pub(super) fn hold(&self) -> Arc<Gate> {
        let gate = Arc::new(Gate::default());
        *self.0.lock().expect("gate post") = Some(gate.clone());
        gate
    }

    /// Waits here while the gate is closed.
    pub(super) async fn pass(&self) -> Passage {
        let gate = self.0.lock().expect("gate post").clone();
        match gate {
            Some(gate) => gate.pass().await,
            None => Passage::GoOn,
        }
    }
}

/// What a request does that has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passage {
    GoOn,
    TurnBack,
}

/// One gate, from closed to open.
#[derive(Default)]
pub(super) struct Gate {
    opened: watch::Sender<Option<Passage>>,
    parked: watch::Sender<usize>,
}

impl Gate {
    /// Lets everybody pass from now on. The first call decides how.
    pub(super) fn open(&self, passage: Passage) {
        self.opened.send_if_modified(|opened| {
            let closed = opened.is_none();
            opened.get_or_insert(passage);
            closed
        });
    }

    /// Waits until `count` requests are parked here.
    pub(super) async fn wait_for_parked(&self, count: usize, what: &str) {
        let mut parked = self.parked.subscribe();
        within(what, PATIENCE, parked.wait_for(|now| *now >= count)).await.expect("the gate is alive");
    }

    async fn pass(&self) -> Passage {
        if self.opened.borrow().is_some() {
            return Passage::GoOn;
        }
        let _parked = Parked::at(&self.parked);
        let mut opened = self.opened.subscribe();
        let passage = opened.wait_for(Option::is_some).await.expect("the gate is alive");
        passage.unwrap_or(Passage::GoOn)
    }
}

/// Counts a request as parked for as long as it waits, also when its client leaves.
struct Parked<'a>(&'a watch::Sender<usize>);

impl<'a> Parked<'a> {
    fn at(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|parked| *parked += 1);
        Self(count)
    }
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|parked| *parked -= 1);
    }
}

/// Refresh requests wait inside the token endpoint, received but not yet acted on. Dropping it releases them.
#[must_use = "the gate opens when this is dropped"]
pub struct RefreshGate(Arc<Gate>);

impl RefreshGate {
    pub(super) fn new(gate: Arc<Gate>) -> Self {
        Self(gate)
    }

    /// Waits until `count` refresh requests are parked here.
    pub async fn wait_for_parked(&self, count: usize) {
        self.0.wait_for_parked(count, &format!("{count} refresh requests parked at the gate")).await;
    }

    /// Lets the parked requests act, and all later ones. Requests whose client has gone act as well: a server
    /// that has read a request does not look back.
    pub fn release(&self) {
        self.0.open(Passage::GoOn);
    }

    /// Closes the connections of the parked requests without acting on them, as a load balancer does that
    /// loses its backend. Requests that arrive later are served.
    pub fn discard(&self) {
        self.0.open(Passage::TurnBack);
    }
}

impl Drop for RefreshGate {
    fn drop(&mut self) {
        self.release();
    }
}

/// Where a clone is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldPoint {
    /// Between its requests: `GET info/refs` was answered, `POST git-upload-pack` waits, its token not yet
    /// looked at.
    BetweenRequests,
    /// In the middle of the pack: the first chunk is sent, the second waits, its token not yet looked at again.
    InPack,
}

/// Clones wait at a [`HoldPoint`]. Dropping it releases them.
#[must_use = "the gate opens when this is dropped"]
pub struct GitGate(Arc<Gate>);

impl GitGate {
    pub(super) fn new(gate: Arc<Gate>) -> Self {
        Self(gate)
    }

    /// Waits until a clone is parked here, which proves that it is running.
    pub async fn wait_for_clone_started(&self) {
        self.0.wait_for_parked(1, "a git clone to reach the gate").await;
    }

    /// Lets clones go on, these and all later ones.
    pub fn release(&self) {
        self.0.open(Passage::GoOn);
    }
}

impl Drop for GitGate {
    fn drop(&mut self) {
        self.release();
    }
}
