//! Everything at once: workers killed, broker, connections and database broken, a provider that fails, under load.

use std::time::Duration;

use anyhow::Result;
use tokenkeeper_testkit::{
    program::Worker,
    scm::{Dialect, Fault, ScmOptions, SimulatedScm},
    servers::Servers,
};

use super::{Play, SETTLED_AFTER, load::Load};
use crate::{
    options::Options,
    report::Row,
    stage::{Host, Stage},
    standing::{Standing, Violence},
    truth::Findings,
};

const WORKERS: usize = 3;

/// Short, so that tokens are refreshed all the time.
const TOKEN_LIFETIME: Duration = Duration::from_secs(30);

/// How many of a hundred provider calls fail.
const FAILING_PERCENT: u8 = 20;

/// What is done, one after the other, spread evenly over the load.
const FAULTS: [Blow; 14] = [
    Blow::CutConnections,
    Blow::Kill(0),
    Blow::RestartDatabase,
    Blow::Kill(1),
    Blow::CutConnections,
    Blow::Kill(2),
    Blow::RestartBroker,
    Blow::Kill(0),
    Blow::CutConnections,
    Blow::Kill(1),
    Blow::RestartDatabase,
    Blow::CutConnections,
    Blow::Kill(2),
    Blow::CutConnections,
];

#[derive(Clone, Copy)]
enum Blow {
    Kill(usize),
    CutConnections,
    RestartBroker,
    RestartDatabase,
}

impl Blow {
    fn name(self) -> String {
        match self {
            Self::Kill(worker) => format!("worker {} is killed and started again", worker + 1),
            Self::CutConnections => "the broker's connections are cut".to_owned(),
            Self::RestartBroker => "the broker is restarted".to_owned(),
            Self::RestartDatabase => "the database is restarted".to_owned(),
        }
    }
}

pub(super) async fn play(play: Play<'_>) -> Result<Vec<Row>> {
    let Play { options, servers, folder, progress } = play;
    let mut stage = Stage::open(servers, folder, "storm", hosts(options).await, &[]).await?;
    let users = stage.log_in(options.storm_users(), true).await?;
    let mut workers = stage.start_workers(WORKERS).await?;
    for (number, scm) in stage.scms.iter().enumerate() {
        let faults = if options.close_after {
            vec![Fault::Status(500), Fault::CloseBefore, Fault::CloseAfter, Fault::Unreadable]
        } else {
            vec![Fault::Status(500), Fault::CloseBefore]
        };
        scm.fail_now_and_then(FAILING_PERCENT, faults, options.seed + number as u64);
    }

    let total = options.storm_requests();
    let mut violence = Violence::default();
    let mut recoveries = Vec::new();
    let load = Load::new(options);
    let book = stage.upstream.book();
    let sending = load.send(&stage, &users, total);
    let striking = async {
        for (number, blow) in FAULTS.into_iter().enumerate() {
            let due = total * (number + 1) / (FAULTS.len() + 1);
            while book.counts().sent < due {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            progress.say(&blow.name());
            let began_ms = stage.now_ms();
            strike(blow, servers, &stage, &mut workers, number).await?;
            let back_ms = stage.now_ms();
            match blow {
                Blow::Kill(_) => violence.kills.push(began_ms),
                Blow::RestartDatabase => violence.database_away.push(began_ms..=back_ms),
                Blow::CutConnections | Blow::RestartBroker => {}
            }
            recoveries.push((blow, back_ms));
        }
        anyhow::Ok(())
    };
    let both = async {
        let ((), struck) = tokio::join!(sending, striking);
        struck
    };
    progress.during(book, total, Box::pin(both)).await?;
    progress.say("all is sent; the provider is well again");
    for scm in &stage.scms {
        scm.heal();
    }
    progress.during(book, total, stage.upstream.settle(SETTLED_AFTER)).await;

    let findings = Findings::of(&stage).await?;
    progress.say("every user is asked for once more");
    let standing = Standing::look(&stage, &users, &violence).await;
    let fault = format!(
        "{WORKERS} workers killed twice each, broker restarted, connections cut 5 times, database restarted \
         twice, {FAILING_PERCENT} % of provider calls fail{}",
        if options.close_after { " (some after acting)" } else { "" },
    );
    let load = format!("{} users on 2 hosts, {}/s", users.len(), load.rate);
    let mut row = Row::new("storm", fault, load, &findings, &standing);
    row.recovered_in(slowest_recovery(&stage, &recoveries));
    Ok(vec![row])
}

async fn hosts(options: &Options) -> Vec<Host> {
    let mut hosts = Vec::new();
    for (dialect, latency_ms) in [(Dialect::BitbucketServer, 5), (Dialect::GitHub, 20)] {
        let scm = SimulatedScm::start(ScmOptions {
            token_lifetime: if options.quick { TOKEN_LIFETIME / 2 } else { TOKEN_LIFETIME },
            latency: Duration::from_millis(latency_ms),
            ..ScmOptions::new(dialect)
        })
        .await;
        hosts.push(Host { scm, overrides: "".into() });
    }
    hosts
}

async fn strike(
    blow: Blow,
    servers: &mut Servers,
    stage: &Stage,
    workers: &mut [Worker],
    number: usize,
) -> Result<()> {
    match blow {
        Blow::Kill(worker) => {
            workers[worker].kill().await?;
            workers[worker] = stage.replace_worker(&format!("worker-{}-after-{number}", worker + 1)).await?;
            Ok(())
        }
        Blow::CutConnections => servers.rabbitmq.cut_connections().await,
        Blow::RestartBroker => servers.rabbitmq.restart().await,
        Blow::RestartDatabase => servers.postgres.restart().await,
    }
}

/// From "it is back" to the first answer, the slowest one after a fault of the broker or the database.
fn slowest_recovery(stage: &Stage, recoveries: &[(Blow, i64)]) -> Option<i64> {
    let requests = stage.upstream.book().requests();
    let answers: Vec<_> =
        requests.iter().flat_map(|sent| sent.answers.iter().map(|answer| answer.at_ms)).collect();
    let after =
        |back_ms: i64| answers.iter().filter(|at_ms| **at_ms >= back_ms).min().map(|at_ms| at_ms - back_ms);
    let broken = recoveries.iter().filter(|(blow, _)| !matches!(blow, Blow::Kill(_)));
    broken.filter_map(|(_, back_ms)| after(*back_ms)).max()
}
