//! A cluster of three RabbitMQ nodes: the one that leads the queue of requests is killed, or frozen; leaders are moved; two of
//! three are away. Upstream is at the third node, which nothing happens to, so what is measured is the workers' own.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokenkeeper_testkit::program::Worker;
use tokenkeeper_testkit::scm::{Dialect, ScmOptions, SimulatedScm};
use tokenkeeper_testkit::servers::Cluster;
use tokio::time::{Instant, sleep, timeout};

use super::{Play, SETTLED_AFTER, load::Load};
use crate::{
    options::Options,
    report::Row,
    stage::{Host, Stage},
    standing::{Standing, Violence},
    truth::Findings,
};

const WORKERS: usize = 3;
const USERS: usize = 100;
/// Requests a second.
const RATE: u32 = 100;
/// Load before and after a fault.
const AROUND: Duration = Duration::from_secs(4);
/// The node where upstream is.
const SPARED: usize = 2;
/// How long a worker may take to say that a queue has no quorum, and that it has one again.
const TOLD_WITHIN: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    Killed,
    Frozen,
    Rebalanced,
    TwoAway,
}

impl Fault {
    const ALL: [Self; 4] = [Self::Killed, Self::Frozen, Self::Rebalanced, Self::TwoAway];

    const fn name(self) -> &'static str {
        match self {
            Self::Killed => "node-killed",
            Self::Frozen => "node-frozen",
            Self::Rebalanced => "node-rebalanced",
            Self::TwoAway => "node-two-away",
        }
    }

    fn words(self, options: &Options) -> String {
        match self {
            Self::Killed => "node of three that leads the requests killed, and started again".to_owned(),
            Self::Frozen => {
                format!("node of three that leads the requests frozen for {} s", frozen(options).as_secs())
            }
            Self::Rebalanced => "leaders of the queues moved to other nodes".to_owned(),
            Self::TwoAway => "two nodes of three killed, and started again".to_owned(),
        }
    }

    /// For how long nobody may be answered, in milliseconds. None: until the nodes are back.
    const fn gap_ms(self) -> Option<i64> {
        match self {
            Self::Killed | Self::Rebalanced => Some(2_000),
            Self::Frozen => Some(12_000),
            Self::TwoAway => None,
        }
    }

    /// The node that it happens to.
    const fn victim(self) -> usize {
        match self {
            Self::Killed | Self::Rebalanced | Self::TwoAway => 0,
            Self::Frozen => 1,
        }
    }
}

fn frozen(options: &Options) -> Duration {
    Duration::from_secs(options.scaled(40, 25))
}

pub(super) async fn play(play: Play<'_>) -> Result<Vec<Row>> {
    let Play { options, servers, folder, progress } = play;
    let folder = folder.join("cluster");
    std::fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
    progress.say("a cluster of three nodes starts");
    let mut cluster = Cluster::start(&folder, 3, "").await?;
    let load = Load::new(options).at(RATE);
    let mut rows = Vec::new();
    for fault in Fault::ALL {
        let words = fault.words(options);
        progress.say(&words);
        let scm = SimulatedScm::start(ScmOptions {
            token_lifetime: Duration::from_secs(30),
            ..ScmOptions::new(Dialect::BitbucketServer)
        })
        .await;
        let hosts = vec![Host { scm, overrides: "".into() }];
        let upstream = cluster.nodes[SPARED].url();
        let mut stage =
            Stage::open_at(&servers.postgres, &upstream, None, &folder, fault.name(), hosts, &[]).await?;
        let users = stage.log_in(USERS, true).await?;
        // Whoever declares a queue decides where it is led.
        stage.set("AMQP_URL", cluster.nodes[fault.victim()].url());
        stage.start_worker().await?.stop().await?;
        stage.set("AMQP_URL", cluster.url());
        let workers = start_apart(&mut stage, &cluster, fault).await?;
        let book = stage.upstream.book();
        let breaking = async {
            sleep(AROUND).await;
            let struck_ms = stage.now_ms();
            let told = strike(fault, &mut cluster, &workers, options).await?;
            sleep(AROUND).await;
            anyhow::Ok((struck_ms, told))
        };
        let (struck_ms, told) = progress.during(book, 0, load.until_done(&stage, &users, breaking)).await?;
        progress.during(book, 0, stage.upstream.settle(SETTLED_AFTER)).await;
        let gap_ms = longest_gap(&stage, struck_ms);
        let late = fault.gap_ms().map_or(0, |limit_ms| slower_than(&stage, struck_ms, limit_ms));
        let findings = Findings::of(&stage).await?;
        let everybody = stage.users.clone();
        let standing = Standing::look(&stage, &everybody, &Violence::default()).await;
        let ready = all_ready(&workers).await;
        drop(workers);
        let mut row = Row::new("broker-node", words, load.describe(everybody.len()), &findings, &standing);
        row.note(format!("{}: nobody was answered for {gap_ms} ms at most", fault.name()));
        if let Some(limit_ms) = fault.gap_ms() {
            row.promise(format!("somebody is answered within {limit_ms} ms"), gap_ms < limit_ms);
            row.note(format!("{}: {late} requests were answered later than that", fault.name()));
        }
        if let Some(told) = told {
            row.promise("/readyz says that a queue has no quorum, and 200 when it has one again", told);
        }
        row.promise("every worker is ready at the end", ready);
        rows.push(row);
    }
    Ok(rows)
}

