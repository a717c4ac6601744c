//! Several systems under the same load, in alternating rounds: what else happens on the machine happens to all of them.

use std::{ptr, rc::Rc};

use anyhow::{Context, Result};

use crate::{
    figures::{float, median},
    load::{Amount, Ask, Heard, Pace, Requester},
    options::{Options, Scenario},
    progress::Progress,
    report::{Cpu, Row, Sample},
    system::{Running, System},
    usage::{Spent, Usage, memory_mib},
};

/// What a row of the table is about.
pub(crate) struct Cell {
    pub(crate) scenario: Scenario,
    /// In words.
    pub(crate) load: String,
    pub(crate) pace: Pace,
}

/// Who is measured, and with what.
pub(crate) struct Contestant<'a> {
    pub(crate) system: &'a System,
    pub(crate) ask: Ask,
    pub(crate) requester: Requester,
    pub(crate) workers: usize,
    /// Tokens expire again before each round, which then has so many requests at most: who is refreshed is so once.
    pub(crate) once_each: Option<u64>,
    /// What the table says about it beside the system's name.
    pub(crate) remark: Option<String>,
}

impl<'a> Contestant<'a> {
    /// One worker.
    pub(crate) const fn new(system: &'a System, ask: Ask) -> Self {
        Self { system, ask, requester: Requester::Generator, workers: 1, once_each: None, remark: None }
    }

    fn name(&self) -> String {
        match &self.remark {
            Some(remark) => format!("{}, {remark}", self.system.name),
            None => self.system.name.clone(),
        }
    }
}

/// Measures all of them. The ratios are to the first one's.
pub(crate) async fn measure(
    cell: &Cell,
    contestants: &[Contestant<'_>],
    options: &Options,
    progress: &Progress,
) -> Result<Vec<Row>> {
    let mut lanes = Vec::new();
    for contestant in contestants {
        let lane = match lanes.iter_mut().find(|lane: &&mut Lane<'_>| lane.is_on(contestant.system)) {
            Some(other) => other.beside(contestant),
            None => Lane::open(contestant).await?,
        };
        lanes.push(lane);
    }
    let rounds = match cell.pace {
        Pace::InFlight(_) => options.rounds(),
        Pace::PerSecond(_) => options.rounds_at_a_rate(),
    };
    for round in 0..rounds {
        for lane in &mut lanes {
            let name = lane.contestant.name();
            progress.show(&format!("{}, {name}, round {} of {rounds}", cell.load, round + 1));
            let sample = lane.round(cell.pace, options).await;
            let sample =
                sample.with_context(|| format!("{}, {name}, {}", cell.scenario.name(), cell.load))?;
            progress.step(&format!("{}, {name}: {}", cell.load, sample.line()));
            lane.samples.push(sample);
        }
    }
    let mut rows = Vec::new();
    for lane in lanes {
        rows.push(lane.close(cell).await?);
    }
    Ok(with_ratios(rows, cell.pace))
}

/// One contestant, round by round.
struct Lane<'a> {
    contestant: &'a Contestant<'a>,
    /// Shared by those who are on one system: there are no other workers beside them.
    running: Rc<Running<'a>>,
    is_shared: bool,
    /// Before the first request.
    statements: Option<u64>,
    answered: u64,
    /// The number of the next request: users go on from round to round.
    next: usize,
    samples: Vec<Sample>,
}

impl<'a> Lane<'a> {
    async fn open(contestant: &'a Contestant<'a>) -> Result<Self> {
        let running = contestant.system.start(contestant.workers).await?;
        let statements = running.statements().await?;
        let running = Rc::new(running);
        Ok(Self {
            contestant,
            running,
            is_shared: false,
            statements,
            answered: 0,
            next: 0,
            samples: Vec::new(),
        })
    }

    fn is_on(&self, system: &System) -> bool {
        ptr::eq(self.contestant.system, system)
    }

