//! A database that goes on answering and takes no writes, under load: demoted where it is, an address that leads to a standby, a
//! Galera node without its cluster.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use tokenkeeper_testkit::proxy::FaultProxy;
use tokenkeeper_testkit::scm::{Dialect, ScmOptions, SimulatedScm};
use tokenkeeper_testkit::servers::{MariaDb, Postgres};
use tokio::time::{Instant, sleep};

use super::database_away::{AROUND, RECOVERY, readiness};
use super::{Play, SETTLED_AFTER, load::Load};
use crate::{
    report::Row,
    stage::{Host, Stage},
    standing::{Standing, Violence},
    truth::Findings,
    upstream::Answered,
};

const WORKERS: usize = 2;
const USERS: usize = 150;
/// Of all workers together. A line for each request would be a hundred times as much.
const LOG_AT_MOST: u64 = 256 * 1024;
/// Where Debian's package galera-4 has it.
const GALERA: &str = "/usr/lib/galera/libgalera_smm.so";
const PASSWORD: &str = "chaos";

/// What keeps the database from taking writes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    ReadOnly,
    Standby,
    Galera,
}

impl Fault {
    const fn name(self) -> &'static str {
        match self {
            Self::ReadOnly => "readonly",
            Self::Standby => "standby",
            Self::Galera => "galera",
        }
    }

    fn words(self, outage: Duration) -> String {
        let secs = outage.as_secs();
        match self {
            Self::ReadOnly => format!("database read-only at the same address for {secs} s"),
            Self::Standby => format!("the database's address leads to a standby for {secs} s"),
            Self::Galera => format!("the only node of a Galera cluster takes no queries (1047) for {secs} s"),
        }
    }
}

/// The servers of the scenario's own.
enum Own {
    None,
    Standby { server: Postgres, address: FaultProxy },
    Galera(MariaDb),
}

pub(super) async fn play(play: Play<'_>, fault: Fault) -> Result<Vec<Row>> {
    let Play { options, servers, folder, progress } = play;
    let name = fault.name();
    let galera = Path::new(GALERA);
    if fault == Fault::Galera && !(MariaDb::is_installed() && galera.is_file()) {
        progress.say("SKIPPED: no Galera here (Debian: apt-get install mariadb-server galera-4)");
        return Ok(Vec::new());
    }
    let scm = SimulatedScm::start(ScmOptions {
        token_lifetime: Duration::from_secs(30),
        ..ScmOptions::new(Dialect::BitbucketServer)
    })
    .await;
    let hosts = vec![Host { scm, overrides: "".into() }];
    let (mut stage, own) = match fault {
        Fault::ReadOnly => (Stage::open(servers, folder, name, hosts, &[]).await?, Own::None),
        Fault::Standby => {
            let mut stage = Stage::open(servers, folder, name, hosts, &[]).await?;
            let server = servers.postgres.start_standby(stage.folder()).await?;
            let address = FaultProxy::start(&servers.postgres.address()).await;
            stage.set("DATABASE_URL", address.url(&servers.postgres.url(&stage.database)));
            (stage, Own::Standby { server, address })
        }
        Fault::Galera => {
            let server = MariaDb::start_galera(folder, galera).await?;
            server.add_plain_user("tk", PASSWORD, "tk").await?;
            let url = format!("mysql://tk:{PASSWORD}@{}/tk", server.address("127.0.0.1"));
            (Stage::open_on(servers, &url, folder, name, hosts).await?, Own::Galera(server))
        }
    };
    let users = stage.log_in(USERS, true).await?;
    let workers = stage.start_workers(WORKERS).await?;
    let load = Load::new(options);
    let outage = options.outage();
    let primary = &servers.postgres;
    let breaking = async {
        sleep(AROUND).await;
        progress.say("the database takes no writes");
        match &own {
            Own::None => primary.set_read_only(true).await?,
            Own::Standby { server, address } => {
                address.lead_to(&server.address());
                address.cut_all();
            }
            Own::Galera(server) => drop(server.query("set global wsrep_reject_queries = all").await?),
        }
        let away = Instant::now();
        let told = readiness(&workers, 503, outage).await;
        let told_why = told.as_ref().is_some_and(|texts| texts.iter().all(|text| text.contains("database:")));
        let told_after = away.elapsed();
        sleep(outage.saturating_sub(away.elapsed())).await;
        progress.say("it takes writes again");
        match &own {
            Own::None => primary.set_read_only(false).await?,
            Own::Standby { address, .. } => address.lead_to(&primary.address()),
            Own::Galera(server) => drop(server.query("set global wsrep_reject_queries = none").await?),
        }
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
    let mut row = Row::new(name, fault.words(outage), load.describe(users.len()), &findings, &standing);
    let answers = book.requests();
    let after = answers.iter().flat_map(|sent| &sent.answers).map(|answer| answer.at_ms - back_ms);
    row.recovered_in(after.filter(|ms| *ms >= 0).min());
    row.promise("/readyz says 503 and names the database", told_why);
    row.promise("/readyz says 200 within 10 s of its return", ready);
    row.promise("nothing is in the dead letters", findings.dead_lettered == 0);
    row.promise("nothing is answered `internal`", !findings.errors.contains_key("internal"));
    // Later a host may be slow in truth: all that waited comes at once, and it takes two refreshes at a time.
    let is_blamed = |code: &str| matches!(code, "provider_unavailable" | "refresh_timeout");
    let meanwhile = answers.iter().flat_map(|sent| &sent.answers).filter(|answer| answer.at_ms < back_ms);
    let blamed =
        meanwhile.filter(|answer| matches!(&answer.what, Answered::Failed(it) if is_blamed(&it.code)));
    row.promise("no host is blamed meanwhile", blamed.count() == 0);
    let logged =
        workers.iter().map(|worker| worker.log().map_or(0, |log| log_of_the_worker(&log))).sum::<u64>();
    row.promise("the logs say it once", logged < LOG_AT_MOST);
    if let Own::Standby { server, .. } = &own {
        let question = format!("select count(*) from pg_stat_activity where datname = '{}'", stage.database);
        row.promise(
            "no connection to the standby is kept",
            server.query("postgres", &question).await? == "0",
        );
    }
    row.note(format!(
        "/readyz said 503 on all workers after {:.1} s; {} kB of warnings and errors in their logs",
        told_after.as_secs_f32(),
        logged / 1024
    ));
    Ok(vec![row])
}

/// How much of a log is of warnings and errors. What it says of each refresh belongs there with any database.
fn log_of_the_worker(log: &str) -> u64 {
    let alarming = |line: &&str| line.contains(r#""level":"WARN""#) || line.contains(r#""level":"ERROR""#);
    log.lines().filter(alarming).map(|line| line.len() as u64).sum()
}
