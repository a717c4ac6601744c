//! Somebody who may do nothing but publish requests, and means harm, beside somebody who means none.
//!
//! First the honest publisher alone, then the same load beside the hostile one. What is compared is the honest publisher's
//! latency, from the moment a request is to be sent until its reply is read.

mod admin;
mod attack;
mod crew;
mod direct_reply_to;
mod failing_users;
mod flood;
mod honest;
mod hosts;
mod judge;
mod long_reservation;
mod machine;
mod own_queues;
mod poison;
mod publisher;
mod refusing_queues;
mod servers;
mod slow_hosts;

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use tokenkeeper_testkit::servers::{Permissions, Servers};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

pub(crate) use self::attack::Attack;
use self::{
    attack::{Attacks, Target},
    crew::Crew,
    honest::Honest,
    hosts::Hosts,
    judge::{Phase, Phases, Verdict},
    machine::Cpu,
};
use super::{Play, SETTLED_AFTER};
use crate::{
    options::Options,
    report::Row,
    stage::Stage,
    standing::{Standing, Violence},
    truth::Findings,
    upstream::{Account, reply_queue},
};

/// The scenario, its database, and the prefix of its workers: the exchange of the contract has this name.
const NAME: &str = "hostile";

const HONEST: &str = "honest-publisher";

/// Load that does not count: pools fill, and connections are made.
const WARM_UP_SECS: u32 = 6;

/// When the memory of workers is looked at that is not to grow from then on.
const BASELINE: Duration = Duration::from_secs(60);

/// A request is answered within thirty seconds. What is not by now is lost, and no slow end of a bad run is waited for.
const SETTLE_WITHIN: Duration = Duration::from_secs(60);

/// How long a worker may take to say that it is ready when all is over.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// What an operator sets who has publishers that do not trust each other.
const LIMITS: [(&str, &str); 2] = [
    ("TOKENKEEPER__LIMITS__PUBLISHER_REQUESTS_PER_SECOND", "300"),
    ("TOKENKEEPER__REFRESH__IDENTITY_LIMIT_PER_MINUTE", "10"),
];

/// How many files a worker may open, itself being unable to change it: a limit that connections to its admin endpoint
/// could use up.
const OPEN_FILES: u32 = 512;

