//! Every token has expired: each request is a refresh, of another user, at a token endpoint that takes 5 ms.

use anyhow::{Context, Result};
use tokenkeeper_testkit::database::Kind;

use crate::{
    load::Pace,
    options::Scenario,
    progress::Progress,
    report::Findings,
    rounds::{Cell, Contestant, measure},
    world::World,
};

/// How many requests are in flight. More than 128 at one host is what a worker's bulkhead turns away.
const IN_FLIGHT: [usize; 2] = [16, JUDGED];
const JUDGED: usize = 128;
const AT_LEAST: f64 = 0.30;

pub(super) async fn play(world: &World<'_>, progress: &Progress) -> Result<Findings> {
    let mut findings = Findings::default();
    let users = world.expired_users();
    for system in &world.tokenkeepers {
        progress.show(&format!("{}: {users} expired tokens are written", system.name));
        system.install().context("tokenkeeper")?.seed(users, true).await?;
    }
    for in_flight in world.options.in_flight(&IN_FLIGHT, &[JUDGED]) {
        let systems = [&world.echo].into_iter().chain(&world.tokenkeepers);
        let contestants: Vec<_> = systems
            .map(|system| Contestant {
                once_each: Some(users as u64),
                ..Contestant::new(system, world.expired())
            })
            .collect();
        let cell = Cell {
            scenario: Scenario::Storm,
            load: format!("{in_flight} in flight"),
            pace: Pace::InFlight(in_flight),
        };
        let mut rows = measure(&cell, &contestants, world.options, progress).await?;
        for (row, contestant) in rows.iter_mut().zip(&contestants) {
            if in_flight == JUDGED && contestant.system.judged_on() == Some(Kind::Postgres) {
                findings.verdicts.push(row.must_reach(AT_LEAST));
            }
        }
        findings.rows.extend(rows);
    }
    Ok(findings)
}
