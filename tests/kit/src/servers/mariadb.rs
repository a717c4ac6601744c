//! A MariaDB in a temporary folder.

use std::path::{Path, PathBuf};

use crate::wait::{PATIENCE, eventually};
use anyhow::{Context, Result, bail};

use super::{
    ServerTls,
    daemon::{Daemon, Owner, find_program, run},
    free_port,
};

const NAME: &str = "MariaDB";

/// A server of its own, whose administrator comes by a socket in its folder.
pub struct MariaDb {
    owner: Owner,
    client: PathBuf,
    folder: PathBuf,
    port: u16,
    daemon: Daemon,
}

impl MariaDb {
    /// Whether this machine has its programs.
    pub fn is_installed() -> bool {
        ["mariadbd", "mariadb-install-db", "mariadb"].iter().all(|program| find_program(program, []).is_ok())
    }

    /// Starts one with everything it writes below `folder`. Over TCP it speaks TLS alone.
    pub async fn start(folder: &Path, tls: &ServerTls<'_>) -> Result<Self> {
        Self::start_with(folder, Some(tls), &[]).await
    }

    /// Starts one that speaks plain text, with these options besides.
    pub async fn start_plain(folder: &Path, options: &[String]) -> Result<Self> {
        Self::start_with(folder, None, options).await
    }

    /// Starts one that is a Galera cluster by itself, with this provider.
    pub async fn start_galera(folder: &Path, provider: &Path) -> Result<Self> {
        let (group, transfer) = (free_port()?, free_port()?);
        let options = format!(
            "gmcast.listen_addr=tcp://127.0.0.1:{group};base_host=127.0.0.1;base_port={group};\
             ist.recv_addr=127.0.0.1:{transfer};gcache.size=1M"
        );
        let options = [
            "--wsrep-on=ON".to_owned(),
            format!("--wsrep-provider={}", provider.display()),
            format!("--wsrep-provider-options={options}"),
            "--wsrep-cluster-address=gcomm://".to_owned(),
            "--wsrep-node-address=127.0.0.1".to_owned(),
            "--binlog-format=ROW".to_owned(),
            "--innodb-autoinc-lock-mode=2".to_owned(),
        ];
        Self::start_plain(folder, &options).await
    }

    async fn start_with(folder: &Path, tls: Option<&ServerTls<'_>>, options: &[String]) -> Result<Self> {
        let owner = Owner::find("mysql").await?;
        let folder = folder.join("mariadb");
        owner.make_folder(&folder)?;
        let (server, install) = (find_program("mariadbd", [])?, find_program("mariadb-install-db", [])?);
        let mut install = owner.command(&install, &folder);
        install.arg("--no-defaults").arg(format!("--datadir={}", folder.join("data").display()));
        install.args(["--auth-root-authentication-method=normal", "--skip-test-db"]);
        run(&mut install, "make the tables of a MariaDB").await?;
        if let Some(tls) = tls {
            tls.write(owner, &folder)?;
        }

        let port = free_port()?;
        let mut mariadbd = owner.command(&server, &folder);
        mariadbd.args(["--no-defaults", "--bind-address=127.0.0.1", "--skip-name-resolve"]);
        mariadbd.args(["--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=8M"]);
        mariadbd.arg(format!("--port={port}"));
        let file = |setting: &str, file: &str| format!("--{setting}={}", folder.join(file).display());
        mariadbd.args([file("datadir", "data"), file("socket", "socket"), file("pid-file", "pid")]);
        if tls.is_some() {
            mariadbd.arg("--require-secure-transport=on");
            mariadbd.args([file("ssl-cert", "server.pem"), file("ssl-key", "server-key.pem")]);
            mariadbd.arg(file("ssl-ca", "client-ca.pem"));
        }
        mariadbd.args(options);
        let log = folder.join("mariadb.log");
        let daemon = Daemon::spawn(NAME, "KILL", &mut mariadbd, &log)?;
        let mut server = Self { owner, client: find_program("mariadb", [])?, folder, port, daemon };
        let answers = eventually("MariaDB to answer", PATIENCE, async || {
            if let Some(ended) = server.daemon.ended() {
                return Some(Err(ended));
            }
            server.query("select 1").await.ok().map(Ok)
        });
        if let Err(ended) = answers.await {
            bail!("MariaDB ended ({ended}); see {}", log.display());
        }
        Ok(server)
    }

    /// Makes a database of a user's own. The user must show a client certificate, and has this password.
    pub async fn add_user(&self, user: &str, password: &str, database: &str) -> Result<()> {
        self.make_user(user, &format!("'{password}' require x509"), database).await
    }

    /// Makes a database of a user's own, who logs in by this password, and has no right beyond it.
    pub async fn add_plain_user(&self, user: &str, password: &str, database: &str) -> Result<()> {
        self.make_user(user, &format!("'{password}'"), database).await
    }

    async fn make_user(&self, user: &str, identified_by: &str, database: &str) -> Result<()> {
        for sql in [
            format!("create database {database} character set utf8mb4"),
            format!("create user {user}@'%' identified by {identified_by}"),
            format!("grant all on {database}.* to {user}@'%'"),
        ] {
            self.query(&sql).await?;
        }
        Ok(())
    }

    /// Its host and port in a URL.
    pub fn address(&self, host: &str) -> String {
        format!("{host}:{}", self.port)
    }

    /// Gives it another certificate, which it shows to whoever connects from here on.
    pub async fn change_certificate(&self, tls: &ServerTls<'_>) -> Result<()> {
        tls.write(self.owner, &self.folder)?;
        self.query("flush ssl").await.map(drop)
    }

    /// What a statement of the administrator gives.
    pub async fn query(&self, sql: &str) -> Result<String> {
        let mut client = self.owner.command(&self.client, &self.folder);
        client.args(["--no-defaults", "--user=root", "--batch", "--skip-column-names", "--socket=socket"]);
        client.args(["--execute", sql]);
        run(&mut client, "ask MariaDB").await.context("by the administrator's socket")
    }
}
