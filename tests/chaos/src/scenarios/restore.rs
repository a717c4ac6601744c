//! A backup restored under load: no dead token is handed out, and nobody must log in again.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Result;
use tokenkeeper_testkit::scm::{Dialect, ScmOptions, SimulatedScm};
use tokio::time::sleep;

use super::{Play, SETTLED_AFTER, load::Load, newest::Newest};
use crate::{
    report::Row,
    stage::{Host, Stage},
    standing::{Standing, Violence},
    truth::Findings,
    upstream::Answered,
};

const WORKERS: usize = 2;
const USERS: usize = 150;
const AROUND: Duration = Duration::from_secs(3);

/// A reply may be on its way while the pair is replaced.
const UNDER_WAY_MS: i64 = 1_000;

/// What a dump holds of users and their tokens.
const TABLES: [&str; 3] = ["identity", "token_entry", "journal_mark"];

pub(super) async fn play(play: Play<'_>) -> Result<Vec<Row>> {
    let Play { options, servers, folder, progress } = play;
    let scm = SimulatedScm::start(ScmOptions {
        token_lifetime: Duration::from_secs(60),
        ..ScmOptions::new(Dialect::BitbucketServer)
    })
    .await;
    let hosts = vec![Host { scm, overrides: "".into() }];
    let mut stage = Stage::open(servers, folder, "restore", hosts, &[]).await?;
    let users = stage.log_in(USERS, true).await?;
    let _workers = stage.start_workers(WORKERS).await?;
    let (load, database) = (Load::new(options), stage.database.clone());
    let age = options.outage();
    let breaking = async {
        sleep(AROUND).await;
        progress.say("the database is backed up");
        servers.postgres.query(&database, &backup()).await?;
        sleep(age).await;
        progress.say("the backup is restored");
        servers.postgres.query(&database, &restore()).await?;
        let back_ms = stage.now_ms();
        sleep(age).await;
        anyhow::Ok(back_ms)
    };
    let book = stage.upstream.book();
    let back_ms = progress.during(book, 0, load.until_done(&stage, &users, breaking)).await?;
    progress.during(book, 0, stage.upstream.settle(SETTLED_AFTER)).await;
    let mut newest = Newest::default();
    newest.look(&stage, &users).await;

    let findings = Findings::of(&stage).await?;
    let standing = Standing::look(&stage, &users, &Violence::default()).await;
    let fault = format!("a backup that is {} s old restored", age.as_secs());
    let mut row = Row::new("restore", fault, load.describe(users.len()), &findings, &standing);
    let dead = dead_tokens(&stage);
    row.promise(format!("dead tokens handed out as ok: 0 ({})", dead.len()), dead.is_empty());
    for what in dead {
        row.detail(what);
    }
    newest.judge(&mut row);
    let answers = book.requests();
    let after = answers.iter().flat_map(|sent| &sent.answers).map(|answer| answer.at_ms - back_ms);
    row.recovered_in(after.filter(|ms| *ms >= 0).min());
    Ok(vec![row])
}

fn backup() -> String {
    TABLES.map(|table| format!("CREATE TABLE backup_{table} AS TABLE {table};")).concat()
}

/// All at once, as a dump is restored in a single transaction.
fn restore() -> String {
    let empty = TABLES.map(|table| format!("DELETE FROM {table};")).into_iter().rev().collect::<String>();
    let fill = TABLES.map(|table| format!("INSERT INTO {table} TABLE backup_{table};")).concat();
    format!("BEGIN;{empty}{fill}COMMIT;")
}

/// Tokens that were handed out although they had been replaced before they were asked for.
fn dead_tokens(stage: &Stage) -> Vec<String> {
    let scm = &stage.scms[0];
    let replaced: HashMap<u64, i64> = scm
        .log()
        .into_iter()
        .filter(|event| event.rotated)
        .filter_map(|event| Some((event.pair?, event.ended_at_ms?)))
        .collect();
    let mut dead = Vec::new();
    for sent in stage.upstream.book().requests() {
        for answer in &sent.answers {
            let Answered::Granted(granted) = &answer.what else { continue };
            let Some(number) = scm.number_of(&granted.token) else { continue };
            let Some(at_ms) = replaced.get(&number) else { continue };
            if at_ms + UNDER_WAY_MS < sent.asked_at_ms {
                let late = sent.asked_at_ms - at_ms;
                dead.push(format!("{}: pair {number}, {late} ms after it was replaced", sent.ask.user));
            }
        }
    }
    dead
}
