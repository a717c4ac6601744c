//! What was measured, and how it compares with the targets.

mod machine;
mod plot;
mod table;

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;

pub(crate) use self::machine::Machine;
use crate::{
    figures::{median, milliseconds, whole},
    options::Scenario,
};

/// One round of one system.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) requests: u64,
    /// Those that were refused since too many waited for a slow host, as they should be.
    pub(crate) refused: u64,
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) cpu_us: Cpu,
    /// Over the workers' sockets, to and from the broker, the database and the provider.
    pub(crate) bytes: Option<f64>,
    pub(crate) statements: Option<f64>,
    pub(crate) rss_mib: f64,
    pub(crate) rss_peak_mib: f64,
}

/// Processor time a request, in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Cpu {
    pub(crate) worker: f64,
    pub(crate) broker: f64,
    pub(crate) databases: f64,
    pub(crate) load: f64,
}

impl Sample {
    /// In a few words.
    pub(crate) fn line(&self) -> String {
        let Self { per_second, p50_us, p99_us, cpu_us, .. } = self;
        format!(
            "{}/s, p50 {} ms, p99 {} ms, {:.0} µs of CPU in the worker",
            whole(*per_second),
            milliseconds(*p50_us),
            milliseconds(*p99_us),
            cpu_us.worker
        )
    }
}

/// One system under one load.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) scenario: &'static str,
    pub(crate) load: String,
    pub(crate) system: String,
    /// Throughput to that of the first row of the same load, round by round; none for that one itself, and none at a fixed
    /// rate.
    pub(crate) ratio: Option<f64>,
    /// The same of the 99th percentile.
    pub(crate) p99_ratio: Option<f64>,
    /// What the ratio of throughput must be at least.
    target: Option<f64>,
    pub(crate) samples: Vec<Sample>,
}

impl Row {
    pub(crate) fn new(scenario: Scenario, load: String, system: String, samples: Vec<Sample>) -> Self {
        Self { scenario: scenario.name(), load, system, ratio: None, p99_ratio: None, target: None, samples }
    }

    /// What is typical of the rounds.
    pub(crate) fn median(&self, what: impl Fn(&Sample) -> f64) -> f64 {
        median(self.samples.iter().map(what)).unwrap_or_default()
    }

    /// Judges its throughput, which must be at least so much of echo's.
    pub(crate) fn must_reach(&mut self, least: f64) -> Verdict {
        let ratio = self.ratio.unwrap_or_default();
        self.target = Some(least);
        let what = format!("{}, {}: throughput on {}", self.scenario, self.load, self.system);
        Verdict::new(what, format!("{ratio:.2} of echo"), format!("at least {least:.2}"), ratio >= least)
    }

    fn median_of_some(&self, what: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        median(self.samples.iter().filter_map(what))
    }
}

/// Whether something is as it should be.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Verdict {
    /// Of what.
    pub(crate) what: String,
    /// The target, in words.
    pub(crate) target: String,
    /// What was measured, in words.
    pub(crate) value: String,
    pub(crate) met: bool,
}

impl Verdict {
    pub(crate) fn new(what: impl Into<String>, value: String, target: String, met: bool) -> Self {
        Self { what: what.into(), target, value, met }
    }
}

/// What a scenario found out.
#[derive(Default)]
pub(crate) struct Findings {
    pub(crate) rows: Vec<Row>,
    pub(crate) verdicts: Vec<Verdict>,
    pub(crate) notes: Vec<String>,
}

/// Everything that was found out.
#[derive(Serialize)]
pub(crate) struct Report {
    machine: Machine,
    rows: Vec<Row>,
    verdicts: Vec<Verdict>,
    notes: Vec<String>,
    failures: Vec<String>,
}

impl Report {
    pub(crate) fn new(machine: Machine) -> Self {
        Self { machine, rows: Vec::new(), verdicts: Vec::new(), notes: Vec::new(), failures: Vec::new() }
    }

    /// What the systems run on.
    pub(crate) fn run_on(&mut self, databases: &[String]) {
        self.machine.databases = databases.to_vec();
    }

    pub(crate) fn add(&mut self, findings: Findings) {
        self.rows.extend(findings.rows);
        if !self.machine.quick {
            self.verdicts.extend(findings.verdicts);
        }
        self.notes.extend(findings.notes);
    }

    /// A scenario that could not be measured to its end.
    pub(crate) fn failed(&mut self, what: String) {
        self.failures.push(what);
    }

    pub(crate) const fn has_failures(&self) -> bool {
        !self.failures.is_empty()
    }

    pub(crate) fn has_misses(&self) -> bool {
        self.verdicts.iter().any(|verdict| !verdict.met)
    }

    /// The table, the targets, and what belongs to them.
    pub(crate) fn text(&self) -> String {
        let mut lines = vec![self.machine.line(), table::measured(&self.rows).to_string()];
        if !self.verdicts.is_empty() {
            lines.push(table::judged(&self.verdicts).to_string());
        }
        lines.extend(self.notes.iter().cloned());
        lines.extend(self.failures.iter().map(|failure| format!("FAILED  {failure}")));
        lines.join("\n") + "\n"
    }

    /// Writes table, JSON and plot into a folder, and the JSON into a file as well where one is named.
    pub(crate) fn write(&self, folder: &Path, json_file: Option<&Path>) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let write = |path: &Path, text: &str| {
            fs::write(path, text).with_context(|| format!("write {}", path.display()))
        };
        let json = serde_json::to_string_pretty(self)? + "\n";
        write(&folder.join("results.json"), &json)?;
        write(&folder.join("results.txt"), &self.text())?;
        write(&folder.join("results.svg"), &plot::svg(&self.rows)?)?;
        json_file.map_or(Ok(()), |file| write(file, &json))
    }
}
