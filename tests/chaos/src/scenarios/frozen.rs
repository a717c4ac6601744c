//! A worker frozen in the middle of a refresh, and thawed when another one has taken over.

use std::time::Duration;

use anyhow::Result;
use tokenkeeper_testkit::{
    program::Worker,
    proxy::FaultProxy,
    scm::{Dialect, ScmOptions, SimulatedScm, SpentRefreshToken},
    wait::eventually,
};
use tokio::time::{Instant, sleep_until};

use super::{Play, SETTLED_AFTER, newest::Newest};
use crate::{
    report::Row,
    stage::{Host, Stage, User},
    standing::{Standing, Violence},
    truth::Findings,
};

/// Frozen in each round; each is one try.
const USERS: usize = 5;
const LEASE: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(60);

const SETTINGS: [(&str, &str); 1] = [("TOKENKEEPER__REFRESH__LEASE_TTL_SECS", "3")];

/// When the frozen worker goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Thaw {
    /// After twice the lease, while the other worker may still be at it.
    AfterTwiceTheLease,
    /// When the other worker has answered everybody.
    AfterTheAnswers,
}

pub(super) async fn play(play: Play<'_>) -> Result<Vec<Row>> {
    let Play { options, servers, folder, progress } = play;
    let rounds = options.rounds(4, 1);
    let mut rows = Vec::new();
    for (name, spent, words) in [
        ("frozen-refuses", SpentRefreshToken::Refused, "refuses"),
        ("frozen-accepts", SpentRefreshToken::Accepted, "accepts"),
    ] {
        let scm = SimulatedScm::start(ScmOptions {
            spent_refresh_token: spent,
            ..ScmOptions::new(Dialect::BitbucketServer)
        })
        .await;
        let hosts = vec![Host { scm, overrides: "max_concurrent_refreshes = 8".into() }];
        let mut stage = Stage::open(servers, folder, name, hosts, &SETTINGS).await?;
        let broker = servers.rabbitmq.url();
        let wire = FaultProxy::start_for_url(&broker, 5672).await;
        let mut newest = Newest::default();
        let mut taken_over = 0;
        for round in 1..=rounds {
            let thaw = if round % 2 == 1 { Thaw::AfterTwiceTheLease } else { Thaw::AfterTheAnswers };
            progress.say(&format!("round {round} of {rounds}; the provider {words} the old refresh token"));
            let users = stage.log_in(USERS, false).await?;
            // The one that is frozen reaches the broker over a wire that can be cut.
            stage.set("AMQP_URL", wire.url(&broker));
            let first = stage.start_worker().await?;
            stage.set("AMQP_URL", broker.as_str());
            let mut second = freeze(&mut stage, first, &wire, &users, thaw).await?;
            newest.look(&stage, &users).await;
            second.stop().await?;
            let scm = &stage.scms[0];
            taken_over += users.iter().filter(|user| scm.refresh_requests(&user.name) > 1).count();
        }
        let mut last = stage.start_worker().await?;
        stage.upstream.settle(SETTLED_AFTER).await;
        let findings = Findings::of(&stage).await?;
        let users = stage.users.clone();
        let standing = Standing::look(&stage, &users, &Violence::default()).await;
        last.stop().await?;
        let fault =
            format!("worker frozen in a refresh for twice the lease; the provider {words} the old token");
        let load = format!("{} tries", users.len());
        let mut row = Row::new("frozen", fault, load, &findings, &standing);
        row.promise("the other worker took over in every try", taken_over == users.len());
        newest.judge(&mut row);
        rows.push(row);
    }
    Ok(rows)
}

/// One freeze. Gives back the worker that took over.
async fn freeze(
    stage: &mut Stage,
    mut first: Worker,
    wire: &FaultProxy,
    users: &[User],
    thaw: Thaw,
) -> Result<Worker> {
    let gate = stage.scms[0].hold_refreshes();
    for user in users {
        stage.upstream.send(stage.ask(user, 60));
    }
    gate.wait_for_parked(users.len()).await;
    first.signal("STOP").await?;
    let frozen = Instant::now();
    // As the broker does with a peer that is silent: it gives what that one had in hand to the other worker.
    wire.refuse();
    wire.cut_all();
    // The provider acts, and answers to somebody who does not listen.
    gate.release();
    let second = stage.start_worker().await?;
    let asked: Vec<_> = users.iter().map(|user| stage.upstream.send(stage.ask(user, 60))).collect();
    eventually("the second worker to refresh as well", PATIENCE, async || {
        let scm = &stage.scms[0];
        users.iter().all(|user| scm.refresh_requests(&user.name) > 1).then_some(())
    })
    .await;
    if thaw == Thaw::AfterTheAnswers {
        for id in asked {
            stage.upstream.answer(id, PATIENCE).await;
        }
    }
    sleep_until(frozen + 2 * LEASE).await;
    wire.accept();
    first.signal("CONT").await?;
    // It ends when what it has in hand is done.
    first.stop().await?;
    Ok(second)
}
