//! One expired token, asked for by many at once over several workers: it is refreshed once.

use anyhow::{Context, Result};
use tokenkeeper_testkit::database::Kind;

use crate::{
    load::{Amount, Ask, Pace, SEEDED_USERS, Users},
    progress::Progress,
    report::{Findings, Verdict},
    system::GITHUB,
    world::World,
};

const WORKERS: usize = 4;
const REQUESTS: usize = 400;

pub(super) async fn play(world: &World<'_>, progress: &Progress) -> Result<Findings> {
    let Some(system) = world.tokenkeepers.iter().find(|system| system.judged_on() == Some(Kind::Postgres))
    else {
        return Ok(Findings::default());
    };
    let install = system.install().context("tokenkeeper")?;
    install.seed(world.expired_users(), true).await?;
    install.expire().await?;
    let running = system.start(WORKERS).await?;
    let mut refreshes = Vec::new();
    for turn in 0..world.options.scaled(10, 2) {
        let mut load = system.generator(0).await?;
        let before = world.endpoint.granted().await?;
        let ask = Ask::Token { host: GITHUB, users: Users::in_turn(SEEDED_USERS + turn, 1) };
        let amount = Amount::of_requests(REQUESTS as u64);
        load.run(&ask, Pace::InFlight(REQUESTS), amount, |_| ()).await?;
        refreshes.push(world.endpoint.granted().await? - before);
        load.close().await?;
        progress.step(&format!("{REQUESTS} requests for one expired token: {} refreshes", refreshes[turn]));
    }
    running.stop().await?;
    let counts: Vec<_> = refreshes.iter().map(u64::to_string).collect();
    let verdict = Verdict::new(
        format!("once: refreshes for {REQUESTS} requests at once of one expired user, {WORKERS} workers"),
        format!("{} in {} tries", counts.join(", "), counts.len()),
        "exactly 1".to_owned(),
        refreshes.iter().all(|count| *count == 1),
    );
    Ok(Findings { verdicts: vec![verdict], ..Findings::default() })
}
