//! Workers told to stop and replaced, one after the other, under load.

use std::time::Duration;

use anyhow::Result;
use tokenkeeper_testkit::scm::{Dialect, Fault, ScmOptions, SimulatedScm};

use super::{Play, SETTLED_AFTER, load::Load};
use crate::{
    report::Row,
    stage::{Host, Stage},
    standing::{Standing, Violence},
    truth::Findings,
};

const WORKERS: usize = 3;
const USERS: usize = 300;

/// Long enough that refreshes are under way whenever a worker is told to stop.
const LATENCY: Duration = Duration::from_millis(50);

pub(super) async fn play(play: Play<'_>) -> Result<Vec<Row>> {
    let Play { options, servers, folder, progress } = play;
    let scm = SimulatedScm::start(ScmOptions {
        token_lifetime: Duration::from_secs(20),
        latency: LATENCY,
        refresh_lock_timeout: None,
        ..ScmOptions::new(Dialect::BitbucketServer)
    })
    .await;
    scm.fail_now_and_then(5, vec![Fault::Status(500)], options.seed);
    let hosts = vec![Host { scm, overrides: "max_concurrent_refreshes = 8".into() }];
    let mut stage = Stage::open(servers, folder, "rolling", hosts, &[]).await?;
    let users = stage.log_in(USERS, true).await?;
    let mut workers = stage.start_workers(WORKERS).await?;

    let rounds = options.rounds(20, 2);
    let load = Load::new(options);
    let mut ended_badly = Vec::new();
    let replacing = async {
        for round in 1..=rounds {
            progress.say(&format!("round {round} of {rounds}: {WORKERS} workers are replaced"));
            for (number, worker) in workers.iter_mut().enumerate() {
                let status = worker.stop().await?;
                if !status.success() {
                    ended_badly.push(format!("worker {} of round {round} ended with {status}", number + 1));
                }
                *worker = stage.replace_worker(&format!("worker-{}-round-{round}", number + 1)).await?;
            }
        }
        anyhow::Ok(())
    };
    let replacing_under_load = load.until_done(&stage, &users, replacing);
    progress.during(stage.upstream.book(), 0, replacing_under_load).await?;
    progress.during(stage.upstream.book(), 0, stage.upstream.settle(SETTLED_AFTER)).await;

    let findings = Findings::of(&stage).await?;
    let standing = Standing::look(&stage, &users, &Violence::default()).await;
    let fault = format!("SIGTERM and restart of {WORKERS} workers in turn, {rounds} times");
    let mut row = Row::new("rolling", fault, load.describe(users.len()), &findings, &standing);
    row.promise("0 requests unanswered", findings.answered == findings.requests);
    row.promise("every worker that is told to stop exits 0", ended_badly.is_empty());
    for what in ended_badly {
        row.detail(what);
    }
    Ok(vec![row])
}
