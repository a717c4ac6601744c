//! What an operator sees at the end.

use anyhow::Result;
use tokenkeeper_testkit::program::Worker;

use crate::{
    counters::{Counters, table},
    narrator::{Actor, Narrator},
    stage::{Stage, holds},
};

const REQUESTS: &str = "gitpod_scm_token_refresh_requests_total";
const REFRESHES: &str = "gitpod_scm_token_refresh_latency_seconds_count";
const MESSAGES: &str = "tokenkeeper_messages_total";
const RETRIES: &str = "tokenkeeper_refresh_retries_total";

pub(super) async fn what_was_counted(say: &mut Narrator, stage: &Stage) -> Result<()> {
    say.scene(
        "The counters",
        "From /metrics of both workers; the label `host`, the SCM's everywhere, is left out.",
    )?;
    // A reply is out a moment before its message is acked and counted.
    stage.wait_until(|in_hand| in_hand == [0, 0]).await?;
    let workers = stage.counters().await?;
    let (rows, at_zero) = table(&workers)?;
    say.line("")?;
    for row in rows {
        say.line(&row)?;
    }
    say.paragraph(&format!("zero on both: {}\n", at_zero.join(", ")))?;
    compare(say, stage, &workers).await
}

/// Compares the counters with what the replies say and with what the SCM did.
async fn compare(say: &mut Narrator, stage: &Stage, [one, two]: &[Counters; 2]) -> Result<()> {
    let sum = |name, labels: &[&str]| anyhow::Ok(one.sum(name, labels)? + two.sum(name, labels)?);
    let requests = |result: &str, opportunistic: &str| {
        sum(
            REQUESTS,
            &[&format!("result=\"{result}\""), &format!("opportunisticRefresh=\"{opportunistic}\"")],
        )
    };
    let granted = |refresh| stage.granted.get(refresh).copied().unwrap_or_default();
    let replied = ["opportunistic", "required", "reserved"].map(granted);
    let counted =
        [requests("success", "true")?, requests("success", "false")?, requests("still_valid", "reserved")?];
    let total: usize = stage.granted.values().sum();
    let [opportunistic, required, reserved] = counted;
    say.claim(
        Actor::Tokenkeeper,
        counted == replied && sum(REQUESTS, &[])? == total,
        &format!(
            "{total} handed out = {opportunistic} opportunistic + {required} required + {reserved} reserved, as replied"
        ),
        &(counted, replied, total),
    )?;
    let refreshes = (sum(REFRESHES, &[])?, sum(RETRIES, &[])?);
    let rotated = stage.scm.log().iter().filter(|event| event.rotated).count();
    say.claim(
        Actor::Tokenkeeper,
        refreshes == (rotated, 2),
        &format!("{rotated} refreshes after 2 retries, as the SCM says"),
        &(refreshes, rotated),
    )?;
    let (messages, answered) = (sum(MESSAGES, &[])?, sum(MESSAGES, &["outcome=\"ok\""])?);
    let dead = stage.broker.queue_depth("dead-letters").await;
    say.claim(
        Actor::Tokenkeeper,
        messages == answered && dead == 0,
        &format!("{messages} messages, each answered ok; none lies in the dead letters"),
        &(messages, answered, dead),
    )
}

pub(super) async fn the_end(say: &mut Narrator, mut stage: Stage) -> Result<()> {
    say.scene("The end", "The workers are asked to stop. What they leave behind is searched for secrets.")?;
    let [one, two] = &mut stage.workers;
    let ended = tokio::try_join!(one.stop(), two.stop())?;
    say.claim(
        Actor::Operator,
        ended.0.success() && ended.1.success(),
        "$ kill -TERM …                                both workers exit 0",
        &ended,
    )?;
    let log = stage.workers.iter().map(Worker::log).collect::<Result<String>>()?;
    let (secrets, database) = (stage.secrets(), stage.database()?);
    let found = secrets.iter().filter(|secret| log.contains(*secret) || holds(&database, secret)).count();
    say.claim(
        Actor::Operator,
        found == 0 && log.contains("token refreshed"),
        &format!(
            "{} log lines and the database hold none of the {} secrets (tokens, keys)",
            log.lines().count(),
            secrets.len(),
        ),
        &found,
    )
}
