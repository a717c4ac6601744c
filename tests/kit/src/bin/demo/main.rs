//! `demo`: tokenkeeper's story, told by running it. scripts/demo.sh builds what it needs and starts it.

mod counters;
mod grant;
mod narrator;
mod scenes;
mod stage;

use std::{
    io::{self, Write},
    panic::{self, AssertUnwindSafe},
    process::{self, ExitCode},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Error, Result};
use futures_util::FutureExt;
use tempfile::TempDir;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};

/// How much later than the programs of the story this one may learn of a signal to all of them.
const SIGNAL_DELAY: Duration = Duration::from_millis(100);

#[tokio::main]
async fn main() -> ExitCode {
    panic::set_hook(Box::new(|panic| {
        let said = panic.payload_as_str().unwrap_or("something went wrong");
        panics().push(said.to_owned());
    }));
    match run().await {
        Ok(code) => code,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<ExitCode> {
    let mut interruptions = Interruptions::listen().context("listen for signals")?;
    let folder = TempDir::with_prefix("tokenkeeper-demo-").context("make a temporary folder")?;
    let mut story = Box::pin(AssertUnwindSafe(scenes::tell(folder.path().to_owned())).catch_unwind());
    let ended = tokio::select! {
        ended = &mut story => Ended::ByItself(ended),
        signal = interruptions.next() => Ended::Interrupted(signal),
    };
    let ended = match ended {
        // Ctrl-C reaches the programs of the story as well, and their end may be noticed first.
        Ended::ByItself(Ok(Err(_)) | Err(_)) => match timeout(SIGNAL_DELAY, interruptions.next()).await {
            Ok(signal) => Ended::Interrupted(signal),
            Err(_) => ended,
        },
        ended => ended,
    };
    tokio::spawn(async move { process::exit(i32::from(128 + interruptions.next().await)) });
    // What the story started ends before its files go.
    drop(story);
    Ok(judge(ended, folder))
}

/// How the story came to its end.
enum Ended {
    ByItself(thread::Result<Result<()>>),
    /// By the signal with this number.
    Interrupted(u8),
}

fn judge(ended: Ended, folder: TempDir) -> ExitCode {
    let error = match ended {
        Ended::ByItself(Ok(Ok(()))) => return ExitCode::SUCCESS,
        Ended::Interrupted(signal) => {
            drop(folder);
            complain("\nInterrupted. Everything that was started is gone.");
            return ExitCode::from(128 + signal);
        }
        // Whoever read along has left.
        Ended::ByItself(Ok(Err(error))) if is_broken_pipe(&error) => return ExitCode::FAILURE,
        Ended::ByItself(Ok(Err(error))) => Some(format!("{error:#}")),
        Ended::ByItself(Err(_)) => None,
    };
    let reasons: Vec<_> = panics().drain(..).chain(error).collect();
    complain(&format!(
        "\n{}\n\nThe demo FAILED. The workers' logs and their database are kept in {}",
        reasons.join("\n"),
        folder.keep().display()
    ));
    ExitCode::FAILURE
}

/// What panics said. The kit panics where something is not as it has to be.
fn panics() -> MutexGuard<'static, Vec<String>> {
    static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());
    PANICS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_broken_pipe(error: &Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
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