    /// Another one on the same system and its workers.
    fn beside(&mut self, contestant: &'a Contestant<'a>) -> Self {
        self.is_shared = true;
        let running = Rc::clone(&self.running);
        Self {
            contestant,
            running,
            is_shared: true,
            statements: None,
            answered: 0,
            next: 0,
            samples: Vec::new(),
        }
    }

    async fn round(&mut self, pace: Pace, options: &Options) -> Result<Sample> {
        let (system, ask) = (self.contestant.system, &self.contestant.ask);
        let mut left = u64::MAX;
        if let (Some(most), Some(install)) = (self.contestant.once_each, system.install()) {
            install.expire().await?;
            left = most;
        }
        let mut load = system.load(self.contestant.requester, self.next).await?;
        let mut phase = async |time| {
            let heard = load.run(ask, pace, Amount::of_time(time).at_most(left)).await?;
            left = left.saturating_sub(heard.answered);
            self.answered += heard.answered;
            anyhow::Ok(heard)
        };
        phase(options.warm_up()).await?;
        let ids = self.running.ids()?;
        let statements = self.running.statements().await?;
        let before = Usage::now(&ids).await?;
        let heard = phase(options.round()).await?;
        let spent = Usage::now(&ids).await?.since(&before);
        let statements = self.running.statements().await?.zip(statements).map(|(now, then)| now - then);
        let sample =
            sample(&heard, &spent, statements.filter(|_| !self.running.counts_late()), memory_mib(&ids)?);
        self.next = load.close().await?;
        Ok(sample)
    }

    async fn close(mut self, cell: &Cell) -> Result<Row> {
        let ended_with = match Rc::into_inner(self.running) {
            Some(running) => running.stop().await?,
            // Somebody else's as well.
            None => None,
        };
        // Of those who share it nobody knows whose they were.
        if let Some((now, then)) = ended_with.zip(self.statements.filter(|_| !self.is_shared)) {
            let each = float(now - then) / float(self.answered.max(1));
            self.samples.iter_mut().for_each(|sample| sample.statements = Some(each));
        }
        Ok(Row::new(cell.scenario, cell.load.clone(), self.contestant.name(), self.samples))
    }
}

fn sample(heard: &Heard, spent: &Spent, statements: Option<u64>, (rss, rss_peak): (f64, f64)) -> Sample {
    let requests = float(heard.answered.max(1));
    let each_us = |seconds: f64| seconds * 1e6 / requests;
    let us = |percentile| float(heard.latencies.percentile_us(percentile));
    Sample {
        requests: heard.answered,
        refused: heard.refused,
        per_second: heard.per_second(),
        p50_us: us(50.0),
        p99_us: us(99.0),
        p999_us: us(99.9),
        cpu_us: Cpu {
            worker: each_us(spent.worker),
            broker: each_us(spent.broker),
            databases: each_us(spent.databases),
            load: each_us(spent.load),
        },
        bytes: spent.socket_bytes.map(|bytes| bytes / requests),
        statements: statements.map(|count| float(count) / requests),
        rss_mib: rss,
        rss_peak_mib: rss_peak,
    }
}

/// The ratios to the first row, which is echo's.
fn with_ratios(mut rows: Vec<Row>, pace: Pace) -> Vec<Row> {
    let Some((first, others)) = rows.split_first_mut() else { return rows };
    for row in others {
        row.ratio = match pace {
            Pace::InFlight(_) => ratio(row, first, |sample| sample.per_second),
            // All of them are as fast as the load is.
            Pace::PerSecond(_) => None,
        };
        row.p99_ratio = ratio(row, first, |sample| sample.p99_us);
    }
    rows
}

/// The median of the ratios of neighbouring rounds, not the ratio of medians: what slows a round down is often still
/// there in the next one.
pub(crate) fn ratio(row: &Row, base: &Row, what: impl Fn(&Sample) -> f64) -> Option<f64> {
    let pairs = row.samples.iter().zip(&base.samples);
    median(pairs.map(|(own, base)| what(own) / what(base).max(f64::MIN_POSITIVE)))
}
