//! GROUP COMMIT: requests that arrive while a statement runs share the next one.
//!
//! A statement for sixty rows costs a database little more than one for a single row: one round trip, one plan, one commit.
//! No request waits for others to join it. If no statement of its kind runs, it runs at once. One statement of a kind runs
//! at a time, which makes the groups larger. Two at once were measured, and slower.

use std::collections::HashMap;
use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join;
use parking_lot::{Mutex, MutexGuard};
use sea_orm::DatabaseConnection;
use tokio::sync::{Notify, oneshot};
use tokio::task::yield_now;
use tokio::time::timeout;

use super::StoreError;
use super::line::Line;
use crate::telemetry::{self, GroupedStatement};

/// The most rows in one statement. A row of a larger group costs as much as in two statements.
const LARGEST_GROUP: usize = 128;

/// How long a shared statement may take. One locked row must not hold up the others for longer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long an idle server keeps its connection. Under load the next request comes within a millisecond, and to return the
/// connection and take one again costs two round trips and two wake-ups.
const LINGER: Duration = Duration::from_millis(20);

/// A request for one row of a grouped statement.
pub(super) trait Grouped: Clone + Debug + Send + Sync + 'static {
    /// Requests with the same key are one row.
    type Key<'a>: Eq + Hash
    where
        Self: 'a;
    /// What the statement says of a row.
    type Answer: Clone + Debug + Send + 'static;
    /// The statement's name in the metrics.
    const STATEMENT: GroupedStatement;

    fn key(&self) -> Self::Key<'_>;

    /// Merges another request for the same row into this one.
    fn absorb(&mut self, other: &Self);

    /// Runs one statement for the whole group. The answers are in the group's order.
    fn run(
        line: &mut Line,
        group: &[Self],
    ) -> impl Future<Output = Result<Vec<Self::Answer>, StoreError>> + Send;
}

/// The queue of one kind of statement. Clones share it.
#[derive(Debug)]
pub(super) struct GroupCommit<G: Grouped> {
    shared: Arc<Shared<G>>,
}

/// What the callers and the server share.
#[derive(Debug)]
struct Shared<G: Grouped> {
    queue: Mutex<Queue<G>>,
    /// A request arrived while the server was idle.
    news: Notify,
}

/// All requests of a failed statement share its error.
type Answer<G> = Result<<G as Grouped>::Answer, Arc<StoreError>>;

#[derive(Debug)]
struct Queue<G: Grouped> {
    waiting: Vec<Waiting<G>>,
    server: ServerState,
}

/// What the server does. It is busy while a request waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ServerState {
    /// No server runs.
    Absent,
    Busy,
    /// It waits for the next request, and keeps its connection.
    Idle,
}

#[derive(Debug)]
struct Waiting<G: Grouped> {
    item: G,
    answer: oneshot::Sender<Answer<G>>,
}

impl<G: Grouped> GroupCommit<G> {
    pub(super) fn new() -> Self {
        let queue = Mutex::new(Queue { waiting: Vec::new(), server: ServerState::Absent });
        Self { shared: Arc::new(Shared { queue, news: Notify::new() }) }
    }

    /// Runs a statement for `item` and the other requests that wait at the same time.
    ///
    /// A task of its own runs the statement, so that a caller that stops waiting cancels nobody else's.
    /// It runs over `grouped`. A statement for a single row of a group that failed runs over `alone`.
    pub(super) async fn submit(
        &self,
        grouped: &DatabaseConnection,
        alone: &DatabaseConnection,
        item: G,
    ) -> Answer<G> {
        let (answer, answered) = oneshot::channel();
        if let Some(server) = self.enter(Waiting { item, answer }) {
            tokio::spawn(server.serve(grouped.clone(), alone.clone()));
        }
        // No answer: the task panicked, or the process ends.
        answered.await.unwrap_or_else(|_| Err(Arc::new(StoreError::NoAnswer)))
    }

    fn enter(&self, waiting: Waiting<G>) -> Option<Server<G>> {
        let mut queue = self.shared.queue();
        queue.waiting.push(waiting);
        match mem::replace(&mut queue.server, ServerState::Busy) {
            ServerState::Absent => return Some(Server { shared: Arc::clone(&self.shared), left: false }),
            ServerState::Busy => {}
            ServerState::Idle => self.shared.news.notify_one(),
        }
        None
    }
}

impl<G: Grouped> Clone for GroupCommit<G> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<G: Grouped> Shared<G> {
    fn queue(&self) -> MutexGuard<'_, Queue<G>> {
        self.queue.lock()
    }
}

/// Runs the statements of one queue. When it is dropped, for whatever reason, another server can start.
struct Server<G: Grouped> {
    shared: Arc<Shared<G>>,
    /// It stopped because the queue was empty, and another server can start already.
    left: bool,
}

impl<G: Grouped> Server<G> {
    /// Runs group after group until no request has come for a while. The answers of a group go out after the next statement
    /// has been sent, so that the database does not wait for the callers.
    async fn serve(mut self, grouped: DatabaseConnection, alone: DatabaseConnection) {
        let mut line = Line::new(grouped);
        let mut answered = Vec::new();
        loop {
            if !self.anybody_waits() {
                hand_out::<G>(mem::take(&mut answered));
                self.gather().await;
            }
            let Some(group) = self.next_group() else {
                // Requests after a pause may differ from those before it.
                line.reserve_first(true);
                if self.somebody_comes().await {
                    continue;
                }
                return;
            };
            let before = mem::take(&mut answered);
            (answered, ()) =
                join(serve_group(&mut line, &alone, group), async { hand_out::<G>(before) }).await;
        }
    }

