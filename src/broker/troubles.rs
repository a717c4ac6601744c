//! What keeps this worker from its broker, as its connections and consumers find it: all of it for `/readyz`, and a few lines
//! for the log. A worker has several connections and many consumers, which meet the same problem at the same time, again and again.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{BrokerError, Diagnosis, Feed, Login};
use crate::domain::problem::Problem;
use crate::retry::Backoff;
use crate::settings::Broker;
use crate::telemetry::{self, Link};

/// A problem that lasts is told again after this time.
const TOLD_AGAIN_AFTER: Duration = Duration::from_mins(1);

/// Who met a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Connection(Link),
    Consumer(Feed),
    /// The look at the quorum of the queues.
    Quorum,
}

/// The problems of a worker with its broker. Clones share them.
#[derive(Debug, Clone)]
pub struct Troubles {
    login: Arc<Login>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// The problem that each source has now.
    open: Vec<(Source, Problem)>,
    /// The problems that were told within the last minute, or that are open.
    told: Vec<Told>,
}

#[derive(Debug)]
struct Told {
    problem: Problem,
    since: Instant,
    last_line: Instant,
    /// Whether its end is worth a line.
    end_is_due: bool,
}

/// What goes to the log.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Begins(Problem),
    Lasts(Problem, Duration),
    IsOver(Problem, Duration),
}

impl Troubles {
    pub fn new(settings: &Broker) -> Self {
        Self { login: Login::of(settings).into(), state: Arc::default() }
    }

    /// Notes what went wrong, and says how long to wait before the next try.
    pub fn met(&self, source: Source, error: &BrokerError) -> Backoff {
        let line = self.state.lock().met(source, error.problem(&self.login), Instant::now());
        tell(line);
        Diagnosis::of(error).again()
    }

    /// Notes that a source has no problem any more.
    pub fn over(&self, source: Source) {
        let line = self.state.lock().over(source, Instant::now());
        tell(line);
    }

    /// Each problem once. Of several that differ in their object alone, such as a hundred queues that are missing, the first.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = Vec::new();
        for (_, problem) in &self.state.lock().open {
            if !problems.iter().any(|other| are_alike(other, problem)) {
                problems.push(problem.clone());
            }
        }
        problems
    }
}

/// The same command mends both.
fn are_alike(one: &Problem, other: &Problem) -> bool {
    (&one.cause, &one.next) == (&other.cause, &other.next)
}

fn tell(line: Option<Line>) {
    match line {
        None => {}
        Some(Line::Begins(problem)) => telemetry::broker_problem(&problem),
        Some(Line::Lasts(problem, lasting)) => telemetry::broker_problem_lasts(&problem, lasting),
        Some(Line::IsOver(problem, lasted)) => telemetry::broker_problem_over(&problem, lasted),
    }
}

impl State {
    fn met(&mut self, source: Source, problem: Problem, now: Instant) -> Option<Line> {
        let begins = !self.is_open(&problem);
        let is_one_of_many = self
            .open
            .iter()
            .any(|(other, open)| *other != source && *open != problem && are_alike(open, &problem));
        self.open.retain(|(other, _)| *other != source);
        self.open.push((source, problem.clone()));
        self.forget(now);
        let Some(told) = self.told.iter_mut().find(|told| told.problem == problem) else {
            if is_one_of_many {
                return None;
            }
            self.told.push(Told { problem: problem.clone(), since: now, last_line: now, end_is_due: true });
            return Some(Line::Begins(problem));
        };
        if begins {
            told.since = now;
        }
        if now < told.last_line + TOLD_AGAIN_AFTER {
            return None;
        }
        told.last_line = now;
        told.end_is_due = true;
        let lasting = now - told.since;
        Some(if begins { Line::Begins(problem) } else { Line::Lasts(problem, lasting) })
    }

    fn over(&mut self, source: Source, now: Instant) -> Option<Line> {
        let at = self.open.iter().position(|(other, _)| *other == source)?;
        let (_, problem) = self.open.remove(at);
        if self.is_open(&problem) {
            return None;
        }
        let told = self.told.iter_mut().find(|told| told.problem == problem)?;
        let is_due = std::mem::take(&mut told.end_is_due);
        is_due.then(|| Line::IsOver(problem, now - told.since))
    }

