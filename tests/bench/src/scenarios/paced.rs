//! Hot tokens at a fixed rate, half of what echo can do: how long a request takes when nothing is at its limit.

use anyhow::{Context, Result};
use tokenkeeper_testkit::database::Kind;

use crate::{
    figures::whole,
    load::Pace,
    options::Scenario,
    progress::Progress,
    report::{Findings, Verdict},
    rounds::{Cell, Contestant, measure},
    world::World,
};

/// How many requests are in flight while it is found out what echo can do.
const IN_FLIGHT: usize = 128;

/// The 99th percentile is at most this many times echo's.
const AT_MOST: f64 = 2.0;

pub(super) async fn play(world: &World<'_>, progress: &Progress) -> Result<Findings> {
    let cell = |load, pace| Cell { scenario: Scenario::Paced, load, pace };
    let echo = [Contestant::new(&world.echo, world.hot())];
    let flat_out = cell(format!("{IN_FLIGHT} in flight"), Pace::InFlight(IN_FLIGHT));
    let flat_out = measure(&flat_out, &echo, world.options, progress).await?;
    let rate = flat_out.first().context("echo was measured")?.median(|sample| sample.per_second) / 2.0;

    // The other databases may not reach this rate, and then there is no latency to tell.
    let systems = [&world.echo, &world.grouped].into_iter().chain(world.on(Kind::Postgres));
    let contestants: Vec<_> = systems.map(|system| Contestant::new(system, world.hot())).collect();
    let cell = cell(format!("{}/s", whole(rate)), Pace::PerSecond(rate));
    let rows = measure(&cell, &contestants, world.options, progress).await?;
    let mut findings = Findings::default();
    for (row, contestant) in rows.iter().zip(&contestants) {
        if let (Some(ratio), Some(_)) = (row.p99_ratio, contestant.system.judged_on()) {
            findings.verdicts.push(Verdict::new(
                format!("{}, {}: p99 on {}", row.scenario, row.load, row.system),
                format!("{ratio:.2} times echo's"),
                format!("at most {AT_MOST:.1} times"),
                ratio <= AT_MOST,
            ));
        }
    }
    findings.rows = rows;
    Ok(findings)
}
