//! Tokens that are valid and reserved: what a worker does nearly all of the time.

use anyhow::Result;
use tokenkeeper_testkit::database::Kind;

use crate::{
    load::Pace,
    options::Scenario,
    progress::Progress,
    report::{Findings, Row, Verdict},
    rounds::{Cell, Contestant, measure},
    system::System,
    world::World,
};

/// How many requests are in flight; the second one is what the targets are about.
const IN_FLIGHT: [usize; 3] = [16, JUDGED, 512];
const JUDGED: usize = 128;

pub(super) async fn play(world: &World<'_>, progress: &Progress) -> Result<Findings> {
    let mut findings = Findings::default();
    for in_flight in IN_FLIGHT {
        let systems = [&world.echo, &world.grouped].into_iter().chain(&world.tokenkeepers);
        let contestants: Vec<_> = systems.map(|system| Contestant::new(system, world.hot())).collect();
        let cell = Cell {
            scenario: Scenario::Hot,
            load: format!("{in_flight} in flight"),
            pace: Pace::InFlight(in_flight),
        };
        let rows = measure(&cell, &contestants, world.options, progress).await?;
        if in_flight == JUDGED {
            findings.verdicts.extend(world.tokenkeepers.iter().filter_map(|system| judge(system, &rows)));
        }
        findings.rows.extend(rows);
    }
    Ok(findings)
}

fn judge(system: &System, rows: &[Row]) -> Option<Verdict> {
    let install = system.install().filter(|install| install.version.is_none())?;
    let least = match install.kind {
        Kind::Postgres => 0.80,
        Kind::Sqlite | Kind::MariaDb => 0.50,
    };
    let row = rows.iter().find(|row| row.system == system.name)?;
    Some(Verdict::at_least(format!("hot, {JUDGED} in flight, {}", system.name), row.ratio?, least))
}