    fn is_open(&self, problem: &Problem) -> bool {
        self.open.iter().any(|(_, open)| open == problem)
    }

    /// Forgets old lines, so that this stays small.
    fn forget(&mut self, now: Instant) {
        let Self { open, told } = self;
        told.retain(|told| {
            now < told.last_line + TOLD_AGAIN_AFTER || open.iter().any(|(_, open)| *open == told.problem)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLISH: Source = Source::Connection(Link::Publish);
    const CONSUME: Source = Source::Connection(Link::Consume);

    fn problem(what: &str) -> Problem {
        Problem::new(what, "a cause", "a command")
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_problem_is_told_when_it_begins_once_a_minute_and_when_it_is_over_for_everybody() {
        let (mut state, begin) = (State::default(), Instant::now());
        let away = || problem("away");
        assert_eq!(state.met(PUBLISH, away(), begin), Some(Line::Begins(away())));
        for second in 0..60 {
            assert_eq!(state.met(CONSUME, away(), begin + secs(second)), None);
        }
        assert_eq!(state.met(PUBLISH, away(), begin + secs(60)), Some(Line::Lasts(away(), secs(60))));
        assert_eq!(state.met(CONSUME, away(), begin + secs(61)), None);
        assert_eq!(state.over(PUBLISH, begin + secs(70)), None, "the other connection still has it");
        assert_eq!(state.over(CONSUME, begin + secs(71)), Some(Line::IsOver(away(), secs(71))));
        assert_eq!(state.over(CONSUME, begin + secs(72)), None);
    }

    #[test]
    fn a_problem_that_comes_and_goes_is_told_once_a_minute() {
        let (mut state, begin) = (State::default(), Instant::now());
        let mut lines = 0;
        for second in 0..600 {
            lines += usize::from(state.met(PUBLISH, problem("flaps"), begin + secs(second)).is_some());
            lines += usize::from(state.over(PUBLISH, begin + secs(second)).is_some());
        }
        assert_eq!(lines, 20, "a begin and an end a minute");
    }

    #[test]
    fn another_problem_of_the_same_source_takes_the_place_of_the_first() {
        let (mut state, begin) = (State::default(), Instant::now());
        assert!(state.met(PUBLISH, problem("broke"), begin).is_some());
        assert_eq!(state.met(PUBLISH, problem("away"), begin), Some(Line::Begins(problem("away"))));
        assert_eq!(state.over(PUBLISH, begin), Some(Line::IsOver(problem("away"), secs(0))));
        assert!(state.open.is_empty());
    }

    #[test]
    fn of_many_problems_that_one_command_mends_one_is_told_at_a_time() {
        let (mut state, begin) = (State::default(), Instant::now());
        let consumers = Feed::ALL.map(Source::Consumer);
        let missing = |number: usize| problem(&format!("queue {number} is missing"));
        let meet = |state: &mut State, at| {
            let lines =
                consumers.iter().enumerate().map(|(number, source)| state.met(*source, missing(number), at));
            lines.flatten().collect::<Vec<_>>()
        };
        assert_eq!(meet(&mut state, begin), [Line::Begins(missing(0))]);
        assert_eq!(meet(&mut state, begin + secs(30)), []);
        assert_eq!(meet(&mut state, begin + secs(60)), [Line::Lasts(missing(0), secs(60))]);
        assert_eq!(state.over(consumers[1], begin + secs(61)), None);
        assert_eq!(state.over(consumers[0], begin + secs(61)), Some(Line::IsOver(missing(0), secs(61))));
    }

    #[test]
    fn old_problems_are_forgotten() {
        let (mut state, begin) = (State::default(), Instant::now());
        for number in 0..1_000 {
            state.met(PUBLISH, problem(&format!("problem {number}")), begin + secs(number));
        }
        assert!(state.told.len() <= 61, "{}", state.told.len());
    }
}
