//! The `tokenkeeper` program, run as an operator runs it: by its command line and its environment.

use std::{
    collections::HashMap,
    env,
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokenkeeper_testkit::{
    http,
    wait::{PATIENCE, eventually, within},
};
use tokio::process::{Child, Command};

/// The program with the settings that all its commands share.
pub(crate) struct Program {
    path: PathBuf,
    /// Where it runs: its default database is a file there.
    folder: PathBuf,
    environment: HashMap<&'static str, String>,
}

impl Program {
    /// The one that was built beside this demo.
    pub(crate) fn beside_this_one(folder: &Path) -> Result<Self> {
        let path =
            env::current_exe().context("find out where this program is")?.with_file_name("tokenkeeper");
        if !path.is_file() {
            bail!("{} is not there: run scripts/demo.sh, which builds it", path.display());
        }
        Ok(Self { path, folder: folder.to_owned(), environment: HashMap::new() })
    }

    /// Sets an environment variable for every command from here on.
    pub(crate) fn set(&mut self, variable: &'static str, value: impl Into<String>) {
        self.environment.insert(variable, value.into());
    }

    /// Runs a command to its end and gives back what it printed.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command().args(arguments).output().await.context("start tokenkeeper")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("`tokenkeeper {}` ended with {}:\n{}", arguments.join(" "), output.status, said.trim_end());
        }
        String::from_utf8(output.stdout).context("read what tokenkeeper printed")
    }

    /// Starts a worker, which logs to a file in the folder, and waits until it is ready.
    pub(crate) async fn start_worker(&self, name: &str) -> Result<Worker> {
        let log = self.folder.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let mut process = self
            .command()
            .arg("worker")
            .stdout(file.try_clone().context("share the log file")?)
            .stderr(file)
            .spawn()
            .context("start a worker")?;
        let address = eventually("a worker's admin endpoint", PATIENCE, async || match process.try_wait() {
            Ok(Some(ended)) => Some(Err(ended)),
            _ => admin_address(&log).map(Ok),
        });
        let address = match address.await {
            Ok(address) => address,
            Err(ended) => bail!("a worker ended before it was ready ({ended}); see {}", log.display()),
        };
        let worker = Worker { process, address, log };
        eventually("a worker to be ready", PATIENCE, async || worker.is_ready().await.then_some(())).await;
        Ok(worker)
    }

    /// Of this process's environment the program gets nothing that could change its settings.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command
            .current_dir(&self.folder)
            .env_clear()
            .envs(env::var_os("PATH").map(|path| ("PATH", path)))
            .envs(&self.environment)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }
}

/// A running worker. Killed when it is dropped.
pub(crate) struct Worker {
    process: Child,
    address: SocketAddr,
    log: PathBuf,
}

impl Worker {
    /// What `/metrics` says.
    pub(crate) async fn metrics(&self) -> Result<String> {
        let answer = http::client().get(format!("http://{}/metrics", self.address)).send().await?;
        Ok(answer.error_for_status()?.text().await?)
    }

    /// Asks it to stop, and waits until it has.
    pub(crate) async fn stop(&mut self) -> Result<ExitStatus> {
        let pid = self.process.id().context("the worker has ended by itself")?.to_string();
        let sent = Command::new("kill").args(["-s", "TERM", &pid]).status().await.context("run kill")?;
        if !sent.success() {
            bail!("the worker cannot be asked to stop: kill ended with {sent}");
        }
        within("the worker to end", PATIENCE, self.process.wait()).await.context("wait for the worker")
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log).with_context(|| format!("read {}", self.log.display()))
    }

    async fn is_ready(&self) -> bool {
        let answer = http::client().get(format!("http://{}/readyz", self.address)).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }
}

/// Port 0 was asked for; the log tells which one it became.
fn admin_address(log: &Path) -> Option<SocketAddr> {
    let log = fs::read_to_string(log).ok()?;
    let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut starts = events.filter(|event| event["message"] == "admin endpoint is up");
    starts.find_map(|event| event["address"].as_str()?.parse().ok())
}
