//! Who shares a statement with whom. The statements here talk to no database: what they were asked for is all that counts.

use std::future::pending;
use std::sync::Mutex;

use futures_util::future::join_all;
use sea_orm::DbErr;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::yield_now;
use tokio::time::sleep;

use super::*;

/// The statements of one test, and the gate that they wait at.
#[derive(Debug)]
struct Statements {
    ran: Mutex<Vec<Vec<u32>>>,
    gate: Semaphore,
}

/// A statement with number 13 fails, one with number 66 panics, and one with number 99 never ends. To merge 77 with itself panics.
#[derive(Debug, Clone)]
struct Number(u32, Arc<Statements>);

impl Grouped for Number {
    type Key<'a> = u32;
    type Answer = u32;
    const STATEMENT: GroupedStatement = GroupedStatement::Claim;

    fn key(&self) -> u32 {
        self.0
    }

    fn absorb(&mut self, _: &Self) {
        assert_ne!(self.0, 77, "77 stands alone");
    }

    async fn run(_: &mut Line, group: &[Self]) -> Result<Vec<u32>, StoreError> {
        let statements = &group[0].1;
        statements.ran.lock().unwrap().push(group.iter().map(|number| number.0).collect());
        drop(statements.gate.acquire().await);
        if group.iter().any(|number| number.0 == 99) {
            pending::<()>().await;
        }
        assert!(group.iter().all(|number| number.0 != 66), "66 is not to be counted");
        if group.iter().any(|number| number.0 == 13) {
            let source = DbErr::Custom("13 brings bad luck".to_owned());
            return Err(StoreError::Database { action: "count", source });
        }
        Ok(group.iter().map(|number| number.0 * 10).collect())
    }
}

struct Counter {
    group: GroupCommit<Number>,
    statements: Arc<Statements>,
}

impl Counter {
    /// Statements of this one run as soon as they may, or wait until the gate is opened.
    fn new(open: bool) -> Self {
        let gate = Semaphore::new(usize::from(open));
        Self { group: GroupCommit::new(), statements: Arc::new(Statements { ran: Mutex::default(), gate }) }
    }

    async fn ask(&self, number: u32) -> Answer<Number> {
        let db = DatabaseConnection::default();
        self.group.submit(&db, &db, Number(number, Arc::clone(&self.statements))).await
    }

    fn ran(&self) -> Vec<Vec<u32>> {
        self.statements.ran.lock().unwrap().clone()
    }

    async fn until_running(&self, statements: usize) {
        while self.ran().len() < statements {
            yield_now().await;
        }
    }
}

#[tokio::test]
async fn who_comes_alone_is_served_at_once() {
    let counter = Counter::new(true);
    assert_eq!(counter.ask(1).await.unwrap(), 10);
    assert_eq!(counter.ask(2).await.unwrap(), 20);
    assert_eq!(counter.ran(), [vec![1], vec![2]]);
}

#[tokio::test]
async fn who_comes_while_a_statement_runs_shares_the_next_one() {
    let counter = Counter::new(false);
    let late = async {
        counter.until_running(1).await;
        let late = join_all((3..=9).map(|number| counter.ask(number)));
        let opened = async {
            // They wait by now: this future is polled after those.
            counter.statements.gate.add_permits(1);
        };
        tokio::join!(late, opened).0
    };
    let (_, late) = tokio::join!(counter.ask(1), late);
    let answers: Vec<u32> = late.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers, [30, 40, 50, 60, 70, 80, 90]);
    assert_eq!(counter.ran(), [vec![1], (3..=9).collect::<Vec<_>>()]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_does_not_wait_for_the_end_of_the_next_statement() {
    let counter = Counter::new(false);
    let next = async {
        counter.until_running(1).await;
        let opened = async { counter.statements.gate.add_permits(1) };
        tokio::join!(counter.ask(99), opened).0
    };
    let answered = async {
        tokio::select! {
            answer = counter.ask(1) => answer.unwrap(),
            _ = next => panic!("it has no end"),
        }
    };
    assert_eq!(timeout(PATIENCE / 2, answered).await, Ok(10));
}

#[tokio::test]
async fn those_who_ask_for_the_same_are_one_row() {
    let counter = Counter::new(true);
    let answers = join_all([5, 5, 6, 5].map(|number| counter.ask(number))).await;
    let answers: Vec<u32> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers, [50, 50, 60, 50]);
    assert_eq!(counter.ran(), [vec![5, 6]]);
}

