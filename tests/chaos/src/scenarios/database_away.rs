//! The database away under load: the workers say so, and go on by themselves.

use std::time::Duration;

use anyhow::Result;
use tokenkeeper_testkit::{
    program::Worker,
    scm::{Dialect, ScmOptions, SimulatedScm},
};
use tokio::time::{Instant, sleep};

use super::{Play, SETTLED_AFTER, load::Load};
use crate::{
    report::Row,
    stage::{Host, Stage},
    standing::{Standing, Violence},
    truth::Findings,
};

const WORKERS: usize = 2;
const USERS: usize = 150;
pub(super) const AROUND: Duration = Duration::from_secs(3);
pub(super) const RECOVERY: Duration = Duration::from_secs(10);

pub(super) async fn play(play: Play<'_>) -> Result<Vec<Row>> {
    let Play { options, servers, folder, progress } = play;
    let scm = SimulatedScm::start(ScmOptions {
        token_lifetime: Duration::from_secs(30),
        ..ScmOptions::new(Dialect::BitbucketServer)
    })
    .await;
    let hosts = vec![Host { scm, overrides: "".into() }];
    let mut stage = Stage::open(servers, folder, "database-away", hosts, &[]).await?;
    let users = stage.log_in(USERS, true).await?;
    let workers = stage.start_workers(WORKERS).await?;
    let load = Load::new(options);
    let outage = options.outage();
    let breaking = async {
        sleep(AROUND).await;
        progress.say("the database stops");
        servers.postgres.stop().await?;
        let away = Instant::now();
        let told = readiness(&workers, 503, outage).await;
        let told_why = told.as_ref().is_some_and(|texts| texts.iter().all(|text| text.contains("database")));
        let told_after = away.elapsed();
        sleep(outage.saturating_sub(away.elapsed())).await;
        progress.say("the database starts");
        servers.postgres.begin().await?;
        let back_ms = stage.now_ms();
        let ready = readiness(&workers, 200, RECOVERY).await.is_some();
        sleep(AROUND).await;
        anyhow::Ok((told_why, told_after, back_ms, ready))
    };
    let book = stage.upstream.book();
    let broken = progress.during(book, 0, load.until_done(&stage, &users, breaking)).await?;
    let (told_why, told_after, back_ms, ready) = broken;
    progress.during(book, 0, stage.upstream.settle(SETTLED_AFTER)).await;

    let findings = Findings::of(&stage).await?;
    let standing = Standing::look(&stage, &users, &Violence::default()).await;
    let fault = format!("database stopped for {} s", outage.as_secs());
    let mut row = Row::new("database-away", fault, load.describe(users.len()), &findings, &standing);
    let answers = book.requests();
    let after = answers.iter().flat_map(|sent| &sent.answers).map(|answer| answer.at_ms - back_ms);
    row.recovered_in(after.filter(|ms| *ms >= 0).min());
    row.promise("/readyz says 503 and names the database", told_why);
    row.promise("/readyz says 200 within 10 s of its return", ready);
    row.note(format!("/readyz said 503 on all workers after {:.1} s", told_after.as_secs_f32()));
    Ok(vec![row])
}

/// Waits until `/readyz` of every worker answers this; gives back what they say.
pub(super) async fn readiness(workers: &[Worker], status: u16, patience: Duration) -> Option<Vec<String>> {
    let until = Instant::now() + patience;
    while Instant::now() < until {
        let answers = futures_util::future::join_all(workers.iter().map(|worker| worker.get("readyz"))).await;
        let texts: Vec<_> =
            answers.into_iter().flatten().filter(|(seen, _)| *seen == status).map(|(_, text)| text).collect();
        if texts.len() == workers.len() {
            return Some(texts);
        }
        sleep(Duration::from_millis(200)).await;
    }
    None
}
