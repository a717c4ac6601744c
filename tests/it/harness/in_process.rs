//! A worker that runs inside the test process.

use std::path::PathBuf;

use tokenkeeper::app::admin::Health;
use tokenkeeper::app::lifecycle::Stop;
use tokenkeeper::worker::Worker;
use tokenkeeper_testkit::wait::{PATIENCE, eventually};

use super::evidence::Evidence;
use super::logs;

/// A worker inside the test process.
#[derive(Debug)]
pub(crate) struct InProcessWorker {
    worker: Option<Worker>,
    pub(crate) stop: Stop,
    evidence: Evidence,
    /// What it writes by its settings.
    files: Vec<PathBuf>,
}

impl InProcessWorker {
    pub(super) fn new(worker: Worker, stop: Stop, evidence: Evidence, files: Vec<PathBuf>) -> Self {
        Self { worker: Some(worker), stop, evidence, files }
    }

    /// What its `/readyz` knows.
    pub(crate) fn health(&self) -> &Health {
        self.worker.as_ref().expect("it runs").health()
    }

    /// Waits until it does its job.
    pub(crate) async fn wait_until_ready(&self) {
        eventually("the worker to be ready", PATIENCE, async || {
            self.health().problems().is_empty().then_some(())
        })
        .await;
    }

    /// Stops it softly and waits until it is done.
    pub(crate) async fn stop(mut self) {
        self.stop.soft.cancel();
        let worker = self.worker.take().expect("a worker is stopped once");
        let Ok(stopped) = tokio::time::timeout(PATIENCE, worker.join()).await else {
            let log = logs::captured();
            let last: Vec<&str> = log.lines().rev().take(40).collect();
            panic!("the worker does not stop; the log, newest first:\n{}", last.join("\n"));
        };
        stopped.expect("the worker stops cleanly");
    }
}

impl Drop for InProcessWorker {
    /// A test that ends without stopping its worker leaves nothing running.
    fn drop(&mut self) {
        self.stop.soft.cancel();
        self.stop.hard.cancel();
        self.files.iter().for_each(|file| self.evidence.add_files(file));
    }
}
