//! A PostgreSQL in a temporary folder.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::wait::{PATIENCE, eventually};
use anyhow::{Context, Result, bail};

use super::{
    ServerTls,
    daemon::{Daemon, Owner, find_program, run},
    free_port,
};

const NAME: &str = "PostgreSQL";

/// Everybody but the administrator logs in by the name in a client certificate.
const HBA: &str = "\
host    all postgres 127.0.0.1/32 trust
hostssl all all      127.0.0.1/32 cert
";

/// A server of its own that can be stopped and started.
pub struct Postgres {
    owner: Owner,
    programs: Programs,
    folder: PathBuf,
    port: u16,
    has_tls: bool,
    daemon: Option<Daemon>,
}

#[derive(Clone)]
struct Programs {
    initdb: PathBuf,
    postgres: PathBuf,
    psql: PathBuf,
    base_backup: PathBuf,
}

impl Postgres {
    /// Starts one with everything it writes below `folder`. With TLS, the user `postgres` needs none.
    pub async fn start(folder: &Path, tls: Option<&ServerTls<'_>>) -> Result<Self> {
        let owner = Owner::find("postgres").await?;
        let folder = folder.join("postgres");
        owner.make_folder(&folder)?;
        let program = |name| find_program(name, debian_folders());
        let programs = Programs {
            initdb: program("initdb")?,
            postgres: program("postgres")?,
            psql: program("psql")?,
            base_backup: program("pg_basebackup")?,
        };
        let has_tls = tls.is_some();
        let mut server = Self { owner, programs, folder, port: free_port()?, has_tls, daemon: None };
        let mut initdb = owner.command(&server.programs.initdb, &server.folder);
        initdb.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-sync", "--pgdata=data"]);
        run(&mut initdb, "make a database cluster").await?;
        if let Some(tls) = tls {
            tls.write(owner, &server.folder)?;
            owner.write(&server.folder.join("hba.conf"), HBA)?;
        }
        server.begin().await?;
        Ok(server)
    }

    /// Starts a standby of this one, with everything it writes below `folder`. It answers, follows, and takes no writes.
    pub async fn start_standby(&self, folder: &Path) -> Result<Self> {
        let folder = folder.join("standby");
        self.owner.make_folder(&folder)?;
        let mut copy = self.owner.command(&self.programs.base_backup, &folder);
        copy.args(["--pgdata=data", "--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast"]);
        copy.args(["--no-sync", "--host=127.0.0.1", "--username=postgres", "--port", &self.port.to_string()]);
        run(&mut copy, "copy a PostgreSQL").await?;
        let (owner, programs) = (self.owner, self.programs.clone());
        let mut standby = Self { owner, programs, folder, port: free_port()?, has_tls: false, daemon: None };
        standby.begin().await?;
        Ok(standby)
    }

    /// Lets a standby take writes from now on.
    pub async fn promote(&self) -> Result<()> {
        self.query("postgres", "select pg_promote()").await.map(drop)
    }

    /// Lets it take no writes, or take them again, also in the sessions of now.
    pub async fn set_read_only(&self, read_only: bool) -> Result<()> {
        let value = if read_only { "on" } else { "off" };
        self.query("postgres", &format!("alter system set default_transaction_read_only = {value}")).await?;
        self.query("postgres", "select pg_reload_conf()").await.map(drop)
    }

    /// Host and port.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The URL of a database.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// The URL of a database, for a user who logs in by certificate.
    pub fn url_by_certificate(&self, host: &str, user: &str, database: &str) -> String {
        format!("postgres://{user}@{host}:{}/{database}", self.port)
    }

    /// Gives it another certificate, which it shows to whoever connects from here on.
    pub async fn change_certificate(&self, tls: &ServerTls<'_>) -> Result<()> {
        tls.write(self.owner, &self.folder)?;
        self.daemon.as_ref().context("PostgreSQL runs")?.signal("HUP").await
    }

    /// Makes an empty database.
    pub async fn create_database(&self, name: &str) -> Result<()> {
        self.query("postgres", &format!("create database {name}")).await.map(drop)
    }

    /// The one value that a query gives.
    pub async fn query(&self, database: &str, sql: &str) -> Result<String> {
        let mut psql = self.owner.command(&self.programs.psql, &self.folder);
        psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql, &self.url(database)]);
        run(&mut psql, "ask PostgreSQL").await
    }

    /// Stops it as an administrator does: connections are cut, what was committed is kept.
    pub async fn stop(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("PostgreSQL runs")?;
        daemon.signal("INT").await?;
        daemon.wait().await
    }

    /// Starts it, and waits until it answers.
    pub async fn begin(&mut self) -> Result<()> {
        let mut postgres = self.owner.command(&self.programs.postgres, &self.folder);
        let port = self.port.to_string();
        // Without fsync: no test ends the machine, and its disk is shared.
        for setting in ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"] {
            postgres.args(["-c", setting]);
        }
        if self.has_tls {
            let file = |name: &str| self.folder.join(name).display().to_string();
            for (setting, value) in [
                ("ssl", "on".to_owned()),
                ("ssl_cert_file", file("server.pem")),
                ("ssl_key_file", file("server-key.pem")),
                ("ssl_ca_file", file("client-ca.pem")),
                ("hba_file", file("hba.conf")),
            ] {
                postgres.args(["-c", &format!("{setting}={value}")]);
            }
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
    pub async fn restart(&mut self) -> Result<()> {
        self.stop().await?;
        self.begin().await
    }
}

/// Debian keeps the programs of each version in a folder that is in nobody's `PATH`. The newest comes first.
pub(super) fn debian_folders() -> Vec<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<_> = versions
        .filter_map(|folder| Some((folder.file_name().to_str()?.parse::<u32>().ok()?, folder.path())))
        .collect();
    versions.sort_unstable();
    versions.into_iter().rev().map(|(_, path)| path.join("bin")).collect()
}
