//! The real binary as a child process.

use std::net::SocketAddr;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokenkeeper_testkit::http;
use tokenkeeper_testkit::wait::{PATIENCE, eventually, within};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::links::Link;
use super::logs::assert_holds_none_of;
use super::world::World;

/// A worker process. Killed when it is dropped.
pub(crate) struct WorkerProcess {
    child: Child,
    log: Arc<Mutex<String>>,
    reading: JoinHandle<()>,
    address: SocketAddr,
}

impl WorkerProcess {
    /// Starts it in this world and waits until it is ready.
    pub(crate) async fn spawn(world: &World) -> Self {
        let worker = Self::launch(world).await;
        worker.wait_until_ready().await;
        worker
    }

    /// Starts it in this world and waits for its admin endpoint alone: what it needs to be ready may be away.
    pub(crate) async fn launch(world: &World) -> Self {
        let mut program = Command::new(env!("CARGO_BIN_EXE_tokenkeeper"));
        program.arg("worker");
        Self::launch_by(program, world).await
    }

    /// Starts it in this world with these limits of open files, and waits until it is ready.
    pub(crate) async fn spawn_with_open_files(world: &World, soft: u32, hard: u32) -> Self {
        let mut program = Command::new("/bin/sh");
        let script = format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" worker");
        program.args(["-c", &script, env!("CARGO_BIN_EXE_tokenkeeper")]);
        let worker = Self::launch_by(program, world).await;
        worker.wait_until_ready().await;
        worker
    }

    /// Starts it in this world with an allocator (glibc's) that gives free memory back at once, and waits until it is ready:
    /// what it keeps can be measured.
    pub(crate) async fn spawn_to_measure_memory(world: &World) -> Self {
        let mut program = Command::new("/bin/sh");
        let script = "export MALLOC_ARENA_MAX=1 MALLOC_TRIM_THRESHOLD_=65536 MALLOC_MMAP_THRESHOLD_=65536; \
                      exec \"$0\" worker";
        program.args(["-c", script, env!("CARGO_BIN_EXE_tokenkeeper")]);
        let worker = Self::launch_by(program, world).await;
        worker.wait_until_ready().await;
        worker
    }

    async fn launch_by(mut program: Command, world: &World) -> Self {
        let mut child = program
            .current_dir(std::env::temp_dir())
            .env_clear()
            .envs(world.environment())
            .stdin(Stdio::null())
            .stdout(Stdio::inherit())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("start the worker");
        let log = Arc::<Mutex<String>>::default();
        let stderr = child.stderr.take().expect("it is piped");
        let reading = tokio::spawn(read_log(BufReader::new(stderr), Arc::clone(&log)));
        let address = eventually("the worker's admin endpoint", PATIENCE, async || {
            let log = log.lock().unwrap_or_else(PoisonError::into_inner);
            log.lines().find_map(admin_address)
        })
        .await;
        Self { child, log, reading, address }
    }

    /// Waits until `/readyz` says so.
    pub(crate) async fn wait_until_ready(&self) {
        eventually("the worker to be ready", PATIENCE, async || {
            (self.get("readyz").await.0 == 200).then_some(())
        })
        .await;
    }

    /// Where its admin endpoint listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes how many files it may open (soft limit, Linux).
    pub(crate) async fn limit_open_files(&self, soft: u32) {
        let (pid, limit) = (format!("--pid={}", self.pid()), format!("--nofile={soft}:"));
        let set = Command::new("prlimit").args([pid, limit]).status().await.expect("run prlimit");
        assert!(set.success(), "set its limit of open files");
    }

    /// Status and body of a path of the admin endpoint.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let answer = http::client().get(format!("http://{}/{path}", self.address)).send().await;
        let answer = answer.expect("the admin endpoint answers");
        (answer.status().as_u16(), answer.text().await.expect("a text"))
    }

    /// The value of a series in `/metrics`, as it is written there: `name{label="value"}`.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        let (_, metrics) = self.get("metrics").await;
        let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
        self.child.id().expect("it runs")
    }

    /// Sends a signal: `TERM`, `KILL`, `STOP`, `CONT`.
    pub(crate) async fn signal(&self, signal: &str) {
        let pid = self.pid().to_string();
        let sent = Command::new("kill").args(["-s", signal, &pid]).status().await.expect("run kill");
        assert!(sent.success(), "send SIG{signal}");
    }

    /// Waits until it has ended, searches its log for the world's secrets, and gives back how it ended.
    pub(crate) async fn wait(mut self, world: &World) -> ExitStatus {
        let status = within("the worker to end", PATIENCE, self.child.wait()).await.expect("wait for it");
        (&mut self.reading).await.expect("the log is read to its end");
        assert_holds_none_of(&self.log(), &world.secrets(), "a worker process");
        status
    }

    /// Stops it softly; it must end cleanly.
    pub(crate) async fn stop(self, world: &World) {
        self.signal("TERM").await;
        let status = self.wait(world).await;
        assert!(status.success(), "a worker that is told to stop exits 0, not with {status}");
    }
}

impl Drop for WorkerProcess {
    /// Shows its log where the test fails: one that fails now and then alone can be understood by nothing else.
    #[allow(clippy::print_stderr, reason = "the test's own output, shown where it fails")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the log of a worker process:\n{}", self.log());
        }
    }
}

async fn read_log(stderr: BufReader<tokio::process::ChildStderr>, log: Arc<Mutex<String>>) {
    let mut lines = stderr.lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        log.push_str(&line);
        log.push('\n');
    }
}

fn admin_address(line: &str) -> Option<SocketAddr> {
    let event: Value = serde_json::from_str(line).ok()?;
    if event["message"] == "admin endpoint is up" { event["address"].as_str()?.parse().ok() } else { None }
}
