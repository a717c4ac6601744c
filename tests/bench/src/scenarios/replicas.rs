//! Several workers on one queue and one database.

use anyhow::Result;
use tokenkeeper_testkit::database::Kind;

use crate::{
    load::Pace,
    options::Scenario,
    progress::Progress,
    report::Findings,
    rounds::{Cell, Contestant, measure},
    world::World,
};

const WORKERS: [usize; 3] = [1, 2, 4];
const IN_FLIGHT: usize = 128;

pub(super) async fn play(world: &World<'_>, progress: &Progress) -> Result<Findings> {
    let mut findings = Findings::default();
    for &workers in world.options.scaled(&WORKERS[..], &WORKERS[1..2]) {
        let echo = [Contestant::new(&world.echo, world.hot())];
        let own = world.on(Kind::Postgres);
        let own = own.map(|system| Contestant { workers, ..Contestant::new(system, world.hot()) });
        let contestants: Vec<_> = echo.into_iter().chain(own).collect();
        let cell = Cell {
            scenario: Scenario::Replicas,
            load: format!("{IN_FLIGHT} in flight, {workers} worker{}", if workers > 1 { "s" } else { "" }),
            pace: Pace::InFlight(IN_FLIGHT),
        };
        findings.rows.extend(measure(&cell, &contestants, world.options, progress).await?);
    }
    findings.notes.push("replicas: memory and CPU are all workers' together; echo is one worker.".to_owned());
    Ok(findings)
}
