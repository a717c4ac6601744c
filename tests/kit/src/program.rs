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
use tokio::process::{Child, Command};

use crate::{
    http,
    wait::{PATIENCE, eventually, within},
};

/// The program with the settings that all its commands share.
#[derive(Clone)]
pub struct Program {
    path: PathBuf,
    /// Where it runs: its default database is a file there.
    folder: PathBuf,
    environment: HashMap<&'static str, String>,
    open_files: Option<u32>,
}

impl Program {
    /// The one that was built beside the running one; its commands run in `folder`.
    pub fn beside_this_one(folder: &Path) -> Result<Self> {
        let path =
            env::current_exe().context("find out where this program is")?.with_file_name("tokenkeeper");
        if !path.is_file() {
            bail!("{} is not there: build it with `cargo build --bin tokenkeeper`", path.display());
        }
        Ok(Self::at(path, folder))
    }

    /// The one at `path`; its commands run in `folder`, so a relative path is looked up there.
    pub fn at(path: PathBuf, folder: &Path) -> Self {
        Self { path, folder: folder.to_owned(), environment: HashMap::new(), open_files: None }
    }

    /// The program's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets an environment variable for every command from here on.
    pub fn set(&mut self, variable: &'static str, value: impl Into<String>) {
        self.environment.insert(variable, value.into());
    }

    /// Lets every command from here on open so many files and no more, whatever it asks for: its hard limit.
    pub fn limit_open_files(&mut self, count: u32) {
        self.open_files = Some(count);
    }

    /// Runs a command to its end and gives back what it printed.
    pub async fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command().args(arguments).output().await.context("start tokenkeeper")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("`tokenkeeper {}` ended with {}:\n{}", arguments.join(" "), output.status, said.trim_end());
        }
        String::from_utf8(output.stdout).context("read what tokenkeeper printed")
    }

    /// Starts a worker, which logs to `NAME.log` in the folder, and waits until it is ready.
    pub async fn start_worker(&self, name: &str) -> Result<Worker> {
        let worker = self.launch_worker(name).await?;
        eventually("a worker to be ready", PATIENCE, async || worker.is_ready().await.then_some(())).await;
        Ok(worker)
    }

    /// Starts a worker and waits for its admin endpoint alone: what it needs to be ready may be away.
    pub async fn launch_worker(&self, name: &str) -> Result<Worker> {
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
        match address.await {
            Ok(address) => Ok(Worker { process, address, log }),
            Err(ended) => bail!("a worker ended before it was ready ({ended}); see {}", log.display()),
        }
    }

    /// A command yet without arguments, killed when its process is dropped. Of this process's environment the
    /// program gets nothing that could change its settings.
    pub fn command(&self) -> Command {
        let mut command = match self.open_files {
            None => Command::new(&self.path),
            Some(count) => {
                // A shell sets both limits, and becomes the program.
                let mut shell = Command::new("sh");
                shell.arg("-c").arg(format!("ulimit -n {count} && exec \"$0\" \"$@\"")).arg(&self.path);
                shell
            }
        };
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
pub struct Worker {
    process: Child,
    address: SocketAddr,
    log: PathBuf,
}

impl Worker {
    /// Where its admin endpoint is.
    pub fn admin(&self) -> SocketAddr {
        self.address
    }

    /// What `/metrics` says.
    pub async fn metrics(&self) -> Result<String> {
        let answer = http::client().get(format!("http://{}/metrics", self.address)).send().await?;
        Ok(answer.error_for_status()?.text().await?)
    }

    /// Status and text of `/readyz`.
    pub async fn readiness(&self) -> Result<(u16, String)> {
        let answer = http::client().get(format!("http://{}/readyz", self.address)).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// Its process id, while it has not been waited for.
    pub fn id(&self) -> Result<u32> {
        self.process.id().context("the worker has ended by itself")
    }

    /// Sends it a signal: `TERM`, `KILL`, `STOP`, `CONT`.
    pub async fn signal(&self, signal: &str) -> Result<()> {
        let id = self.id()?.to_string();
        let sent = Command::new("kill").args(["-s", signal, &id]).status().await.context("run kill")?;
        if !sent.success() {
            bail!("the worker cannot be sent SIG{signal}: kill ended with {sent}");
        }
        Ok(())
    }

    /// Waits until it has ended.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        within("the worker to end", 2 * PATIENCE, self.process.wait()).await.context("wait for the worker")
    }

    /// Asks it to stop, and waits until it has.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        self.signal("TERM").await?;
        self.wait().await
    }

    /// Kills it, without a chance to say or do anything, and waits until it is gone.
    pub async fn kill(&mut self) -> Result<()> {
        self.signal("KILL").await?;
        self.wait().await.map(drop)
    }

    /// What it has logged.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log).with_context(|| format!("read {}", self.log.display()))
    }

    async fn is_ready(&self) -> bool {
        self.readiness().await.is_ok_and(|(status, _)| status == 200)
    }
}

/// Port 0 was asked for; the log tells which one it became.
fn admin_address(log: &Path) -> Option<SocketAddr> {
    let log = fs::read_to_string(log).ok()?;
    let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut starts = events.filter(|event| event["message"] == "admin endpoint is up");
    starts.find_map(|event| event["address"].as_str()?.parse().ok())
}
