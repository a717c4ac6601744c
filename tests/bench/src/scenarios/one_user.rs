//! Everybody asks for the same user's token: every reservation wants the same row.

use anyhow::Result;
use tokenkeeper_testkit::database::Kind;

use crate::{
    load::{Ask, Pace, Users},
    options::Scenario,
    progress::Progress,
    report::Findings,
    rounds::{Cell, Contestant, measure},
    system::BITBUCKETS,
    world::World,
};

const IN_FLIGHT: usize = 16;
const AT_LEAST: f64 = 0.60;

pub(super) async fn play(world: &World<'_>, progress: &Progress) -> Result<Findings> {
    let ask = Ask::Token { host: BITBUCKETS[0], users: Users::in_turn(0, 1) };
    let systems = [&world.echo].into_iter().chain(&world.tokenkeepers);
    let contestants: Vec<_> = systems.map(|system| Contestant::new(system, ask.clone())).collect();
    let cell = Cell {
        scenario: Scenario::OneUser,
        load: format!("{IN_FLIGHT} in flight"),
        pace: Pace::InFlight(IN_FLIGHT),
    };
    let mut rows = measure(&cell, &contestants, world.options, progress).await?;
    let judged = rows.iter_mut().zip(&contestants);
    let judged = judged.filter(|(_, contestant)| contestant.system.judged_on() == Some(Kind::Postgres));
    let verdicts = judged.map(|(row, _)| row.must_reach(AT_LEAST)).collect();
    Ok(Findings { rows, verdicts, ..Findings::default() })
}
