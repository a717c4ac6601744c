//! A PostgreSQL in a temporary folder.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use tokenkeeper_testkit::wait::{PATIENCE, eventually};

use super::{
    daemon::{Daemon, Owner, find_program, run},
    free_port,
};

const NAME: &str = "PostgreSQL";

/// A server of its own that can be stopped and started.
pub(crate) struct Postgres {
    owner: Owner,
    programs: Programs,
    folder: PathBuf,
    port: u16,
    daemon: Option<Daemon>,
}

struct Programs {
    initdb: PathBuf,
    postgres: PathBuf,
    psql: PathBuf,
}

impl Postgres {
    pub(super) async fn start(folder: &Path) -> Result<Self> {
        let owner = Owner::find("postgres").await?;
        let folder = folder.join("postgres");
        owner.make_folder(&folder)?;
        let program = |name| find_program(name, debian_folders());
        let programs =
            Programs { initdb: program("initdb")?, postgres: program("postgres")?, psql: program("psql")? };
        let mut server = Self { owner, programs, folder, port: free_port()?, daemon: None };
        let mut initdb = owner.command(&server.programs.initdb, &server.folder);
        initdb.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-sync", "--pgdata=data"]);
        run(&mut initdb, "make a database cluster").await?;
        server.begin().await?;
        Ok(server)
    }

    /// The URL of a database.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Makes an empty database.
    pub(crate) async fn create_database(&self, name: &str) -> Result<()> {
        self.query("postgres", &format!("create database {name}")).await.map(drop)
    }

    /// The one value that a query gives.
    pub(crate) async fn query(&self, database: &str, sql: &str) -> Result<String> {
        let mut psql = self.owner.command(&self.programs.psql, &self.folder);
        psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql, &self.url(database)]);
        run(&mut psql, "ask PostgreSQL").await
    }

    /// Stops it as an administrator does: connections are cut, what was committed is kept.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("PostgreSQL runs")?;
        daemon.signal("INT").await?;
        daemon.wait().await
    }

    /// Starts it, and waits until it answers.
    pub(crate) async fn begin(&mut self) -> Result<()> {
        let mut postgres = self.owner.command(&self.programs.postgres, &self.folder);
        let port = self.port.to_string();
        // Without fsync: no test ends the machine, and its disk is shared.
        for setting in ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"] {
            postgres.args(["-c", setting]);
        }
        postgres.args(["-D", "data", "-p", &port]);
        // SIGQUIT: ends at once, and gives its shared memory back.
        let log = self.folder.join("postgres.log");
        let mut daemon = Daemon::spawn(NAME, "QUIT", &mut postgres, &log)?;
        let answers = eventually("PostgreSQL to answer", PATIENCE, async || {
            if let Some(ended) = daemon.ended() {
                return Some(Err(ended));
            }
            self.query("postgres", "select 1").await.ok().map(Ok)
        });
        if let Err(ended) = answers.await {
            bail!("PostgreSQL ended ({ended}); see {}", log.display());
        }
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Stops and starts it.
    pub(crate) async fn restart(&mut self) -> Result<()> {
        self.stop().await?;
        self.begin().await
    }
}

/// Debian keeps the programs of each version in a folder that is in nobody's `PATH`. The newest comes first.
fn debian_folders() -> Vec<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<_> = versions
        .filter_map(|folder| Some((folder.file_name().to_str()?.parse::<u32>().ok()?, folder.path())))
        .collect();
    versions.sort_unstable();
    versions.into_iter().rev().map(|(_, path)| path.join("bin")).collect()
}
