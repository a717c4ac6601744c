//! GROUP COMMIT: what is asked for while a statement runs goes into the next one, together.
//!
//! A statement for sixty rows costs a database little more than one for a single row: one round trip, one plan, one
//! commit. Nobody waits for company, though. Whoever comes while no statement of the kind runs is served at once; a group is
//! what has gathered while one ran. One at a time, for the groups are the larger (two at once: measured, and slower).

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

/// The most that goes into one statement: beyond, a row costs as much as it does in two of them.
const LARGEST_GROUP: usize = 128;

/// How long a statement for many may take. One row that somebody holds locked must not keep the others for longer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a server that has nobody to serve keeps its connection. Under load the next ones come within a millisecond, and
/// giving the connection back and taking one costs two round trips and as many wake-ups.
const LINGER: Duration = Duration::from_millis(20);

/// What one row of a grouped statement is asked for.
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

    /// Takes the other one's wish into this one, so that what fulfils this one fulfils both.
    fn absorb(&mut self, other: &Self);

    /// One statement for all of them. Answers in their order.
    fn run(
        line: &mut Line,
        group: &[Self],
    ) -> impl Future<Output = Result<Vec<Self::Answer>, StoreError>> + Send;
}

/// Who waits for a kind of statement. Clones are one and the same.
#[derive(Debug)]
pub(super) struct GroupCommit<G: Grouped> {
    shared: Arc<Shared<G>>,
}

/// Those who wait and the server that serves them meet here.
#[derive(Debug)]
struct Shared<G: Grouped> {
    queue: Mutex<Queue<G>>,
    /// Somebody came while the server was idle.
    news: Notify,
}

/// An error is shared by all who were in the statement.
type Answer<G> = Result<<G as Grouped>::Answer, Arc<StoreError>>;

#[derive(Debug)]
struct Queue<G: Grouped> {
    waiting: Vec<Waiting<G>>,
    server: ServerState,
}

/// What the server does. While anybody waits it is busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ServerState {
    /// There is none.
    Absent,
    Busy,
    /// It listens for whoever comes next, and keeps its connection meanwhile.
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

    /// Has `item` answered by a statement that it shares with whoever waits at the same time.
    ///
    /// A caller that stops waiting takes nobody with it: the statement is not the caller's, but a task's.
    pub(super) async fn submit(&self, db: &DatabaseConnection, item: G) -> Answer<G> {
        let (answer, answered) = oneshot::channel();
        if let Some(server) = self.enter(Waiting { item, answer }) {
            tokio::spawn(server.serve(db.clone()));
        }
        // Without an answer the task is gone: it panicked, or the process ends.
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
        // Nothing that runs under it panics half way.
        self.queue.lock()
    }
}

/// Serves those who wait. Its place is free again when it is dropped, whatever ended it.
struct Server<G: Grouped> {
    shared: Arc<Shared<G>>,
    /// It found nobody waiting, and its place is free already.
    left: bool,
}

impl<G: Grouped> Server<G> {
    /// Serves group after group until nobody has come for a while. The answers of one are handed out when the statement of the
    /// next one is on its way: the database need not wait while they are made use of.
    async fn serve(mut self, db: DatabaseConnection) {
        let mut line = Line::new(db);
        let mut answered = Vec::new();
        loop {
            if !self.anybody_waits() {
                hand_out::<G>(mem::take(&mut answered));
                self.gather().await;
            }
            let Some(group) = self.next_group() else {
                // Whoever comes after a pause need not be like those before it.
                line.reserve_first(true);
                if self.somebody_comes().await {
                    continue;
                }
                return;
            };
            let before = mem::take(&mut answered);
            (answered, ()) = join(serve_group(&mut line, group), async { hand_out::<G>(before) }).await;
            line.make_room();
        }
    }

    fn anybody_waits(&self) -> bool {
        !self.shared.queue().waiting.is_empty()
    }

    /// Goes behind whoever is about to run, for as long as that brings more: messages that came in one read are decoded
    /// one after the other, and would miss the statement of the first of them.
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

    /// The next group. None: it is idle, from the same moment on in which nobody waited; else whoever came in between would
    /// wait for nobody.
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

    /// Listens until somebody comes. If nobody does, its place is free.
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

/// The answers to those who waited. Whom the statement fails is told so at once, or has one of its own.
async fn serve_group<G: Grouped>(line: &mut Line, waiting: Vec<Waiting<G>>) -> Vec<Answered<G>> {
    let (items, waiting) = rows_of(waiting);
    telemetry::grouped_statement(G::STATEMENT, items.len());
    // A statement that takes too long fails also where it is for one row alone: whoever comes next must not wait for the
    // lock that this one waits for.
    let together = timeout(PATIENCE, G::run(line, &items)).await.unwrap_or(Err(StoreError::NoAnswer));
    let error = match together {
        Ok(answers) => {
            return waiting.into_iter().map(|(place, asked)| (asked, Ok(answers[place].clone()))).collect();
        }
        Err(error) => error,
    };
    line.hang_up();
    let alone = items.len() == 1 && !matches!(error, StoreError::NoAnswer);
    if alone || error.is_of_no_row() {
        let error = Arc::new(error);
        answer_all::<G>(waiting, |_| Err(Arc::clone(&error)));
    } else {
        one_by_one(line.db(), items, waiting, &error);
    }
    Vec::new()
}

/// Who asked, and the answer.
type Answered<G> = (oneshot::Sender<Answer<G>>, Answer<G>);

fn hand_out<G: Grouped>(answered: Vec<Answered<G>>) {
    for (asked, answer) in answered {
        // Whoever stopped waiting needs no answer.
        drop(asked.send(answer));
    }
}

/// The rows that are asked for, each once, and who waits for which of them.
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

/// Who waits for the answer in a place.
type Asked<G> = (usize, oneshot::Sender<Answer<G>>);

fn answer_all<G: Grouped>(waiting: Vec<Asked<G>>, answer_of: impl Fn(usize) -> Answer<G>) {
    for (place, answer) in waiting {
        // Whoever stopped waiting needs no answer.
        drop(answer.send(answer_of(place)));
    }
}

/// A statement for each row, so that a bad row fails, and a locked one waits, alone: in tasks of their own, while the next
/// group is served.
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
