//! The Rust client beside the load generator: what it costs to ask by it.

use anyhow::Result;
use tokenkeeper_testkit::database::Kind;

use crate::{
    load::{Pace, Requester},
    options::Scenario,
    progress::Progress,
    report::Findings,
    rounds::{Cell, Contestant, measure},
    world::World,
};

/// How many requests are in flight.
const IN_FLIGHT: [usize; 2] = [128, 1_000];

pub(super) async fn play(world: &World<'_>, progress: &Progress) -> Result<Findings> {
    let mut findings = Findings::default();
    let on_postgres = world.tokenkeepers.iter().find(|system| system.judged_on() == Some(Kind::Postgres));
    for in_flight in world.options.in_flight(&IN_FLIGHT, &IN_FLIGHT[..1]) {
        let mut contestants = Vec::new();
        for system in [Some(&world.echo), on_postgres].into_iter().flatten() {
            for (requester, remark) in
                [(Requester::Generator, "by the generator"), (Requester::Client, "by the Rust client")]
            {
                let contestant = Contestant::new(system, world.hot());
                contestants.push(Contestant { requester, remark: Some(remark.to_owned()), ..contestant });
            }
        }
        let cell = Cell {
            scenario: Scenario::Client,
            load: format!("{in_flight} in flight"),
            pace: Pace::InFlight(in_flight),
        };
        findings.rows.extend(measure(&cell, &contestants, world.options, progress).await?);
    }
    Ok(findings)
}
