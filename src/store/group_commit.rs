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
use std::panic::AssertUnwindSafe;
use std::slice;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join;
use sea_orm::DatabaseConnection;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::StoreError;
use super::line::Line;
use crate::telemetry::{self, GroupedStatement};

/// The most requests for one statement. A row of a larger group costs as much as in two statements.
const LARGEST_GROUP: usize = 128;

/// The most requests that wait for a kind of statement. Others wait until there is room.
const MOST_WAITING: usize = 8 * LARGEST_GROUP;

/// How long a shared statement may take. One locked row must not hold up the others for longer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long an idle task keeps its connection. Under load the next request comes within a millisecond, and to return the
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
#[derive(Debug, Clone)]
pub(super) struct GroupCommit<G: Grouped> {
    /// To the task that runs the statements. The first request starts it, and it ends when the last clone is dropped.
    requests: Arc<OnceLock<mpsc::Sender<Request<G>>>>,
}

/// All requests of a failed statement share its error.
type Answer<G> = Result<<G as Grouped>::Answer, Arc<StoreError>>;

/// Who waits for an answer.
type Caller<G> = oneshot::Sender<Answer<G>>;

#[derive(Debug)]
struct Request<G: Grouped> {
    item: G,
    caller: Caller<G>,
}

impl<G: Grouped> GroupCommit<G> {
    pub(super) fn new() -> Self {
        Self { requests: Arc::default() }
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
        let requests = self.requests.get_or_init(|| {
            let (requests, waiting) = mpsc::channel(MOST_WAITING);
            tokio::spawn(serve(grouped.clone(), alone.clone(), waiting));
            requests
        });
        let (caller, answered) = oneshot::channel();
        // At once where there is room, so that requests that arrive together get into one statement: `send` lets a task send no
        // more than a hundred before others run.
        if let Err(TrySendError::Full(request)) = requests.try_send(Request { item, caller }) {
            // If it cannot be sent, it is dropped, and its caller with it.
            drop(requests.send(request).await);
        }
        // No answer: the statement panicked, or the process ends.
        answered.await.unwrap_or_else(|_| Err(Arc::new(StoreError::NoAnswer)))
    }
}

/// Serves until nobody can ask any more. After a panic it goes on with the next group. Those in the group get no answer.
async fn serve<G: Grouped>(
    grouped: DatabaseConnection,
    alone: DatabaseConnection,
    mut requests: mpsc::Receiver<Request<G>>,
) {
    loop {
        let served = serve_groups(Line::new(grouped.clone()), &alone, &mut requests);
        if AssertUnwindSafe(served).catch_unwind().await.is_ok() {
            return;
        }
    }
}

/// Runs group after group. The answers of a group go out after the next statement has been sent, so that the database does not
/// wait for the callers.
async fn serve_groups<G: Grouped>(
    mut line: Line,
    alone: &DatabaseConnection,
    requests: &mut mpsc::Receiver<Request<G>>,
) {
    let mut answered = Vec::new();
    loop {
        if requests.is_empty() {
            hand_out::<G>(mem::take(&mut answered));
            // Requests after a pause may differ from those before it.
            line.reserve_first(true);
        }
        let mut group = Vec::new();
        if timeout(LINGER, requests.recv_many(&mut group, LARGEST_GROUP)).await.is_err() {
            line.hang_up();
            requests.recv_many(&mut group, LARGEST_GROUP).await;
        }
        if group.is_empty() {
            // Nobody can ask any more.
            return;
        }
        let before = mem::take(&mut answered);
        (answered, ()) = join(serve_group(&mut line, alone, group), async { hand_out::<G>(before) }).await;
    }
}

type Answered<G> = (Caller<G>, Answer<G>);

fn hand_out<G: Grouped>(answered: Vec<Answered<G>>) {
    for (caller, answer) in answered {
        // The caller may have stopped waiting.
        drop(caller.send(answer));
    }
}

/// The answers to a group. If its statement fails for a reason that may be one row's, each row gets a statement of its own, and
/// there are no answers yet.
async fn serve_group<G: Grouped>(
    line: &mut Line,
    alone: &DatabaseConnection,
    group: Vec<Request<G>>,
) -> Vec<Answered<G>> {
    let (rows, callers) = rows_of(group);
    telemetry::grouped_statement(G::STATEMENT, rows.len());
    // A statement for a single row has the same limit: the next requests must not wait for a lock that it waits for.
    let statement = timeout(PATIENCE, AssertUnwindSafe(G::run(line, &rows)).catch_unwind());
    // It took too long, or panicked.
    let ended = statement.await.ok().and_then(Result::ok).unwrap_or(Err(StoreError::NoAnswer));
    let error = match ended {
        Ok(answers) => {
            let answer =
                |place: usize| answers.get(place).cloned().ok_or_else(|| Arc::new(StoreError::NoAnswer));
            return callers.into_iter().map(|(place, caller)| (caller, answer(place))).collect();
        }
        Err(error) => error,
    };
    line.hang_up();
    let for_one = rows.len() == 1 && !matches!(error, StoreError::NoAnswer);
    if for_one || error.is_of_no_row() {
        let error = Arc::new(error);
        return callers.into_iter().map(|(_, caller)| (caller, Err(Arc::clone(&error)))).collect();
    }
    one_by_one(alone, rows, callers, &error);
    Vec::new()
}

/// The rows of a group, each once, and which caller waits for which of them.
fn rows_of<G: Grouped>(group: Vec<Request<G>>) -> (Vec<G>, Vec<(usize, Caller<G>)>) {
    let mut place_of = HashMap::with_capacity(group.len());
    let places: Vec<usize> = group
        .iter()
        .map(|request| {
            let next = place_of.len();
            *place_of.entry(request.item.key()).or_insert(next)
        })
        .collect();
    let mut rows: Vec<G> = Vec::with_capacity(place_of.len());
    drop(place_of);
    let mut callers = Vec::with_capacity(places.len());
    for (Request { item, caller }, place) in group.into_iter().zip(places) {
        match rows.get_mut(place) {
            Some(same) => same.absorb(&item),
            None => rows.push(item),
        }
        callers.push((place, caller));
    }
    (rows, callers)
}

/// Runs a statement for each row, so that a bad row fails alone and a locked one waits alone. Each runs in a task of its own,
/// beside the next group.
fn one_by_one<G: Grouped>(
    alone: &DatabaseConnection,
    rows: Vec<G>,
    callers: Vec<(usize, Caller<G>)>,
    error: &StoreError,
) {
    telemetry::group_split(G::STATEMENT, rows.len(), error);
    let mut callers_of: Vec<Vec<Caller<G>>> = rows.iter().map(|_| Vec::new()).collect();
    for (place, caller) in callers {
        callers_of[place].push(caller);
    }
    for (row, callers) in rows.into_iter().zip(callers_of) {
        let mut line = Line::new(alone.clone());
        tokio::spawn(async move {
            telemetry::grouped_statement(G::STATEMENT, 1);
            let answer = match G::run(&mut line, slice::from_ref(&row)).await {
                // One answer for one row, as the trait says.
                Ok(mut answers) => answers.pop().ok_or_else(|| Arc::new(StoreError::NoAnswer)),
                Err(error) => Err(Arc::new(error)),
            };
            hand_out::<G>(callers.into_iter().map(|caller| (caller, answer.clone())).collect());
        });
    }
}

#[cfg(test)]
mod tests;
