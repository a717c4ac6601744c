//! What a worker holds while it answers many hot requests.

use anyhow::{Context, Result};
use tokenkeeper_testkit::database::Kind;

use crate::{
    load::{Amount, Pace},
    progress::Progress,
    report::{Findings, Verdict},
    usage::memory_mib,
    world::World,
};

const IN_FLIGHT: usize = 512;
const SAMPLES: u64 = 10;

/// Resident memory at the end, in MiB.
const AT_MOST: f64 = 48.0;

/// The second half may hold so much more than the first at most, in MiB: an allocator is never still.
const FLAT: f64 = 1.0;

pub(super) async fn play(world: &World<'_>, progress: &Progress) -> Result<Findings> {
    let requests = world.options.scaled(100_000, 1_000);
    let mut findings = Findings::default();
    for system in [&world.echo].into_iter().chain(world.on(Kind::Postgres)) {
        let running = system.start(1).await?;
        let ids = running.ids()?;
        let mut load = system.generator(0).await?;
        let mut samples = Vec::new();
        let amount = Amount::of_requests(requests);
        let every = requests / SAMPLES;
        let ask = world.hot();
        let asking = load.run(&ask, Pace::InFlight(IN_FLIGHT), amount, |answered| {
            if answered.is_multiple_of(every) {
                samples.extend(memory_mib(&ids).ok().map(|(now, _)| now));
            }
        });
        asking.await?;
        let (_, peak) = memory_mib(&ids)?;
        load.close().await?;
        running.stop().await?;
        let line: Vec<_> = samples.iter().map(|mib| format!("{mib:.1}")).collect();
        let line = format!(
            "memory: {}, MiB every {every} requests: {}; peak {peak:.1}",
            system.name,
            line.join(" ")
        );
        progress.step(&line);
        findings.notes.push(line);
        if system.judged_on().is_some() {
            findings.verdicts.extend(judge(&samples, requests)?);
        }
    }
    Ok(findings)
}

fn judge(samples: &[f64], requests: u64) -> Result<[Verdict; 2]> {
    let last = *samples.last().context("memory was never looked at")?;
    let (early, late) = samples.split_at(samples.len() / 2);
    let most = |samples: &[f64]| samples.iter().copied().fold(0.0, f64::max);
    let growth = most(late) - most(early);
    let what = format!("memory after {requests} requests, {IN_FLIGHT} in flight, PostgreSQL");
    Ok([
        Verdict::new(&what, format!("{last:.1} MiB"), format!("at most {AT_MOST:.0} MiB"), last <= AT_MOST),
        Verdict::new(
            format!("{what}: the second half's most against the first's"),
            format!("{growth:+.1} MiB"),
            format!("flat: at most +{FLAT:.1} MiB"),
            growth <= FLAT,
        ),
    ])
}
