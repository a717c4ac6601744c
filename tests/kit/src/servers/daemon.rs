//! A server's process, run by the account that may run it.

use std::{
    env,
    ffi::OsString,
    fs::{self, File, Permissions},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command as BlockingCommand, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

/// How long a server may take to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where servers' programs are that are not in everybody's `PATH`.
const SYSTEM_FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Who runs a server: servers refuse root, so root runs them by the account that its package made.
#[derive(Clone, Copy)]
pub(super) struct Owner(Option<(u32, u32)>);

impl Owner {
    /// The account `user` for root, and whoever runs this for everybody else.
    pub(super) async fn find(user: &str) -> Result<Self> {
        if id(&["-u"]).await? != 0 {
            return Ok(Self(None));
        }
        let account = (id(&["-u", user]).await?, id(&["-g", user]).await?);
        Ok(Self(Some(account)))
    }

    /// Makes a folder that belongs to the account.
    pub(super) fn make_folder(self, path: &Path) -> Result<()> {
        fs::create_dir(path).with_context(|| format!("make {}", path.display()))?;
        self.take(path)
    }

    /// Writes a file that belongs to the account.
    pub(super) fn write(self, path: &Path, text: &str) -> Result<()> {
        fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
        self.take(path)
    }

    /// Writes a file that nobody else may read: a server refuses its private key otherwise.
    pub(super) fn write_secret(self, path: &Path, text: &str) -> Result<()> {
        self.write(path, text)?;
        fs::set_permissions(path, Permissions::from_mode(0o600))
            .with_context(|| format!("close {} to others", path.display()))
    }

    fn take(self, path: &Path) -> Result<()> {
        let Some((user, group)) = self.0 else { return Ok(()) };
        chown(path, Some(user), Some(group)).with_context(|| format!("give {} away", path.display()))
    }

    /// A command of this account, in a process group of its own, so that a terminal's Ctrl-C does not reach it.
    /// It gets nothing of our environment that could lead it to the machine's own servers.
    pub(super) fn command(self, program: &Path, folder: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(folder)
            .env_clear()
            .env("PATH", search_path())
            .env("HOME", folder)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        if let Some((user, group)) = self.0 {
            command.uid(user).gid(group);
        }
        command
    }
}

async fn id(arguments: &[&str]) -> Result<u32> {
    let output = Command::new("id").args(arguments).output().await.context("run id")?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().with_context(|| format!("there is no account `{}` here", arguments.join(" ")))
}

fn search_path() -> OsString {
    let own = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&own).chain(SYSTEM_FOLDERS.map(PathBuf::from));
    env::join_paths(folders).unwrap_or(own)
}

/// Whether this machine has the programs of both servers.
pub fn are_installed() -> bool {
    let postgres = find_program("initdb", super::postgres::debian_folders());
    let rabbitmq = find_program("rabbitmq-server", super::rabbitmq::debian_folders());
    postgres.is_ok() && rabbitmq.is_ok()
}

/// The first of `folders` with this program, else the first of `PATH`.
pub(super) fn find_program(name: &str, folders: impl IntoIterator<Item = PathBuf>) -> Result<PathBuf> {
    let path = search_path();
    let mut candidates = folders.into_iter().chain(env::split_paths(&path)).map(|folder| folder.join(name));
    candidates.find(|program| program.is_file()).with_context(|| {
        format!("there is no {name} here: install PostgreSQL and RabbitMQ (Debian: apt-get install postgresql rabbitmq-server)")
    })
}

/// Runs a command to its end; an error tells what it said.
pub(super) async fn run(command: &mut Command, what: &str) -> Result<String> {
    let output = command.output().await.with_context(|| what.to_owned())?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    ensure!(output.status.success(), "{what}: {}\n{}", output.status, said(&output.stderr));
    Ok(said(&output.stdout))
}

/// A server's process and its children. They end when it is dropped.
pub(super) struct Daemon {
    name: &'static str,
    child: Child,
    /// The signal that ends it at once and leaves nothing behind.
    quit: &'static str,
}

impl Daemon {
    /// Starts one that writes its output to `log`.
    pub(super) fn spawn(
        name: &'static str,
        quit: &'static str,
        command: &mut Command,
        log: &Path,
    ) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("open {}", log.display()))?;
        let child = command.stdout(file.try_clone()?).stderr(file).spawn();
        Ok(Self { name, child: child.with_context(|| format!("start {name}"))?, quit })
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal to its first process.
    pub(super) async fn signal(&self, signal: &str) -> Result<()> {
        let id = self.child.id().with_context(|| format!("{} has ended by itself", self.name))?;
        let sent = Command::new("kill").args(["-s", signal, &id.to_string()]).status().await?;
        ensure!(sent.success(), "{} cannot be sent SIG{signal}", self.name);
        Ok(())
    }

    /// Sends a signal to it and to its children.
    pub(super) fn signal_all(&self, signal: &str) -> Result<()> {
        let id = self.child.id().with_context(|| format!("{} has ended by itself", self.name))?;
        let group = format!("-{id}");
        let sent = BlockingCommand::new("kill").args(["-s", signal, "--", &group]).status()?;
        ensure!(sent.success(), "{} cannot be sent SIG{signal}", self.name);
        Ok(())
    }

    /// Waits until it has ended.
    pub(super) async fn wait(&mut self) -> Result<()> {
        match timeout(PATIENCE, self.child.wait()).await {
            Ok(ended) => ended.map(drop).with_context(|| format!("wait for {}", self.name)),
            Err(_) => bail!("{} does not end", self.name),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let Some(id) = self.child.id() else { return };
        // To the group: a script's server is its child. What fails here has ended already.
        let kill = |signal: &str| {
            let group = format!("-{id}");
            let _ = BlockingCommand::new("kill")
                .args(["-s", signal, "--", &group])
                .stderr(Stdio::null())
                .status();
        };
        kill(self.quit);
        let asked = Instant::now();
        while asked.elapsed() < Duration::from_secs(5) && self.ended().is_none() {
            thread::sleep(Duration::from_millis(20));
        }
        kill("KILL");
    }
}
