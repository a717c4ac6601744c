//! On what it was measured.

use std::{fs, process::Command, thread};

use serde::Serialize;
use tokenkeeper::domain::clock::{Clock, SystemClock};

use crate::options::Options;

/// Facts about the machine and what ran on it.
#[derive(Serialize)]
pub(crate) struct Machine {
    date: String,
    cores: usize,
    processor: String,
    memory_gib: u64,
    kernel: String,
    commit: String,
    debug_build: bool,
    broker: String,
    pub(super) databases: Vec<String>,
    rounds: u32,
    seconds: f64,
    /// In miniature: nothing is judged.
    pub(super) quick: bool,
}

impl Machine {
    /// Looks around.
    pub(crate) fn look(options: &Options) -> Self {
        let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.trim_start_matches([' ', '\t', ':']).to_owned()
        };
        let memory_kib = field(&file("/proc/meminfo"), "MemTotal:");
        let memory_kib: u64 = memory_kib.trim_end_matches(" kB").parse().unwrap_or_default();
        Self {
            date: SystemClock.now().to_string(),
            cores: thread::available_parallelism().map_or(0, usize::from),
            processor: field(&file("/proc/cpuinfo"), "model name"),
            memory_gib: memory_kib >> 20,
            kernel: file("/proc/sys/kernel/osrelease").trim().to_owned(),
            commit: said(Command::new("git").args(["describe", "--always", "--dirty"])),
            debug_build: cfg!(debug_assertions),
            broker: said(Command::new("rabbitmqctl").args(["-q", "version"])),
            databases: Vec::new(),
            rounds: options.rounds(),
            seconds: options.round().as_secs_f64(),
            quick: options.quick,
        }
    }

    /// In one line.
    pub(crate) fn line(&self) -> String {
        let Self { cores, processor, memory_gib, broker, databases, rounds, seconds, commit, .. } = self;
        let warning = if self.debug_build { "DEBUG BUILD: NUMBERS MEAN NOTHING. " } else { "" };
        format!(
            "{warning}{cores} cores ({processor}), {memory_gib} GiB, shared by broker, databases, load and worker; \
             RabbitMQ {broker}, {}; {rounds} rounds of {seconds} s, medians; commit {commit}, {}",
            databases.join(", "),
            self.date
        )
    }
}

/// What a command prints; nothing where it cannot be run.
fn said(command: &mut Command) -> String {
    let output = command.output().ok().filter(|output| output.status.success());
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}
