//! A host that hangs for ever, beside one that works.

use std::time::Duration;

use anyhow::{Context, Result};
use tokenkeeper_testkit::scm::{Dialect, Fault, ScmOptions, SimulatedScm};

use super::{Play, SETTLED_AFTER, load::Load};
use crate::{
    report::Row,
    stage::{Host, Stage},
    standing::{Standing, Violence},
    truth::Findings,
    upstream::Sent,
};

const WORKERS: usize = 2;
const USERS: usize = 300;

/// How much worse host B may do beside a host that hangs.
const FACTOR: f64 = 1.5;

/// Load of host B alone that does not count: pools fill, and connections are made.
const WARM_UP_SECS: usize = 2;

/// How many of the slowest answers are told.
const SLOWEST: usize = 5;

/// Alone before and after as well, so that a machine that is busy for a moment does not look like a host that hangs.
const RUNS: [(&str, bool, &str); 3] = [
    ("bulkhead-before", false, "host B alone"),
    ("bulkhead-beside", true, "host A hangs, with half of the traffic"),
    ("bulkhead-after", false, "host B alone, again"),
];

/// How host B did.
#[derive(Clone)]
struct Service {
    per_second: f64,
    p99_ms: i64,
    /// When they were asked, and how long they took, the slowest first.
    slowest: Vec<String>,
}

pub(super) async fn play(play: Play<'_>) -> Result<Vec<Row>> {
    let Play { options, servers, folder, progress } = play;
    let half = Load::new(options).at(options.rate() / 2);
    let count = half.rate as usize * options.scaled(40, 8);
    let mut services = Vec::new();
    let mut rows = Vec::new();
    for (name, beside, words) in RUNS {
        progress.say(words);
        let mut stage = Stage::open(servers, folder, name, hosts().await, &[]).await?;
        let users = stage.log_in(USERS, true).await?;
        let (of_a, of_b): (Vec<_>, Vec<_>) = users.iter().cloned().partition(|user| user.scm == 0);
        // A's tokens do not last for a request, so each one needs A.
        stage.scms[0].fail_always(Fault::Hang);
        let workers = stage.start_workers(WORKERS).await?;
        half.send(&stage, &of_b, half.rate as usize * WARM_UP_SECS).await;
        let began_ms = stage.now_ms();
        let sending = async {
            let to_a = async {
                if beside {
                    half.send(&stage, &of_a, count).await;
                }
            };
            tokio::join!(half.send(&stage, &of_b, count), to_a);
        };
        progress.during(stage.upstream.book(), if beside { 2 * count } else { count }, sending).await;
        stage.upstream.settle(SETTLED_AFTER).await;
        stage.scms[0].heal();
        let service = Service::of(&stage, began_ms).context("host B was asked")?;
        progress.say(&format!("host B: {:.1}/s, p99 {} ms", service.per_second, service.p99_ms));
        services.push(service.clone());
        let findings = Findings::of(&stage).await?;
        let standing = Standing::look(&stage, &of_b, &Violence::default()).await;
        drop(workers);
        let load = format!("{}/s to B{}", half.rate, if beside { ", as much to A" } else { "" });
        let mut row = Row::new("bulkhead", words, load, &findings, &standing);
        row.note(format!("{words}: B {:.1}/s, p99 {} ms", service.per_second, service.p99_ms));
        for slow in service.slowest {
            row.detail(slow);
        }
        rows.push(row);
    }
    if let ([before, beside, after], Some(row)) = (&services[..], rows.get_mut(1)) {
        let per_second = before.per_second.min(after.per_second);
        row.promise("throughput of B within 1.5 times", beside.per_second * FACTOR >= per_second);
        let p99_ms = before.p99_ms.max(after.p99_ms);
        row.promise("p99 of B within 1.5 times", ms(beside.p99_ms) <= ms(p99_ms) * FACTOR);
    }
    Ok(rows)
}

async fn hosts() -> Vec<Host> {
    let mut hosts = Vec::new();
    // A's tokens end at once; B's so often that it refreshes all the time.
    for lifetime_secs in [1, 10] {
        let scm = SimulatedScm::start(ScmOptions {
            token_lifetime: Duration::from_secs(lifetime_secs),
            latency: Duration::from_millis(20),
            ..ScmOptions::new(Dialect::GitHub)
        })
        .await;
        hosts.push(Host { scm, overrides: "".into() });
    }
    hosts
}

impl Service {
    fn of(stage: &Stage, began_ms: i64) -> Option<Self> {
        let host = stage.scms[1].host();
        let requests = stage.upstream.book().requests();
        let of_b: Vec<_> =
            requests.iter().filter(|sent| *sent.ask.host == *host && sent.asked_at_ms >= began_ms).collect();
        let mut took: Vec<_> = of_b.iter().filter_map(|sent| sent.took_ms()).collect();
        took.sort_unstable();
        let began = of_b.iter().map(|sent| sent.asked_at_ms).min()?;
        let mut slowest = of_b.clone();
        slowest.sort_by_key(|sent| std::cmp::Reverse(sent.took_ms()));
        let describe = |sent: &&Sent| {
            let (at_ms, took_ms) = (sent.asked_at_ms - began, sent.took_ms().unwrap_or_default());
            format!("slow: asked after {at_ms} ms, took {took_ms} ms")
        };
        let slowest = slowest.iter().take(SLOWEST).map(describe).collect();
        let ended = of_b.iter().filter_map(|sent| Some(sent.answers.first()?.at_ms)).max()?;
        let seconds = ms((ended - began).max(1)) / 1000.0;
        let answered = i64::try_from(took.len()).ok()?;
        Some(Self { per_second: ms(answered) / seconds, p99_ms: *took.get(took.len() * 99 / 100)?, slowest })
    }
}

/// Small numbers, which a float holds exactly.
#[expect(clippy::cast_precision_loss, reason = "milliseconds of a run of minutes")]
const fn ms(number: i64) -> f64 {
    number as f64
}
