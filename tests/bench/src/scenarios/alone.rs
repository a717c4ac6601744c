//! One hot request at a time: latency alone.

use anyhow::{Context, Result};
use tokenkeeper_testkit::database::Kind;

use crate::{
    figures::milliseconds,
    load::Pace,
    options::Scenario,
    progress::Progress,
    report::{Findings, Verdict},
    rounds::{Cell, Contestant, measure},
    world::World,
};

/// So much longer than echo half of the requests may take at most, in microseconds.
const AT_MOST_US: f64 = 1_000.0;

pub(super) async fn play(world: &World<'_>, progress: &Progress) -> Result<Findings> {
    let systems = [&world.echo].into_iter().chain(&world.tokenkeepers);
    let contestants: Vec<_> = systems.map(|system| Contestant::new(system, world.hot())).collect();
    let cell = Cell { scenario: Scenario::Alone, load: "1 in flight".to_owned(), pace: Pace::InFlight(1) };
    let rows = measure(&cell, &contestants, world.options, progress).await?;
    let mut findings = Findings::default();
    let echo_us = rows.first().context("echo was measured")?.median(|sample| sample.p50_us);
    for (row, contestant) in rows.iter().zip(&contestants) {
        if contestant.system.judged_on() == Some(Kind::Postgres) {
            let more_us = row.median(|sample| sample.p50_us) - echo_us;
            findings.verdicts.push(Verdict::new(
                format!("{}, {}: p50 on {}", row.scenario, row.load, row.system),
                format!("echo's {} ms + {more_us:.0} µs", milliseconds(echo_us)),
                format!("at most echo's + {AT_MOST_US:.0} µs"),
                more_us <= AT_MOST_US,
            ));
        }
    }
    findings.rows = rows;
    Ok(findings)
}
