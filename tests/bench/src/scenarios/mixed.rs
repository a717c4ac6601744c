//! Requests as they come in earnest: most are hot, and some are not, which breaks up the groups that hot ones share and the
//! order that they are acked in.
//!
//! Of a hundred requests
//!
//! - 90 are hot: 85 for one token, which is held, and 5 workspace starts with three such tokens;
//! - 5 need a refresh that takes 50 ms;
//! - 4 are errors: two of users without an identity at the host (looked for in the database), one of an unknown host (a
//!   query each time), and one without a host (`invalid_request`, and a dead letter);
//! - 1 needs a refresh that takes 5 s.
//!
//! *Throughput* is that of all of them to echo's, which has as many requests in flight and answers all at once. The number in
//! flight does not count those that take 5 s: they would soon be all that is in flight, and the figure would be that of the
//! provider. They come beside the others, in their share, and what is still under way at the end of a warm-up is so in the
//! round. The shares are those of what is sent. A worker lets a quarter of its prefetch wait for a host that is stalled, 128,
//! and at 8,000 requests a second there would be 400. So it refuses the rest, which is right once so many are under way, and
//! is counted. Nothing is refused of a host that takes 50 ms.
//!
//! *Latency* is that of the 85, at a fixed rate, beside that of hot requests alone at the same rate, in alternating rounds. The
//! rate is half of what the mixed load reached: at half of echo's, as in *paced*, it would be near its limit, and the
//! latency that of a queue.

use anyhow::{Context, Result};
use tokenkeeper_testkit::database::Kind;

use crate::{
    figures::{float, whole},
    load::{Ask, Mix, Pace, REFRESHED, SEEDED_USERS, Users},
    options::Scenario,
    progress::Progress,
    report::{Findings, Row, Verdict},
    rounds::{Cell, Contestant, measure, ratio},
    system::{Crowd, REFRESHING, STALLING},
    world::World,
};

/// How many requests are in flight.
const IN_FLIGHT: [usize; 2] = [128, 512];
const AT_LEAST: f64 = 0.55;

/// The hot part's 99th percentile is at most this many times that of hot requests alone.
const AT_MOST: f64 = 2.0;

pub(super) async fn play(world: &World<'_>, progress: &Progress) -> Result<Findings> {
    let crowd = |place, host, count| Crowd { host, first: place * SEEDED_USERS, count, refreshable: true };
    let refreshed = crowd(2, REFRESHING, world.expired_users());
    let slow = crowd(3, STALLING, world.expired_users() / REFRESHED);
    // Systems of their own, whose tables and queues hot requests alone do not share.
    let mut systems = Vec::new();
    for version in world.versions()? {
        let system = world.install(version, Kind::Postgres, Some("mixed")).await?;
        progress.show(&format!("{}: users log in", system.name));
        world.log_in(&system).await?;
        let install = system.install().context("tokenkeeper")?;
        install.seed_crowd(refreshed).await?;
        install.seed_crowd(slow).await?;
        systems.push(system);
    }
    let ask = Ask::Mixed(Mix {
        hot: Users::random(0, world.options.hot_users()),
        refreshed: Users::in_turn(refreshed.first, refreshed.count),
        slow: Users::in_turn(slow.first, slow.count),
    });
    // Of a hundred requests one is slow.
    let once_each = Some(100 * slow.count as u64);
    let mixed =
        || systems.iter().map(|system| Contestant { once_each, ..Contestant::new(system, ask.clone()) });
    let mut findings = Findings::default();
    for in_flight in world.options.in_flight(&IN_FLIGHT, &IN_FLIGHT[..1]) {
        let echo = [Contestant::new(&world.echo, world.hot())];
        let contestants: Vec<_> = echo.into_iter().chain(mixed()).collect();
        let load = format!("{in_flight} in flight");
        let cell = Cell { scenario: Scenario::Mixed, load, pace: Pace::InFlight(in_flight) };
        let mut rows = measure(&cell, &contestants, world.options, progress).await?;
        for (row, contestant) in rows.iter_mut().zip(&contestants) {
            if contestant.system.judged_on().is_some() {
                findings.verdicts.push(row.must_reach(AT_LEAST));
            }
        }
        findings.rows.extend(rows);
    }
    let hot = world.on(Kind::Postgres).map(|system| Contestant::new(system, world.hot()));
    let contestants: Vec<_> = hot.chain(mixed()).collect();
    if let Some(row) = findings.rows.iter().find(|row| row.ratio.is_some()) {
        let rate = row.median(|sample| sample.per_second) / 2.0;
        let load = format!("{}/s", whole(rate));
        let cell = Cell { scenario: Scenario::Mixed, load, pace: Pace::PerSecond(rate) };
        let rows = measure(&cell, &contestants, world.options, progress).await?;
        for ((hot, mixed), contestant) in rows.iter().zip(&rows[systems.len()..]).zip(&contestants) {
            if contestant.system.judged_on().is_some() {
                let times = ratio(mixed, hot, |sample| sample.p99_us).context("both were measured")?;
                findings.verdicts.push(Verdict::new(
                    format!("{}, {}: p99 of the hot part on {}", mixed.scenario, mixed.load, hot.system),
                    format!("{times:.2} times that of hot requests alone"),
                    format!("at most {AT_MOST:.1} times"),
                    times <= AT_MOST,
                ));
            }
        }
        findings.rows.extend(rows);
    }
    findings.notes = findings.rows.iter().filter_map(note).collect();
    Ok(findings)
}

/// How many requests were refused, where some were.
fn note(row: &Row) -> Option<String> {
    let (refused, all) = row
        .samples
        .iter()
        .fold((0, 0), |(refused, all), sample| (refused + sample.refused, all + sample.requests));
    (refused > 0).then(|| {
        format!(
            "{}, {}, {}: {:.2} % of all requests were refused, since a quarter of the prefetch waited for the slow host.",
            row.scenario,
            row.load,
            row.system,
            100.0 * float(refused) / float(all),
        )
    })
}
