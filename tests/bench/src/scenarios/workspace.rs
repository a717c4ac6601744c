//! Workspace starts, each with repositories on three hosts.

use anyhow::Result;

use crate::{
    load::{Ask, Pace, Users},
    options::Scenario,
    progress::Progress,
    report::Findings,
    rounds::{Cell, Contestant, measure},
    system::BITBUCKETS,
    world::World,
};

const IN_FLIGHT: [usize; 2] = [16, 128];

pub(super) async fn play(world: &World<'_>, progress: &Progress) -> Result<Findings> {
    let mut findings = Findings::default();
    let ask = Ask::Workspace { hosts: BITBUCKETS, users: Users::random(0, world.options.hot_users()) };
    for in_flight in world.options.in_flight(&IN_FLIGHT, &IN_FLIGHT[..1]) {
        let echo = [Contestant::new(&world.echo, world.hot())];
        let own = world.tokenkeepers.iter().map(|system| Contestant::new(system, ask.clone()));
        let contestants: Vec<_> = echo.into_iter().chain(own).collect();
        let cell = Cell {
            scenario: Scenario::Workspace,
            load: format!("{in_flight} in flight"),
            pace: Pace::InFlight(in_flight),
        };
        findings.rows.extend(measure(&cell, &contestants, world.options, progress).await?);
    }
    findings.notes.push(
        "workspace: a request is a workspace start with three tokens; echo answers a token request."
            .to_owned(),
    );
    Ok(findings)
}