pub(super) async fn play(play: Play<'_>) -> Result<Vec<Row>> {
    let Play { options, servers, folder, progress } = play;
    let account = make_accounts(servers).await?;
    // The servers are needed for as long as the workers know them.
    let Hosts { blocks, servers: _servers } = Hosts::start().await?;
    let mut stage = Stage::open_by(servers, Some(&account), folder, NAME, blocks, &LIMITS).await?;
    stage.limit_open_files(OPEN_FILES);
    let mut honest = Honest::log_in(&mut stage, options).await?;
    let mut crew = Crew::start(&mut stage, &servers.rabbitmq.url()).await?;
    let book = stage.upstream.book();
    progress.say("the honest publisher warms up");
    progress.during(book, 0, honest.send(&stage, WARM_UP_SECS)).await;

    progress.say("the honest publisher alone");
    let (began, cpu) = (stage.now_ms(), Cpu::now());
    progress.during(book, 0, honest.send(&stage, calm_secs(options))).await;
    let calm = Phase { ms: began..stage.now_ms(), busy_percent: cpu.busy_percent() };
    stage.upstream.settle(SETTLED_AFTER).await;

    let attacks = options.attacks();
    progress.say(&format!("the hostile publisher begins: {}", names(&attacks)));
    let target = Arc::new(Target {
        prefix: NAME.to_owned(),
        scms: stage.scms.clone(),
        victims: honest.victims(),
        admin: crew.admin(),
        scaled_down: options.quick,
    });
    let url = servers.rabbitmq.url_of(publisher::NAME);
    let (began, cpu) = (stage.now_ms(), Cpu::now());
    let mut attacks = Attacks::begin(&attacks, &url, &target).await?;
    let (stop, stopped) = oneshot::channel();
    let beside = async {
        let secs = attacked_secs(options);
        let failed = tokio::select! {
            () = honest.send(&stage, secs) => None,
            // Whoever is not answered sends less, and would take for ever.
            () = sleep(Duration::from_secs(secs.into())) => None,
            failed = attacks.failed() => Some(failed),
        };
        // Whoever is to be told has ended by itself, with an error that is told.
        let _ = stop.send(());
        failed
    };
    let baseline = BASELINE.min(Duration::from_secs(attacked_secs(options).into()) / 3);
    let both = async { tokio::join!(beside, crew.suffer(&stage, baseline, stopped)) };
    let (failed, suffered) = progress.during(book, 0, Box::pin(both)).await;
    let beside = Phase { ms: began..stage.now_ms(), busy_percent: cpu.busy_percent() };
    if let Some(error) = failed {
        bail!("an attack came to an end, so it shows nothing: {error:#}");
    }
    let sent = attacks.end();
    let suffered = suffered.context("kill and start a worker")?;
    progress.say("the hostile publisher has gone");
    let ready = crew.is_ready(READY_WITHIN).await;
    let settling = timeout(SETTLE_WITHIN, stage.upstream.settle(SETTLED_AFTER));
    // What is missing then is told with everything else.
    let _ = progress.during(book, 0, settling).await;
    let memory = crew.memory(&suffered);

    progress.say("victims are refreshed once more, honest users asked for");
    let findings = Findings::of(&stage).await?;
    let victims = progress.during(book, 0, judge::refresh_once_more(&stage, &target.victims)).await;
    let violence = Violence { kills: suffered.kills.clone(), ..Violence::default() };
    let asked: Vec<_> = honest.users().iter().step_by(options.scaled(1, 4)).cloned().collect();
    let standing = progress.during(book, 0, Standing::look(&stage, &asked, &violence)).await;
    let fault =
        format!("a hostile publisher for {} s: {}", attacked_secs(options), names(&options.attacks()));
    let load = format!("{} honest users, {}/s", honest.users().len(), honest.rate());
    let mut row = Row::new(NAME, fault, load, &findings, &standing);
    let phases = Phases { calm, beside };
    Verdict { stage: &stage, findings: &findings, phases, ready, memory, victims, sent, suffered }
        .note(&mut row);
    Ok(vec![row])
}

/// Two publishers: neither may do more than publish to the contract's exchange, and have queues for replies.
async fn make_accounts(servers: &Servers) -> Result<Account> {
    let exchange = format!("^{NAME}$");
    let replies = format!("^{}$", reply_queue(NAME).replace('.', r"\."));
    let may = Permissions { configure: replies.clone(), write: exchange.clone(), read: replies };
    servers.rabbitmq.add_account(HONEST, &may).await?;
    let own = format!(r"^{}\.", publisher::NAME);
    // Reading its own queues, it may let them dead-letter into whatever it may write to.
    let may = Permissions { configure: own.clone(), write: exchange, read: own };
    servers.rabbitmq.add_account(publisher::NAME, &may).await?;
    Ok(Account { name: HONEST, url: servers.rabbitmq.url_of(HONEST) })
}

fn calm_secs(options: &Options) -> u32 {
    options.scaled(60, 15)
}

fn attacked_secs(options: &Options) -> u32 {
    options.minutes.map_or_else(|| options.scaled(300, 45), |minutes| minutes * 60)
}

fn names(attacks: &[Attack]) -> String {
    attacks.iter().map(|attack| attack.name()).collect::<Vec<_>>().join(", ")
}

/// Waits until something is so, for as long as `patience` lasts.
async fn becomes_true(patience: Duration, mut condition: impl AsyncFnMut() -> bool) -> bool {
    let waiting = async {
        while !condition().await {
            sleep(Duration::from_millis(200)).await;
        }
    };
    timeout(patience, waiting).await.is_ok()
}
