//! Tokens that are valid and reserved: what a worker does nearly all of the time.

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

/// How many requests are in flight.
const IN_FLIGHT: [usize; 3] = [16, JUDGED, 512];
/// Where the targets are.
const JUDGED: usize = 128;

pub(super) async fn play(world: &World<'_>, progress: &Progress) -> Result<Findings> {
    let mut findings = Findings::default();
    for in_flight in world.options.in_flight(&IN_FLIGHT, &[JUDGED]) {
        let systems = [&world.echo, &world.grouped].into_iter().chain(&world.tokenkeepers);
        let contestants: Vec<_> = systems.map(|system| Contestant::new(system, world.hot())).collect();
        let cell = Cell {
            scenario: Scenario::Hot,
            load: format!("{in_flight} in flight"),
            pace: Pace::InFlight(in_flight),
        };
        let mut rows = measure(&cell, &contestants, world.options, progress).await?;
        for (row, contestant) in rows.iter_mut().zip(&contestants) {
            let least = match contestant.system.judged_on() {
                Some(Kind::Postgres) => 0.80,
                Some(Kind::Sqlite | Kind::MariaDb) => 0.50,
                None => continue,
            };
            if in_flight == JUDGED {
                findings.verdicts.push(row.must_reach(least));
            }
        }
        findings.rows.extend(rows);
    }
    Ok(findings)
}
