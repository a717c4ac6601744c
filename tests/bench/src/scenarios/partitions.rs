//! Four workers: on one queue, and on partitions by user. What it brings is that those who want the same refresh meet in one
//! process, instead of each worker watching the other's lease in the database.

use anyhow::{Context, Result};
use tokenkeeper_testkit::database::Kind;

use crate::{
    load::{Amount, Ask, Pace, SEEDED_USERS, Users},
    progress::Progress,
    report::Findings,
    statements::total,
    system::GITHUB,
    world::World,
};

const WORKERS: usize = 4;
const PARTITIONS: usize = 8;
const IN_FLIGHT: usize = 128;
/// How many want the token of the same user, one right after the other.
const EACH: usize = 8;
const WATCHES: &str = "tokenkeeper_lease_watches_total";

pub(super) async fn play(world: &World<'_>, progress: &Progress) -> Result<Findings> {
    let Some(system) = world.tokenkeepers.iter().find(|system| system.judged_on() == Some(Kind::Postgres))
    else {
        return Ok(Findings::default());
    };
    let install = system.install().context("tokenkeeper")?;
    install.seed(world.expired_users(), true).await?;
    let expired = world.options.scaled(2_000, 100);
    let mut findings = Findings::default();
    for round in 0..world.options.scaled(3, 1) {
        for partitions in [0, PARTITIONS] {
            install.expire().await?;
            let mut program = install.program.clone();
            program.set("TOKENKEEPER__BROKER__PARTITIONS", partitions.to_string());
            let mut workers = Vec::new();
            for number in 1..=WORKERS {
                workers.push(program.start_worker(&format!("partitioned-{number}")).await?);
            }
            let sum = async |metric| -> Result<u64> {
                let mut sum = 0;
                for worker in &workers {
                    sum += total(metric, &worker.metrics().await?).unwrap_or(0);
                }
                Ok(sum)
            };

            let run = async |ask: &Ask, amount| {
                let mut load = system.generator(0).await?;
                load.by_user(partitions > 0);
                let heard = load.run(ask, Pace::InFlight(IN_FLIGHT), amount, |_| ()).await?;
                load.close().await?;
                anyhow::Ok(heard)
            };
            let hot = run(&world.hot(), Amount::of_time(world.options.round())).await?;
            let (granted, watched) = (world.endpoint.granted().await?, sum(WATCHES).await?);
            let users = Users::in_turn(SEEDED_USERS, expired);
            let ask = Ask::Token { host: GITHUB, users: users.each(EACH) };
            let burst = Amount::of_requests((expired * EACH) as u64);
            let cold = run(&ask, burst).await?;
            let (granted, watched) =
                (world.endpoint.granted().await? - granted, sum(WATCHES).await? - watched);
            for worker in &mut workers {
                worker.stop().await?;
            }
            let queues =
                if partitions == 0 { "one queue".to_owned() } else { format!("{partitions} partitions") };
            let line = format!(
                "partitions: round {}, {WORKERS} workers, {queues}: hot {:.0}/s, p99 {} ms; {EACH} requests each for \
                 {expired} expired tokens: {:.0}/s, p99 {} ms, {granted} refreshes, {watched} watches of another \
                 worker's refresh",
                round + 1,
                hot.per_second(),
                hot.latencies.percentile_us(99.0) / 1000,
                cold.per_second(),
                cold.latencies.percentile_us(99.0) / 1000,
            );
            progress.step(&line);
            findings.notes.push(line);
        }
    }
    Ok(findings)
}
