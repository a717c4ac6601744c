//! What a scenario plays on: SCMs, a database and queues of its own, users with tokens, workers.

use std::{
    borrow::Cow,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use serde_json::Value;
use tokenkeeper_testkit::{
    program::{Ground, Program, Worker},
    scm::SimulatedScm,
    servers::{Postgres, Servers},
};

use crate::upstream::{Account, Ask, By, Upstream};

/// How long before their stored tokens are asked for they have expired, in milliseconds.
const EXPIRED_SINCE_MS: i64 = 60_000;

/// Somebody with an account at one SCM.
#[derive(Clone)]
pub(crate) struct User {
    pub(crate) name: Arc<str>,
    pub(crate) scm: usize,
}

/// An SCM, and the lines that its provider block has beside its own.
pub(crate) struct Host {
    pub(crate) scm: SimulatedScm,
    pub(crate) overrides: Cow<'static, str>,
}

/// Everything that runs in one scenario. The workers are the scenario's own, and end before this.
pub(crate) struct Stage {
    pub(crate) scms: Vec<Arc<SimulatedScm>>,
    pub(crate) users: Vec<User>,
    pub(crate) upstream: Upstream,
    /// Its name on the scenarios' PostgreSQL. Empty: it is on another server.
    pub(crate) database: String,
    program: Program,
    folder: PathBuf,
    started: usize,
}

impl Stage {
    /// Makes a database and sets the program up for it. `settings` are environment variables of the workers.
    pub(crate) async fn open(
        servers: &Servers,
        folder: &Path,
        name: &str,
        hosts: Vec<Host>,
        settings: &[(&'static str, &str)],
    ) -> Result<Self> {
        Self::open_by(servers, None, folder, name, hosts, settings).await
    }

    /// The same, with requests that are published by this account.
    pub(crate) async fn open_by(
        servers: &Servers,
        account: Option<&Account>,
        folder: &Path,
        name: &str,
        hosts: Vec<Host>,
        settings: &[(&'static str, &str)],
    ) -> Result<Self> {
        let broker = servers.rabbitmq.url();
        Self::open_at(&servers.postgres, &broker, account, folder, name, hosts, settings).await
    }

    /// The same, at this broker.
    pub(crate) async fn open_at(
        postgres: &Postgres,
        broker: &str,
        account: Option<&Account>,
        folder: &Path,
        name: &str,
        hosts: Vec<Host>,
        settings: &[(&'static str, &str)],
    ) -> Result<Self> {
        let database = name.replace('-', "_");
        postgres.create_database(&database).await?;
        let stage =
            Self::make(broker, account, &postgres.url(&database), folder, name, hosts, settings).await?;
        Ok(Self { database, ..stage })
    }

    /// The same on an empty database of another server.
    pub(crate) async fn open_on(
        servers: &Servers,
        database_url: &str,
        folder: &Path,
        name: &str,
        hosts: Vec<Host>,
    ) -> Result<Self> {
        Self::make(&servers.rabbitmq.url(), None, database_url, folder, name, hosts, &[]).await
    }

    async fn make(
        broker: &str,
        account: Option<&Account>,
        database_url: &str,
        folder: &Path,
        name: &str,
        hosts: Vec<Host>,
        settings: &[(&'static str, &str)],
    ) -> Result<Self> {
        let folder = folder.join(name);
        fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
        let mut program = Program::beside_this_one(&folder)?;
        let providers: String = hosts.iter().map(|host| host.scm.provider_toml(&host.overrides)).collect();
        let ground = Ground { database: database_url, broker, prefix: name, providers: &providers, settings };
        program.set_up(&ground).await?;
        let scms: Vec<_> = hosts.into_iter().map(|host| Arc::new(host.scm)).collect();
        let clock = Arc::clone(scms.first().context("a scenario needs an SCM")?);
        let upstream = Upstream::start(broker, account, name, move || clock.now_ms());
        let (users, database) = (Vec::new(), String::new());
        Ok(Self { scms, users, upstream, database, program, folder, started: 0 })
    }

    /// From now on workers are started with this setting.
    pub(crate) fn set(&mut self, variable: &'static str, value: impl Into<String>) {
        self.program.set(variable, value);
    }

    /// From now on workers may open so many files and no more.
    pub(crate) fn limit_open_files(&mut self, count: u32) {
        self.program.limit_open_files(count, count);
    }

    /// Logs so many more users in at each SCM in turn. Their tokens are fresh, or have expired a minute ago.
    pub(crate) async fn log_in(&mut self, count: usize, fresh: bool) -> Result<Vec<User>> {
        let mut bodies = Vec::with_capacity(count);
        let mut added = Vec::with_capacity(count);
        for number in self.users.len()..self.users.len() + count {
            let scm = number % self.scms.len();
            let user = User { name: format!("user-{number}").into(), scm };
            let host = &self.scms[scm];
            let pair = if fresh {
                host.authorize(&user.name)
            } else {
                host.authorize_until(&user.name, host.now_ms() - EXPIRED_SINCE_MS)
            };
            bodies.push(host.token_store_body(&pair));
            added.push(user);
        }
        self.import(&bodies).await?;
        self.users.extend(added.iter().cloned());
        Ok(added)
    }

    /// Logs so many more users in at this SCM, with fresh tokens; their names begin with `group`.
    pub(crate) async fn log_in_at(&mut self, scm: usize, group: &str, count: usize) -> Result<Vec<User>> {
        let host = &self.scms[scm];
        let name = |number| Arc::<str>::from(format!("{group}-{number}"));
        let added: Vec<_> = (0..count).map(|number| User { name: name(number), scm }).collect();
        let bodies: Vec<_> =
            added.iter().map(|user| host.token_store_body(&host.authorize(&user.name))).collect();
        self.import(&bodies).await?;
        self.users.extend(added.iter().cloned());
        Ok(added)
    }

    async fn import(&self, bodies: &[Value]) -> Result<()> {
        let lines = bodies.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
        self.program.import(&lines).await
    }

    /// Starts a worker, and waits until it is ready.
    pub(crate) async fn start_worker(&mut self) -> Result<Worker> {
        let name = self.next_worker();
        self.program.start_worker(&name).await
    }

    /// Starts so many workers.
    pub(crate) async fn start_workers(&mut self, count: usize) -> Result<Vec<Worker>> {
        let names: Vec<_> = (0..count).map(|_| self.next_worker()).collect();
        futures_util::future::try_join_all(names.iter().map(|name| self.program.start_worker(name))).await
    }

    /// Starts a worker under this name, and waits until it is ready.
    pub(crate) async fn replace_worker(&self, name: &str) -> Result<Worker> {
        self.program.start_worker(name).await
    }

    /// Starts a worker under this name, and waits no longer than until it has begun.
    pub(crate) async fn launch_worker(&self, name: &str) -> Result<Worker> {
        self.program.launch_worker(name).await
    }

    /// What a user asks for.
    pub(crate) fn ask(&self, user: &User, lifetime_secs: u64) -> Ask {
        let (user, host) = (Arc::clone(&user.name), self.scm_of(user).host().into());
        Ask { user, host, lifetime_secs, by: By::TokenRequest }
    }

    /// Where a user has the account.
    pub(crate) fn scm_of(&self, user: &User) -> &SimulatedScm {
        &self.scms[user.scm]
    }

    /// The SCM's clock, which is everybody's here: epoch milliseconds.
    pub(crate) fn now_ms(&self) -> i64 {
        self.scms.first().map_or(0, |scm| scm.now_ms())
    }

    /// Where workers write.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    fn next_worker(&mut self) -> String {
        self.started += 1;
        format!("worker-{}", self.started)
    }
}
