//! `chaos`: tokenkeeper's promises, checked while everything it stands on is broken. scripts/chaos.sh builds what it
//! needs and starts it.
//!
//! Workers are the real program, the servers are real and belong to this run alone, the SCMs are simulated and keep
//! the record that the replies are held against ([`truth`]).

mod options;
mod progress;
mod report;
mod scenarios;
mod stage;
mod standing;
mod truth;
mod upstream;

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    panic::{self, AssertUnwindSafe},
    path::Path,
    process::{self, ExitCode},
};

use anyhow::{Context, Error, Result, anyhow};
use clap::Parser;
use futures_util::FutureExt;
use tempfile::TempDir;
use tokenkeeper_testkit::servers::Servers;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::{options::Options, progress::Progress, report::Report};

/// Where the tables go, below the folder that this runs in.
const RESULTS: &str = "target/chaos";

#[tokio::main]
async fn main() -> ExitCode {
    panic::set_hook(Box::new(|panic| {
        let said = panic.payload_as_str().unwrap_or("something went wrong");
        complain(said);
    }));
    match run(&Options::parse()).await {
        Ok(code) => code,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Result<ExitCode> {
    let mut interruptions = Interruptions::listen().context("listen for signals")?;
    let folder = TempDir::with_prefix("tokenkeeper-chaos-").context("make a temporary folder")?;
    // The servers run as other users, who must get through to their own folders.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    let mut report = Report::default();
    let mut playing = Box::pin(AssertUnwindSafe(play(options, folder.path(), &mut report)).catch_unwind());
    let ended = tokio::select! {
        ended = &mut playing => Ok(ended),
        signal = interruptions.next() => Err(signal),
    };
    tokio::spawn(async move { process::exit(i32::from(128 + interruptions.next().await)) });
    // What was started ends before its files go.
    drop(playing);
    if !report.is_empty() {
        report.write(Path::new(RESULTS))?;
        writeln!(io::stdout(), "\n{}\nAlso in {RESULTS}.", report.text())?;
    }
    match ended {
        Err(signal) => {
            complain("Interrupted. Everything that was started is gone.");
            Ok(ExitCode::from(128 + signal))
        }
        Ok(Ok(Ok(()))) if report.all_held() => {
            if options.keep {
                complain(&format!("The logs are kept in {}", folder.keep().display()));
            }
            Ok(ExitCode::SUCCESS)
        }
        Ok(Ok(Ok(()))) => Ok(failed(folder, None)),
        Ok(Ok(Err(error))) => Ok(failed(folder, Some(&error))),
        Ok(Err(_)) => {
            Ok(failed(folder, Some(&anyhow!("a scenario could not be played to its end, see above"))))
        }
    }
}

fn failed(folder: TempDir, error: Option<&Error>) -> ExitCode {
    if let Some(error) = error {
        complain(&format!("{error:#}"));
    }
    complain(&format!("FAILED. The logs of workers and servers are kept in {}", folder.keep().display()));
    ExitCode::FAILURE
}

async fn play(options: &Options, folder: &Path, report: &mut Report) -> Result<()> {
    let start = Progress::new("servers");
    start.say("a PostgreSQL and a RabbitMQ of our own start");
    let mut servers = Servers::start(folder).await?;
    start.say("they answer");
    drop(start);
    for scenario in options.chosen() {
        let progress = Progress::new(scenario.name());
        let mut rows = scenarios::play(scenario, options, &mut servers, folder, &progress).await?;
        for row in &mut rows {
            row.took(progress.elapsed());
        }
        progress.say("done");
        report.add(rows);
    }
    Ok(())
}

fn complain(text: &str) {
    // Where even this cannot be written, the exit code tells.
    let _ = writeln!(io::stderr(), "{text}");
}

/// The signals that end a program by request, or with its terminal.
struct Interruptions([(u8, Signal); 3]);

impl Interruptions {
    fn listen() -> io::Result<Self> {
        Ok(Self([
            (1, signal(SignalKind::hangup())?),
            (2, signal(SignalKind::interrupt())?),
            (15, signal(SignalKind::terminate())?),
        ]))
    }

    /// The number of the next one.
    async fn next(&mut self) -> u8 {
        let [(hangup, hangups), (interrupt, interrupts), (terminate, terminates)] = &mut self.0;
        tokio::select! {
            _ = hangups.recv() => *hangup,
            _ = interrupts.recv() => *interrupt,
            _ = terminates.recv() => *terminate,
        }
    }
}
