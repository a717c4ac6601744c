//! The database away between the provider's answer and the store.

use anyhow::{Context, Result};
use tokenkeeper_testkit::{
    proxy::FaultProxy,
    scm::{Dialect, ScmOptions, SimulatedScm},
    servers::Servers,
    wait::{PATIENCE, eventually},
};
use tokio::time::sleep;

use super::{Play, SETTLED_AFTER, newest::Newest};
use crate::{
    report::Row,
    stage::{Host, Stage, User},
    standing::{Standing, Violence},
    truth::Findings,
};

/// In each round; each is one try.
const USERS: usize = 20;

const SETTINGS: [(&str, &str); 1] = [("TOKENKEEPER__WORKER__GRACE_PERIOD_SECS", "3")];

/// What happens while the database is away.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Meanwhile {
    Nothing,
    Stop,
    StopWithoutBroker,
}

impl Meanwhile {
    const ALL: [Self; 3] = [Self::Nothing, Self::Stop, Self::StopWithoutBroker];

    const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "database-back",
            Self::Stop => "database-stop",
            Self::StopWithoutBroker => "database-stop-nobroker",
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::Nothing => "it comes back",
            Self::Stop => "SIGTERM meanwhile",
            Self::StopWithoutBroker => "SIGTERM meanwhile, the broker away too",
        }
    }
}

/// The network between a worker and its servers.
struct Wires {
    database: FaultProxy,
    broker: FaultProxy,
}

pub(super) async fn play(play: Play<'_>) -> Result<Vec<Row>> {
    let Play { options, servers, folder, progress } = play;
    let rounds = options.rounds(10, 1);
    let mut rows = Vec::new();
    for meanwhile in Meanwhile::ALL {
        let scm = SimulatedScm::start(ScmOptions::new(Dialect::BitbucketServer)).await;
        let hosts = vec![Host { scm, overrides: "max_concurrent_refreshes = 32".into() }];
        let mut stage = Stage::open(servers, folder, meanwhile.name(), hosts, &SETTINGS).await?;
        let wires = lay_wires(servers, &mut stage).await;
        let mut newest = Newest::default();
        let mut ended_badly = 0;
        for round in 1..=rounds {
            progress
                .say(&format!("the database goes away, {}: round {round} of {rounds}", meanwhile.words()));
            let users = stage.log_in(USERS, false).await?;
            let ended_well =
                lose_the_database(&mut stage, &wires, &users, meanwhile, options.outage()).await?;
            ended_badly += usize::from(!ended_well);
            let mut worker = stage.start_worker().await?;
            stage.upstream.settle(SETTLED_AFTER).await;
            newest.look(&stage, &users).await;
            worker.stop().await?;
        }
        let mut last = stage.start_worker().await?;
        let findings = Findings::of(&stage).await?;
        let users = stage.users.clone();
        let standing = Standing::look(&stage, &users, &Violence::default()).await;
        last.stop().await?;
        let fault = format!("database away between answer and store; {}", meanwhile.words());
        let mut row = Row::new("database", fault, format!("{} tries", users.len()), &findings, &standing);
        newest.judge(&mut row);
        row.promise("every worker that is told to stop exits 0", ended_badly == 0);
        rows.push(row);
    }
    Ok(rows)
}

async fn lay_wires(servers: &Servers, stage: &mut Stage) -> Wires {
    let database = servers.postgres.url(&stage.database);
    let broker = servers.rabbitmq.url();
    let wires = Wires {
        database: FaultProxy::start_for_url(&database, 5432).await,
        broker: FaultProxy::start_for_url(&broker, 5672).await,
    };
    stage.set("DATABASE_URL", wires.database.url(&database));
    stage.set("AMQP_URL", wires.broker.url(&broker));
    let spool = stage.folder().join("spool");
    stage.set("TOKENKEEPER__WORKER__SPOOL_DIR", spool.to_string_lossy());
    wires
}

/// One round. Says whether the worker ended well.
async fn lose_the_database(
    stage: &mut Stage,
    wires: &Wires,
    users: &[User],
    meanwhile: Meanwhile,
    outage: std::time::Duration,
) -> Result<bool> {
    let mut worker = stage.start_worker().await?;
    let scm = stage.scms.first().context("there is one")?;
    let gate = scm.hold_refreshes();
    for user in users {
        stage.upstream.send(stage.ask(user, 60));
    }
    gate.wait_for_parked(users.len()).await;
    wires.database.refuse();
    wires.database.cut_all();
    gate.release();
    eventually("the provider to have acted for everybody", PATIENCE, async || {
        users.iter().all(|user| scm.refreshes(&user.name) == 1).then_some(())
    })
    .await;
    let ended = match meanwhile {
        Meanwhile::Nothing => {
            sleep(outage).await;
            wires.database.accept();
            stage.upstream.settle(SETTLED_AFTER).await;
            worker.stop().await?
        }
        Meanwhile::Stop => worker.stop().await?,
        Meanwhile::StopWithoutBroker => {
            wires.broker.refuse();
            wires.broker.cut_all();
            worker.stop().await?
        }
    };
    wires.database.accept();
    wires.broker.accept();
    Ok(ended.success())
}