    fn anybody_waits(&self) -> bool {
        !self.shared.queue().waiting.is_empty()
    }

    /// Yields to other tasks for as long as that brings more requests. Messages that arrived in one read are decoded one after
    /// the other, and would otherwise miss the statement of the first of them.
    async fn gather(&self) {
        let mut waiting = 0;
        loop {
            let more = self.shared.queue().waiting.len();
            if more == waiting {
                return;
            }
            waiting = more;
            yield_now().await;
        }
    }

    /// The next group; none if the queue is empty. Then the server is idle from the same moment on, or a request that arrives
    /// in between would never be noticed.
    fn next_group(&self) -> Option<Vec<Waiting<G>>> {
        let mut queue = self.shared.queue();
        if queue.waiting.is_empty() {
            queue.server = ServerState::Idle;
            return None;
        }
        let group = queue.waiting.len().min(LARGEST_GROUP);
        let rest = queue.waiting.split_off(group);
        Some(mem::replace(&mut queue.waiting, rest))
    }

    /// Waits for a request. If none comes, another server can start.
    async fn somebody_comes(&mut self) -> bool {
        if timeout(LINGER, self.shared.news.notified()).await.is_ok() {
            return true;
        }
        let mut queue = self.shared.queue();
        if queue.server == ServerState::Idle {
            queue.server = ServerState::Absent;
            self.left = true;
        }
        !self.left
    }
}

impl<G: Grouped> Drop for Server<G> {
    fn drop(&mut self) {
        if !self.left {
            self.shared.queue().server = ServerState::Absent;
        }
    }
}

/// The answers to a group. If the statement fails, each request is told at once, or gets a statement of its own.
async fn serve_group<G: Grouped>(
    line: &mut Line,
    alone: &DatabaseConnection,
    waiting: Vec<Waiting<G>>,
) -> Vec<Answered<G>> {
    let (items, waiting) = rows_of(waiting);
    telemetry::grouped_statement(G::STATEMENT, items.len());
    // A statement for a single row has the same limit: the next requests must not wait for a lock that it waits for.
    let together = timeout(PATIENCE, G::run(line, &items)).await.unwrap_or(Err(StoreError::NoAnswer));
    let error = match together {
        Ok(answers) => {
            return waiting.into_iter().map(|(place, asked)| (asked, Ok(answers[place].clone()))).collect();
        }
        Err(error) => error,
    };
    line.hang_up();
    let for_one = items.len() == 1 && !matches!(error, StoreError::NoAnswer);
    if for_one || error.is_of_no_row() {
        let error = Arc::new(error);
        answer_all::<G>(waiting, |_| Err(Arc::clone(&error)));
    } else {
        one_by_one(alone, items, waiting, &error);
    }
    Vec::new()
}

/// A caller and its answer.
type Answered<G> = (oneshot::Sender<Answer<G>>, Answer<G>);

fn hand_out<G: Grouped>(answered: Vec<Answered<G>>) {
    for (asked, answer) in answered {
        // The caller may have stopped waiting.
        drop(asked.send(answer));
    }
}

/// The rows of a group, each once, and which caller waits for which row.
fn rows_of<G: Grouped>(waiting: Vec<Waiting<G>>) -> (Vec<G>, Vec<Asked<G>>) {
    let mut place_of = HashMap::with_capacity(waiting.len());
    let places: Vec<usize> = waiting
        .iter()
        .map(|waiting| {
            let next = place_of.len();
            *place_of.entry(waiting.item.key()).or_insert(next)
        })
        .collect();
    let mut rows: Vec<G> = Vec::with_capacity(place_of.len());
    drop(place_of);
    let mut asked = Vec::with_capacity(places.len());
    for (Waiting { item, answer }, place) in waiting.into_iter().zip(places) {
        match rows.get_mut(place) {
            Some(same) => same.absorb(&item),
            None => rows.push(item),
        }
        asked.push((place, answer));
    }
    (rows, asked)
}

/// A caller, and the place of the row that it waits for.
type Asked<G> = (usize, oneshot::Sender<Answer<G>>);

fn answer_all<G: Grouped>(waiting: Vec<Asked<G>>, answer_of: impl Fn(usize) -> Answer<G>) {
    for (place, answer) in waiting {
        // The caller may have stopped waiting.
        drop(answer.send(answer_of(place)));
    }
}

/// Runs a statement for each row, so that a bad row fails alone and a locked one waits alone. Each runs in a task of its own,
/// beside the next group.
fn one_by_one<G: Grouped>(
    db: &DatabaseConnection,
    items: Vec<G>,
    waiting: Vec<Asked<G>>,
    error: &StoreError,
) {
    telemetry::group_split(G::STATEMENT, items.len(), error);
    let mut asked: Vec<Vec<Asked<G>>> = items.iter().map(|_| Vec::new()).collect();
    for waiting in waiting {
        asked[waiting.0].push(waiting);
    }
    for (item, asked) in items.into_iter().zip(asked) {
        let mut line = Line::new(db.clone());
        tokio::spawn(async move {
            telemetry::grouped_statement(G::STATEMENT, 1);
            let answer = match G::run(&mut line, std::slice::from_ref(&item)).await {
                // One answer for one row, as the trait says.
                Ok(mut answers) => answers.pop().ok_or_else(|| Arc::new(StoreError::NoAnswer)),
                Err(error) => Err(Arc::new(error)),
            };
            answer_all::<G>(asked, |_| answer.clone());
        });
    }
}

#[cfg(test)]
mod tests;
