//! A big table against a small one. Users come by chance, most of them for the first time, so that neither a cache nor a
//! reservation helps.

use anyhow::{Context, Result};
use tokenkeeper_testkit::database::Kind;
use tokio::time::Instant;

use crate::{
    figures::{float, whole},
    load::{Ask, Pace, SEEDED_USERS, Users},
    options::Scenario,
    progress::Progress,
    report::{Findings, Verdict},
    rounds::{Cell, Contestant, measure, ratio},
    system::{GITHUB, System},
    world::World,
};

const IN_FLIGHT: usize = 128;
const SMALL: usize = 1_000;

/// The big table's throughput is at least so much of the small one's.
const AT_LEAST: f64 = 0.90;

pub(super) async fn play(world: &World<'_>, progress: &Progress) -> Result<Findings> {
    let large = world.options.scaled(1_000_000, 20_000);
    let mut systems = Vec::new();
    for version in world.versions()? {
        for entries in [SMALL, large] {
            systems.push((entries, seeded(world, version.clone(), entries, progress).await?));
        }
    }
    let ask = |entries| Ask::Token { host: GITHUB, users: Users::random(SEEDED_USERS, entries) };
    let echo = [Contestant::new(&world.echo, ask(SMALL))];
    let own = systems.iter().map(|(entries, system)| Contestant::new(system, ask(*entries)));
    let contestants: Vec<_> = echo.into_iter().chain(own).collect();
    let cell = Cell {
        scenario: Scenario::Wide,
        load: format!("{IN_FLIGHT} in flight"),
        pace: Pace::InFlight(IN_FLIGHT),
    };
    let rows = measure(&cell, &contestants, world.options, progress).await?;
    let [_, small, large, ..] = rows.as_slice() else { return Ok(Findings { rows, ..Findings::default() }) };
    let kept = ratio(large, small, |sample| sample.per_second).context("both were measured")?;
    let verdict = Verdict::new(
        format!("{}, {}: {} against the small table", large.scenario, large.load, large.system),
        format!("{kept:.2} of its throughput"),
        format!("at least {AT_LEAST:.2}"),
        kept >= AT_LEAST,
    );
    Ok(Findings { rows, verdicts: vec![verdict], ..Findings::default() })
}

async fn seeded(
    world: &World<'_>,
    version: (Option<String>, std::path::PathBuf),
    entries: usize,
    progress: &Progress,
) -> Result<System> {
    let remark = format!("{} entries", whole(float(entries as u64)));
    let system = world.install(version, Kind::Postgres, Some(&remark)).await?;
    let began = Instant::now();
    progress.show(&format!("{remark} are written"));
    system.install().context("tokenkeeper")?.seed(entries, false).await?;
    progress.step(&format!("{}: written in {:.1} s", system.name, began.elapsed().as_secs_f64()));
    Ok(system)
}