#[tokio::test]
async fn a_bad_row_fails_alone() {
    let counter = Counter::new(true);
    let answers = join_all([12, 13, 14].map(|number| counter.ask(number))).await;
    assert_eq!(answers[0].as_ref().unwrap(), &120);
    assert!(answers[1].is_err());
    assert_eq!(answers[2].as_ref().unwrap(), &140);
    assert_eq!(counter.ran(), [vec![12, 13, 14], vec![12], vec![13], vec![14]]);
}

#[tokio::test]
async fn no_statement_is_for_more_rows_than_pay() {
    let counter = Counter::new(true);
    let many = 3 * u32::try_from(LARGEST_GROUP).unwrap();
    let answers = join_all((100..100 + many).map(|number| counter.ask(number))).await;
    let answers: Vec<u32> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers, (100..100 + many).map(|number| 10 * number).collect::<Vec<_>>());
    assert!(counter.ran().iter().all(|group| group.len() <= LARGEST_GROUP));
    assert_eq!(counter.ran().concat().len(), 3 * LARGEST_GROUP, "each of them once");
}

#[tokio::test(start_paused = true)]
async fn who_comes_after_a_pause_is_served() {
    let counter = Counter::new(true);
    for pause in [Duration::ZERO, LINGER / 2, LINGER * 2] {
        sleep(pause).await;
        assert_eq!(counter.ask(1).await.unwrap(), 10);
    }
}

#[tokio::test]
async fn a_caller_that_stops_waiting_takes_nobody_along() {
    let counter = Counter::new(false);
    let (mut gone, stays) = (Box::pin(counter.ask(1)), counter.ask(2));
    assert!(futures_util::poll!(&mut gone).is_pending());
    drop(gone);
    counter.statements.gate.add_permits(1);
    assert_eq!(stays.await.unwrap(), 20);
}

#[tokio::test]
async fn after_a_panic_outside_of_the_statement_the_next_group_is_served() {
    let counter = Counter::new(true);
    let answers = join_all([77, 77].map(|number| counter.ask(number))).await;
    assert!(answers.iter().all(Result::is_err), "{answers:?}");
    assert_eq!(counter.ask(5).await.unwrap(), 50);
}

#[tokio::test]
async fn a_row_that_makes_a_statement_panic_fails_alone_and_the_next_group_is_served() {
    let counter = Counter::new(true);
    let answers = join_all([12, 66, 14].map(|number| counter.ask(number))).await;
    assert_eq!(answers[0].as_ref().unwrap(), &120);
    assert!(matches!(**answers[1].as_ref().unwrap_err(), StoreError::NoAnswer));
    assert_eq!(answers[2].as_ref().unwrap(), &140);
    assert_eq!(counter.ask(15).await.unwrap(), 150);
}

#[tokio::test]
async fn who_comes_behind_a_mass_for_one_row_waits_for_few_statements() {
    let counter = Counter::new(true);
    let mass = 2 * MOST_WAITING;
    let (_, served) = tokio::join!(join_all((0..mass).map(|_| counter.ask(5))), async {
        counter.ask(6).await.unwrap();
        counter.ran().len()
    });
    assert!(served <= mass / LARGEST_GROUP + 1, "after {served} statements");
}

#[tokio::test]
async fn the_task_ends_with_the_last_who_could_ask() {
    let counter = Counter::new(true);
    counter.ask(1).await.unwrap();
    let tasks = || Handle::current().metrics().num_alive_tasks();
    drop(counter.group.clone());
    yield_now().await;
    assert_eq!(tasks(), 1);
    drop(counter);
    let ended = async {
        while tasks() > 0 {
            yield_now().await;
        }
    };
    timeout(PATIENCE, ended).await.expect("nobody can ask any more");
}

#[tokio::test(start_paused = true)]
async fn a_statement_for_many_that_hangs_is_done_again_for_each() {
    let counter = Counter::new(false);
    let open_later = async {
        counter.until_running(1).await;
        sleep(PATIENCE * 2).await;
        counter.statements.gate.add_permits(1);
    };
    let (answers, ()) = tokio::join!(join_all([1, 2].map(|number| counter.ask(number))), open_later);
    let answers: Vec<u32> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers, [10, 20]);
    assert_eq!(counter.ran(), [vec![1, 2], vec![1], vec![2]]);
}
