//! The real binary as a child process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use tempfile::TempDir;
use tokenkeeper_testkit::program::{Program, Worker};
use tokenkeeper_testkit::wait::{PATIENCE, eventually};
use tokio::process::Command;
use tokio::time::timeout;

use super::evidence::{Evidence, Place};
use super::json_lines::assert_json_lines;
use super::links::Link;
use super::logs::assert_holds_none_of;
use super::world::World;

/// How long to wait for the metrics of a worker that may be frozen.
const METRICS_PATIENCE: Duration = Duration::from_secs(2);

/// The real binary with this environment and nothing else.
pub(crate) fn program(
    folder: &Path,
    environment: impl IntoIterator<Item = (impl Into<String>, impl Into<String>)>,
) -> Program {
    let mut program = Program::at(env!("CARGO_BIN_EXE_tokenkeeper").into(), folder);
    environment.into_iter().for_each(|(variable, value)| program.set(variable, value));
    program
}

/// A worker process. Killed when it is dropped.
pub(crate) struct WorkerProcess {
    worker: Worker,
    folder: TempDir,
    evidence: Evidence,
    /// What it writes by its settings.
    files: Vec<PathBuf>,
}

impl WorkerProcess {
    /// Starts it in this world and waits until it is ready.
    pub(crate) async fn spawn(world: &World) -> Self {
        Self::spawn_by(world, |_| {}).await
    }

    /// Starts it in this world and waits for its admin endpoint alone: what it needs to be ready may be away.
    pub(crate) async fn launch(world: &World) -> Self {
        Self::launch_by(world, |_| {}).await
    }

    /// Starts it in this world with these encryption keys, and waits until it is ready.
    pub(crate) async fn spawn_with_keys(world: &World, keys: &str) -> Self {
        Self::spawn_by(world, |program| program.set("TOKENKEEPER_KEYS", keys)).await
    }

    /// The same with these environment variables besides.
    pub(crate) async fn launch_with(world: &World, settings: &[(&'static str, String)]) -> Self {
        Self::launch_by(world, |program| {
            for (variable, value) in settings {
                program.set(*variable, value);
            }
        })
        .await
    }

    /// Starts it in this world with these limits of open files, and waits until it is ready.
    pub(crate) async fn spawn_with_open_files(world: &World, soft: u32, hard: u32) -> Self {
        Self::spawn_by(world, |program| program.limit_open_files(soft, hard)).await
    }

    /// Starts it in this world after a shell has run this line (`umask`, `ulimit`), and waits until it is ready.
    pub(crate) async fn spawn_after(world: &World, line: &str) -> Self {
        Self::spawn_by(world, |program| program.before(line)).await
    }

    /// Starts it in this world without this environment variable, and waits until it is ready.
    pub(crate) async fn spawn_without(world: &World, variable: &str) -> Self {
        Self::spawn_by(world, |program| program.unset(variable)).await
    }

    /// Starts it in this world with an allocator (glibc's) that gives free memory back at once, and waits until it is ready:
    /// what it keeps can be measured.
    pub(crate) async fn spawn_to_measure_memory(world: &World) -> Self {
        Self::spawn_by(world, |program| {
            program.set("MALLOC_ARENA_MAX", "1");
            program.set("MALLOC_TRIM_THRESHOLD_", "65536");
            program.set("MALLOC_MMAP_THRESHOLD_", "65536");
        })
        .await
    }

    async fn spawn_by(world: &World, change: impl FnOnce(&mut Program)) -> Self {
        let process = Self::launch_by(world, change).await;
        process.wait_until_ready().await;
        process
    }

    async fn launch_by(world: &World, change: impl FnOnce(&mut Program)) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut program = program(folder.path(), world.environment());
        change(&mut program);
        let worker = program.launch_worker("worker").await.expect("start the worker");
        Self { worker, folder, evidence: world.evidence.clone(), files: world.files_of_workers() }
    }

    /// Waits until `/readyz` says so.
    pub(crate) async fn wait_until_ready(&self) {
        self.worker.wait_until_ready().await;
    }

    /// Where its admin endpoint listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.worker.admin()
    }

