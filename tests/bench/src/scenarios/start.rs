//! From the start of the process to `/readyz`, and how big the program is.

use std::{fs, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail};
use tokenkeeper_testkit::{database::Kind, http, wait::PATIENCE};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    endpoint::free_port,
    figures::{float, median},
    progress::Progress,
    report::{Findings, Verdict},
    system::Install,
    world::World,
};

/// How often it is asked whether it is ready.
const ASKED_EVERY: Duration = Duration::from_millis(2);

/// Until ready, in milliseconds.
const AT_MOST_MS: f64 = 300.0;

/// The size of the program, in MiB.
const AT_MOST_MIB: f64 = 25.0;

pub(super) async fn play(world: &World<'_>, progress: &Progress) -> Result<Findings> {
    let mut findings = Findings::default();
    for system in &world.tokenkeepers {
        let install = system.install().context("tokenkeeper")?;
        let mut times = Vec::new();
        for _ in 0..world.options.scaled(11, 1) {
            times.push(start(install).await?.as_secs_f64() * 1000.0);
        }
        let ms = median(times).context("it was started")?;
        let line = format!("start: {}, ready after {ms:.0} ms (database migrated)", system.name);
        progress.step(&line);
        if system.judged_on() == Some(Kind::Postgres) {
            let what = "start to ready, PostgreSQL, migrated";
            let target = format!("at most {AT_MOST_MS:.0} ms");
            findings.verdicts.push(Verdict::new(what, format!("{ms:.0} ms"), target, ms <= AT_MOST_MS));
            findings.verdicts.push(judge_size(install)?);
        } else {
            findings.notes.push(line);
        }
    }
    Ok(findings)
}

/// How long it takes; the worker is killed then.
async fn start(install: &Install) -> Result<Duration> {
    let address = format!("127.0.0.1:{}", free_port()?);
    let client = http::client();
    let mut command = install.program.command();
    command.arg("worker").env("TOKENKEEPER__ADMIN__LISTEN", &address);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let began = Instant::now();
    let mut worker = command.spawn().context("start a worker")?;
    let ready = async {
        let url = format!("http://{address}/readyz");
        while !client.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
            sleep(ASKED_EVERY).await;
        }
        began.elapsed()
    };
    let Ok(took) = timeout(PATIENCE, ready).await else { bail!("a worker is not ready within {PATIENCE:?}") };
    worker.kill().await.context("end a worker")?;
    Ok(took)
}

fn judge_size(install: &Install) -> Result<Verdict> {
    let path = install.program.path();
    let bytes = fs::metadata(path).with_context(|| format!("look at {}", path.display()))?.len();
    let mib = float(bytes) / 1024.0 / 1024.0;
    let (value, target) = (format!("{mib:.1} MiB"), format!("at most {AT_MOST_MIB:.0} MiB"));
    Ok(Verdict::new("size of the program", value, target, mib <= AT_MOST_MIB))
}