/// Starts the workers, one of them at least at the node that the fault happens to.
async fn start_apart(stage: &mut Stage, cluster: &Cluster, fault: Fault) -> Result<Vec<Worker>> {
    for _ in 0..10 {
        let workers = stage.start_workers(WORKERS).await?;
        let victim = &cluster.nodes[fault.victim()];
        let at = format!("<{}.", victim.node());
        let connections = victim.list("connections", "pid").await?;
        // Nobody but workers connects there.
        if connections.iter().any(|connection| connection.trim_matches('\'').starts_with(&at)) {
            return Ok(workers);
        }
        for mut worker in workers {
            worker.stop().await?;
        }
    }
    anyhow::bail!("no worker chose the node")
}

/// Breaks something, and mends it. Where queues lose their quorum: whether the workers said so in time.
async fn strike(
    fault: Fault,
    cluster: &mut Cluster,
    workers: &[Worker],
    options: &Options,
) -> Result<Option<bool>> {
    let victim = fault.victim();
    match fault {
        Fault::Killed => {
            cluster.nodes[victim].kill()?;
            sleep(options.outage()).await;
            cluster.nodes[victim].begin().await?;
        }
        Fault::Frozen => {
            cluster.nodes[victim].freeze()?;
            sleep(frozen(options)).await;
            cluster.nodes[victim].thaw()?;
        }
        Fault::Rebalanced => {
            let before = cluster.nodes[victim].leaders().await?;
            cluster.nodes[victim].rebalance().await?;
            let after = cluster.nodes[victim].leaders().await?;
            ensure!(before != after, "no leader was moved");
        }
        Fault::TwoAway => {
            for node in [0, 1] {
                cluster.nodes[node].kill()?;
            }
            // One that cannot even subscribe any more says that instead.
            let told = until_any(workers, "has no quorum").await;
            let told = told && until_all(workers, |status, _| status == 503).await;
            let (first, rest) = cluster.nodes.split_at_mut(1);
            tokio::try_join!(first[0].begin(), rest[0].begin())?;
            let over = until_all(workers, |status, _| status == 200).await;
            return Ok(Some(told && over));
        }
    }
    Ok(None)
}

/// Waits until each worker's `/readyz` is so. False: not in time.
async fn until_all(workers: &[Worker], is_so: impl Fn(u16, &str) -> bool) -> bool {
    let until = Instant::now() + TOLD_WITHIN;
    for worker in workers {
        let looking = async {
            while !worker.get("readyz").await.is_ok_and(|(status, text)| is_so(status, &text)) {
                sleep(Duration::from_millis(200)).await;
            }
        };
        if timeout(until.saturating_duration_since(Instant::now()), looking).await.is_err() {
            return false;
        }
    }
    true
}

/// Waits until some worker's `/readyz` says so. False: not in time.
async fn until_any(workers: &[Worker], words: &str) -> bool {
    let until = Instant::now() + TOLD_WITHIN;
    while Instant::now() < until {
        for worker in workers {
            if worker.get("readyz").await.is_ok_and(|(_, text)| text.contains(words)) {
                return true;
            }
        }
        sleep(Duration::from_millis(200)).await;
    }
    false
}

async fn all_ready(workers: &[Worker]) -> bool {
    until_all(workers, |status, _| status == 200).await
}

/// The longest time between two answers, from the fault on, in milliseconds.
fn longest_gap(stage: &Stage, struck_ms: i64) -> i64 {
    let requests = stage.upstream.book().requests();
    let mut times: Vec<i64> =
        requests.iter().flat_map(|sent| &sent.answers).map(|answer| answer.at_ms).collect();
    // The load ends with the last request.
    let last_ms = requests.iter().map(|sent| sent.asked_at_ms).max().unwrap_or(struck_ms);
    times.retain(|at_ms| (struck_ms..=last_ms).contains(at_ms));
    times.extend([struck_ms, last_ms]);
    times.sort_unstable();
    times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
}

/// How many requests, from the fault on, waited longer than this.
fn slower_than(stage: &Stage, struck_ms: i64, limit_ms: i64) -> usize {
    let requests = stage.upstream.book().requests();
    let waited = |took_ms: Option<i64>| took_ms.is_none_or(|took_ms| took_ms > limit_ms);
    requests.iter().filter(|sent| sent.asked_at_ms >= struck_ms && waited(sent.took_ms())).count()
}
