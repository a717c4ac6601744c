//! The `tokenkeeper` program, run as an operator runs it: by its command line and its environment.

use std::{
    collections::HashMap,
    env,
    fs::{self, File, Permissions},
    io::{self, Write},
    net::SocketAddr,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
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
    environment: HashMap<String, String>,
    /// Lines of a shell that come before each command, such as `ulimit`.
    before: Vec<String>,
}

/// What a worker stands on.
pub struct Ground<'a> {
    /// The URL of its database.
    pub database: &'a str,
    /// The URL of its broker.
    pub broker: &'a str,
    /// First part of the names of its exchanges and queues.
    pub prefix: &'a str,
    /// The provider file.
    pub providers: &'a str,
    /// Other settings, as environment variables.
    pub settings: &'a [(&'a str, &'a str)],
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
        Self { path, folder: folder.to_owned(), environment: HashMap::new(), before: Vec::new() }
    }

    /// The program's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets an environment variable for every command from here on.
    pub fn set(&mut self, variable: impl Into<String>, value: impl Into<String>) {
        self.environment.insert(variable.into(), value.into());
    }

    /// Takes an environment variable away from every command from here on.
    pub fn unset(&mut self, variable: &str) {
        self.environment.remove(variable);
    }

    /// Lets every command from here on open so many files: its soft and its hard limit.
    pub fn limit_open_files(&mut self, soft: u32, hard: u32) {
        self.before(&format!("ulimit -Sn {soft} && ulimit -Hn {hard}"));
    }

    /// Has a shell run this line before every command from here on, and become the command: `umask`, `ulimit`.
    pub fn before(&mut self, line: &str) {
        self.before.push(line.to_owned());
    }

    /// Sets it up for workers under load: with new keys, which are given back, tables, and providers.
    pub async fn set_up(&mut self, ground: &Ground<'_>) -> Result<String> {
        self.set("DATABASE_URL", ground.database);
        self.set("AMQP_URL", ground.broker);
        self.set("TOKENKEEPER__BROKER__PREFIX", ground.prefix);
        self.set("TOKENKEEPER__ADMIN__LISTEN", "127.0.0.1:0");
        self.set("TOKENKEEPER__LOG__FORMAT", "json");
        // Few users, whose tokens are refreshed all the time: more often than anybody is allowed in earnest.
        self.set("TOKENKEEPER__REFRESH__IDENTITY_LIMIT_PER_MINUTE", "0");
        for (variable, value) in ground.settings {
            self.set(*variable, *value);
        }
        let keys = self.run(&["keys", "generate"]).await?.trim().to_owned();
        self.set("TOKENKEEPER_KEYS", &keys);
        self.run(&["migrate", "up"]).await?;
        let file = self.folder.join("providers.toml");
        write_private(&file, ground.providers).context("write the providers")?;
        self.run(&["provider", "apply", &file.to_string_lossy()]).await?;
        Ok(keys)
    }

    /// Stores pairs: the bodies of `token.store` messages, a line each.
    pub async fn import(&self, pairs: &str) -> Result<()> {
        let file = self.folder.join("pairs.jsonl");
        fs::write(&file, pairs).context("write the pairs of users")?;
        self.run(&["token", "import", &file.to_string_lossy()]).await.map(drop)
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
        worker.wait_until_ready().await;
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
            Ok(address) => Ok(Worker { process, address, token: self.admin_token(), log }),
            Err(ended) => bail!("a worker ended before it was ready ({ended}); see {}", log.display()),
        }
    }

    fn admin_token(&self) -> Option<String> {
        self.environment.get("TOKENKEEPER__ADMIN__TOKEN").cloned()
    }

    /// A command yet without arguments, killed when its process is dropped. Of this process's environment the
    /// program gets nothing that could change its settings.
    pub fn command(&self) -> Command {
        let mut command = if self.before.is_empty() {
            Command::new(&self.path)
        } else {
            let script = format!("{} && exec \"$0\" \"$@\"", self.before.join(" && "));
            let mut shell = Command::new("sh");
            shell.arg("-c").arg(script).arg(&self.path);
            shell
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

/// Writes a file that its owner alone may read: tokenkeeper refuses others that hold secrets.
pub fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())
}

/// A running worker. Killed when it is dropped.
pub struct Worker {
    process: Child,
    address: SocketAddr,
    /// What its admin endpoint wants to be shown.
    token: Option<String>,
    log: PathBuf,
}

impl Worker {
    /// Where its admin endpoint is.
    pub fn admin(&self) -> SocketAddr {
        self.address
    }

    /// Status and text of a path of its admin endpoint.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        let get = http::client().get(format!("http://{}/{path}", self.address));
        let get = self.token.iter().fold(get, reqwest::RequestBuilder::bearer_auth);
        let answer = get.send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// What `/metrics` says.
    pub async fn metrics(&self) -> Result<String> {
        match self.get("metrics").await? {
            (200, metrics) => Ok(metrics),
            (status, _) => bail!("a worker answers {status} to /metrics"),
        }
    }

    /// Waits until `/readyz` says so.
    pub async fn wait_until_ready(&self) {
        let ready = async || self.get("readyz").await.is_ok_and(|(status, _)| status == 200).then_some(());
        eventually("a worker to be ready", PATIENCE, ready).await;
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
        let log = fs::read(&self.log).with_context(|| format!("read {}", self.log.display()))?;
        // Its end may be half a character.
        Ok(String::from_utf8_lossy(&log).into_owned())
    }
}

/// Port 0 was asked for; the log tells which one it became.
fn admin_address(log: &Path) -> Option<SocketAddr> {
    let log = fs::read_to_string(log).ok()?;
    let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut starts = events.filter(|event| event["message"] == "admin endpoint is up");
    starts.find_map(|event| event["address"].as_str()?.parse().ok())
}