    /// Changes how many files it may open (soft limit, Linux).
    pub(crate) async fn limit_open_files(&self, soft: u32) {
        let (pid, limit) = (format!("--pid={}", self.pid()), format!("--nofile={soft}:"));
        let set = Command::new("prlimit").args([pid, limit]).status().await.expect("run prlimit");
        assert!(set.success(), "set its limit of open files");
    }

    /// Status and body of a path of the admin endpoint.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        self.worker.get(path).await.expect("the admin endpoint answers")
    }

    /// The value of a series in `/metrics`, as it is written there: `name{label="value"}`.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        let (_, metrics) = self.get("metrics").await;
        let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        self.worker.log().expect("its log")
    }

    /// Waits until it has logged this text so many times.
    pub(crate) async fn wait_for_log(&self, text: &str, times: usize) {
        let what = format!("the worker to log {text:?} {times} times");
        eventually(&what, PATIENCE, async || (self.log().matches(text).count() >= times).then_some(())).await;
    }

    /// The value of a series that counts things.
    pub(crate) async fn count(&self, series: &str) -> usize {
        self.metric(series).await.to_string().parse().expect("a whole number")
    }

    /// How many `token.request` messages it has in hand.
    pub(crate) async fn requests_in_hand(&self) -> usize {
        self.count(r#"tokenkeeper_messages_in_flight{type="token.request"}"#).await
    }

    /// How often requests met a refresh that was under way, and waited for it.
    pub(crate) async fn lease_waits(&self, world: &World) -> usize {
        self.count(&format!(r#"tokenkeeper_lease_waits_total{{host="{}"}}"#, world.scm.host())).await
    }

    /// How often one of its connections to the broker was made anew.
    pub(crate) async fn reconnects(&self, link: Link) -> usize {
        self.count(&format!(r#"tokenkeeper_broker_reconnects_total{{connection="{}"}}"#, link.name())).await
    }

    /// Waits until so many requests have met a refresh that was under way.
    pub(crate) async fn wait_for_lease_waits(&self, world: &World, count: usize) {
        let what = format!("{count} waits for another's refresh");
        eventually(&what, PATIENCE, async || (self.lease_waits(world).await >= count).then_some(())).await;
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.worker.id().expect("it runs")
    }

    /// Sends a signal: `TERM`, `KILL`, `STOP`, `CONT`.
    pub(crate) async fn signal(&self, signal: &str) {
        self.worker.signal(signal).await.expect("send a signal");
    }

    /// Waits until it has ended, reads its log strictly, searches it for the world's secrets, and gives back how it ended. What
    /// else it leaves behind is searched with the world's end.
    pub(crate) async fn wait(mut self, world: &World) -> ExitStatus {
        let status = self.worker.wait().await.expect("wait for it");
        assert_json_lines(&self.log(), "a worker process");
        assert_holds_none_of(self.log(), &world.secrets(), "a worker process");
        status
    }

    /// Stops it softly; it must end cleanly.
    pub(crate) async fn stop(self, world: &World) {
        if let Ok(Ok((_, metrics))) = timeout(METRICS_PATIENCE, self.worker.get("metrics")).await {
            self.evidence.add(Place::Metrics, "/metrics", metrics);
        }
        self.signal("TERM").await;
        let status = self.wait(world).await;
        assert!(status.success(), "a worker that is told to stop exits 0, not with {status}");
    }
}

impl Drop for WorkerProcess {
    /// Keeps what it wrote for the search at the world's end. Shows its log where the test fails: one that fails now and then alone can be understood by nothing else.
    #[allow(clippy::print_stderr, reason = "the test's own output, shown where it fails")]
    fn drop(&mut self) {
        self.evidence.add(Place::Log, "a worker process", self.log());
        self.evidence.add_files(self.folder.path());
        self.files.iter().for_each(|file| self.evidence.add_files(file));
        if std::thread::panicking() {
            eprintln!("--- the log of a worker process:\n{}", self.log());
        }
    }
}
