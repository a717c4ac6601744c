//! Steady load, and what it costs: memory, file descriptors, connections, channels.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use tokenkeeper_testkit::{
    program::Worker,
    scm::{Dialect, Fault, ScmOptions, SimulatedScm},
    servers::Servers,
};
use tokio::time::{Instant, sleep_until};

use super::{Play, SETTLED_AFTER, load::Load};
use crate::{
    report::Row,
    stage::{Host, Stage},
    standing::{Standing, Violence},
    truth::Findings,
};

const WORKERS: usize = 2;
const USERS: usize = 300;
const SAMPLES: u32 = 10;

/// A shorter run says nothing about growth.
const MEANINGFUL: Duration = Duration::from_secs(60);

/// How much more memory the second half may use at its least than the first half at its most.
const GROWTH_PERCENT: u64 = 5;
const GROWTH_KIB: u64 = 4 * 1024;

/// What the workers hold together, and the broker and the database for them.
#[derive(Clone, Copy)]
struct Sample {
    at_secs: u64,
    memory_kib: u64,
    descriptors: u64,
    connections: u64,
    channels: u64,
    database_connections: u64,
}

pub(super) async fn play(play: Play<'_>) -> Result<Vec<Row>> {
    let Play { options, servers, folder, progress } = play;
    let scm = SimulatedScm::start(ScmOptions {
        token_lifetime: Duration::from_secs(30),
        latency: Duration::from_millis(20),
        ..ScmOptions::new(Dialect::GitHub)
    })
    .await;
    scm.fail_now_and_then(2, vec![Fault::Status(500)], options.seed);
    let hosts = vec![Host { scm, overrides: "".into() }];
    let mut stage = Stage::open(servers, folder, "soak", hosts, &[]).await?;
    let users = stage.log_in(USERS, true).await?;
    let workers = stage.start_workers(WORKERS).await?;
    let load = Load::new(options);
    let duration = options.soak();
    let mut samples = Vec::new();
    let sampling = async {
        let began = Instant::now();
        for number in 1..=SAMPLES {
            sleep_until(began + duration * number / SAMPLES).await;
            let sample = Sample::take(began, &workers, servers, &stage).await?;
            progress.say(&sample.line());
            samples.push(sample);
        }
        anyhow::Ok(())
    };
    progress.during(stage.upstream.book(), 0, load.until_done(&stage, &users, sampling)).await?;
    stage.upstream.settle(SETTLED_AFTER).await;

    let findings = Findings::of(&stage).await?;
    let standing = Standing::look(&stage, &users, &Violence::default()).await;
    let fault = format!("none, for {} s", duration.as_secs());
    let mut row = Row::new("soak", fault, load.describe(users.len()), &findings, &standing);
    judge(&mut row, &samples, duration);
    Ok(vec![row])
}

fn judge(row: &mut Row, samples: &[Sample], duration: Duration) {
    row.note(format!("{WORKERS} workers together:"));
    for sample in samples {
        row.note(sample.line());
    }
    if duration < MEANINGFUL {
        row.note("too short to tell whether anything grows");
        return;
    }
    // What leaks is never again what it was; pools and caches come and go.
    let (early, late) = samples.split_at(samples.len() / 2);
    let most = |what: fn(&Sample) -> u64| early.iter().map(what).max().unwrap_or_default();
    let least = |what: fn(&Sample) -> u64| late.iter().map(what).min().unwrap_or_default();
    let grew = |what| least(what).saturating_sub(most(what));
    let memory = most(|sample| sample.memory_kib);
    let allowed = (memory * GROWTH_PERCENT / 100).max(GROWTH_KIB);
    row.promise("memory is flat", grew(|sample| sample.memory_kib) <= allowed);
    row.promise("file descriptors are flat", grew(|sample| sample.descriptors) == 0);
    row.promise("connections are flat", grew(|sample| sample.connections) == 0);
    row.promise("channels are flat", grew(|sample| sample.channels) == 0);
}

impl Sample {
    async fn take(began: Instant, workers: &[Worker], servers: &Servers, stage: &Stage) -> Result<Self> {
        let (mut memory_kib, mut descriptors) = (0, 0);
        for worker in workers {
            let process = format!("/proc/{}", worker.id()?);
            memory_kib += resident_kib(&process)?;
            descriptors += fs::read_dir(format!("{process}/fd")).context("count file descriptors")?.count();
        }
        let connections = servers.rabbitmq.list("connections", "pid").await?.len();
        let channels = servers.rabbitmq.list("channels", "pid").await?.len();
        let sql = "select count(*) from pg_stat_activity where datname = current_database() \
                   and pid <> pg_backend_pid()";
        let database_connections = servers.postgres.query(&stage.database, sql).await?;
        Ok(Self {
            at_secs: began.elapsed().as_secs(),
            memory_kib,
            descriptors: descriptors as u64,
            connections: connections as u64,
            channels: channels as u64,
            database_connections: database_connections.trim().parse().context("count connections")?,
        })
    }

    fn line(&self) -> String {
        format!(
            "{:>5} s: {:>6} KiB resident, {:>4} file descriptors, {:>3} AMQP connections, {:>4} channels, \
             {:>3} database connections",
            self.at_secs,
            self.memory_kib,
            self.descriptors,
            self.connections,
            self.channels,
            self.database_connections,
        )
    }
}

/// Resident memory of a process, given by its folder below `/proc`.
pub(super) fn resident_kib(process: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("{process}/status")).context("read a worker's memory")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("there is no VmRSS")?;
    line.trim().trim_end_matches(" kB").parse().context("VmRSS is no number")
}
