//! `tokenkeeper-bench`: tokenkeeper beside a bare echo worker, under the same load. scripts/bench.sh builds what it needs
//! and starts it.
//!
//! Workers are processes of their own, servers are real; everything is measured from the outside ([`usage`]).

mod echo;
mod endpoint;
mod figures;
mod load;
mod options;
mod progress;
mod report;
mod rounds;
mod scenarios;
mod statements;
mod system;
mod usage;
mod world;

use std::{
    env,
    io::{self, Write},
    panic::{self, AssertUnwindSafe},
    path::Path,
    process::{ExitCode, Stdio},
};

use anyhow::{Context, Result};
use clap::Parser;
use futures_util::FutureExt;
use tempfile::TempDir;
use tokio::{
    process::Command,
    signal::unix::{SignalKind, signal},
};

use self::{
    options::{Helper, Options},
    progress::Progress,
    report::{Machine, Report},
    world::World,
};

/// Where the results go, below the folder that this runs in.
const RESULTS: &str = "target/bench";

#[tokio::main]
async fn main() -> ExitCode {
    panic::set_hook(Box::new(|panic| {
        let said = panic.payload_as_str().unwrap_or("something went wrong");
        complain(said);
    }));
    let mut options = Options::parse();
    let ended = match options.helper.take() {
        Some(Helper::Echo(arguments)) => echo::run(arguments).await.map(|()| ExitCode::SUCCESS),
        Some(Helper::Endpoint(arguments)) => endpoint::run(arguments).await.map(|()| ExitCode::SUCCESS),
        None => run(&options).await,
    };
    ended.unwrap_or_else(|error| {
        complain(&format!("{error:#}"));
        ExitCode::FAILURE
    })
}

async fn run(options: &Options) -> Result<ExitCode> {
    let folder = TempDir::with_prefix("tokenkeeper-bench-").context("make a temporary folder")?;
    let mut report = Report::new(Machine::look(options));
    let mut playing = Box::pin(AssertUnwindSafe(play(options, folder.path(), &mut report)).catch_unwind());
    let (mut interrupts, mut terminates) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let ended = tokio::select! {
        ended = &mut playing => Ok(ended),
        _ = interrupts.recv() => Err(130),
        _ = terminates.recv() => Err(143),
    };
    // What was started ends before its files go.
    drop(playing);
    match ended {
        Err(code) => {
            complain("Interrupted. Everything that was started is gone.");
            return Ok(ExitCode::from(code));
        }
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => report.failed(format!("{error:#}")),
        Ok(Err(_)) => report.failed("the run could not be made to its end, see above".to_owned()),
    }
    report.write(Path::new(RESULTS), options.json.as_deref())?;
    writeln!(io::stdout(), "\n{}\nAlso in {RESULTS}, with a plot.", report.text())?;
    if report.has_failures() {
        complain(&format!("FAILED. The logs of workers are kept in {}", folder.keep().display()));
        return Ok(ExitCode::FAILURE);
    }
    Ok(if options.judge && report.has_misses() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn play(options: &Options, folder: &Path, report: &mut Report) -> Result<()> {
    let world = World::open(options, folder, &Progress::new("setting up")).await?;
    report.run_on(&world.databases);
    for scenario in options.chosen() {
        let progress = Progress::new(scenario.name());
        match scenarios::play(scenario, &world, &progress).await {
            Ok(findings) => report.add(findings),
            Err(error) => {
                progress.step(&format!("FAILED: {error:#}"));
                report.failed(format!("{}: {error:#}", scenario.name()));
            }
        }
    }
    Ok(())
}

/// This program in a process of its own, as one of its helpers. Killed when it is dropped.
fn process_of_ours(helper: &str) -> Result<Command> {
    let mut command = Command::new(env::current_exe().context("find out where this program is")?);
    command.arg(helper).stdin(Stdio::null()).kill_on_drop(true);
    Ok(command)
}

fn complain(text: &str) {
    // Where even this cannot be written, the exit code tells.
    let _ = writeln!(io::stderr(), "{text}");
}
