//! What is measured: the echo worker, and tokenkeeper on one of its databases. Each has queues of its own.

mod install;
mod seed;

use std::{
    fs,
    marker::PhantomData,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use tokenkeeper_testkit::{database::Kind, program::Worker, queues::TestBroker};
use tokio::process::Child;

pub(crate) use self::install::{
    BITBUCKETS, Crowd, GITHUB, Install, REFRESHING, REPLY_BYTES, STALLING, UNKNOWN,
};
use crate::{
    load::{Generator, Load, Requester},
    process_of_ours,
    statements::Statements,
};

/// A worker of some kind, and what it stands on.
pub(crate) struct System {
    /// As the table names it.
    pub(crate) name: String,
    broker: TestBroker,
    kind: SystemKind,
}

enum SystemKind {
    Echo { grouped: bool },
    Tokenkeeper(Box<Install>),
}

impl System {
    /// The echo worker, with an ack a message or acks in groups.
    pub(crate) async fn echo(grouped: bool) -> Self {
        let name = if grouped { "echo, grouped acks" } else { "echo" };
        Self {
            name: name.to_owned(),
            broker: TestBroker::connect().await,
            kind: SystemKind::Echo { grouped },
        }
    }

    /// tokenkeeper on a database of its own.
    pub(crate) fn tokenkeeper(name: String, broker: TestBroker, install: Install) -> Self {
        Self { name, broker, kind: SystemKind::Tokenkeeper(Box::new(install)) }
    }

    /// What stands behind a tokenkeeper; none for echo.
    pub(crate) fn install(&self) -> Option<&Install> {
        match &self.kind {
            SystemKind::Echo { .. } => None,
            SystemKind::Tokenkeeper(install) => Some(install),
        }
    }

    /// The database it is on, where it is tokenkeeper itself, and not another version of it. That is what is judged.
    pub(crate) fn judged_on(&self) -> Option<Kind> {
        self.install().filter(|install| install.version.is_none()).map(|install| install.kind)
    }

    /// Starts so many workers, and waits until they are ready.
    pub(crate) async fn start(&self, workers: usize) -> Result<Running<'_>> {
        let mut processes = Vec::new();
        for number in 1..=workers {
            processes.push(match &self.kind {
                SystemKind::Echo { grouped } => Process::Echo(self.start_echo(*grouped)?),
                SystemKind::Tokenkeeper(install) => {
                    Process::Worker(install.program.start_worker(&format!("worker-{number}")).await?)
                }
            });
        }
        self.broker.wait_for_consumer("token-requests").await;
        let statements = match self.install() {
            Some(install) => Some(Statements::of(install.kind, install.database.url()).await?),
            None => None,
        };
        Ok(Running { processes, statements, _system: PhantomData })
    }

    /// Connects a load generator to it, whose first request has this number.
    pub(crate) async fn generator(&self, first: usize) -> Result<Generator> {
        Generator::connect(self.broker.url(), self.broker.prefix(), first).await
    }

    /// Connects a load to it, whose first request has this number.
    pub(crate) async fn load(&self, requester: Requester, first: usize) -> Result<Load> {
        Load::connect(requester, self.broker.url(), self.broker.prefix(), first).await
    }

    fn start_echo(&self, grouped: bool) -> Result<Child> {
        let mut command = process_of_ours("echo")?;
        command.args(["--url", self.broker.url(), "--prefix", self.broker.prefix()]);
        command.args(["--reply-bytes", &REPLY_BYTES.to_string()]);
        if grouped {
            command.arg("--grouped");
        }
        command.spawn().context("start an echo worker")
    }
}

/// A system whose workers run. They are killed when this is dropped.
pub(crate) struct Running<'a> {
    processes: Vec<Process>,
    statements: Option<Statements>,
    /// It ends before its queues and its database do.
    _system: PhantomData<&'a System>,
}

enum Process {
    Echo(Child),
    Worker(Worker),
}

impl Running<'_> {
    /// The workers' process ids.
    pub(crate) fn ids(&self) -> Result<Vec<u32>> {
        let id = |process: &Process| match process {
            Process::Echo(child) => child.id().context("the echo worker has ended by itself"),
            Process::Worker(worker) => worker.id(),
        };
        self.processes.iter().map(id).collect()
    }

    /// How many statements its database was asked to run; none where nobody counts.
    pub(crate) async fn statements(&self) -> Result<Option<u64>> {
        let workers: Vec<&Worker> = self.processes.iter().filter_map(Process::worker).collect();
        match &self.statements {
            Some(statements) => statements.count(&workers).await,
            None => Ok(None),
        }
    }

    /// Whether the number of statements is up to date only once this has stopped.
    pub(crate) fn counts_late(&self) -> bool {
        self.statements.as_ref().is_some_and(Statements::is_late)
    }

    /// Stops all workers, and tells the number of statements then, where it is told late.
    pub(crate) async fn stop(mut self) -> Result<Option<u64>> {
        for process in &mut self.processes {
            match process {
                Process::Echo(child) => child.kill().await.context("end an echo worker")?,
                Process::Worker(worker) => drop(worker.stop().await?),
            }
        }
        match &self.statements {
            Some(statements) if statements.is_late() => {
                statements.settle().await;
                statements.count(&[]).await
            }
            Some(_) | None => Ok(None),
        }
    }
}

impl Process {
    fn worker(&self) -> Option<&Worker> {
        match self {
            Self::Echo(_) => None,
            Self::Worker(worker) => Some(worker),
        }
    }
}

/// A folder for what a system writes.
fn folder_of(folder: &Path, name: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
    Ok(path)
}
