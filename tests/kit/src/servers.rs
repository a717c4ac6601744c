//! A PostgreSQL, a MariaDB and a RabbitMQ that belong to this run alone, so that they may be broken, or speak TLS.

mod daemon;
mod mariadb;
mod postgres;
mod rabbitmq;

use std::{
    net::{Ipv4Addr, TcpListener},
    path::Path,
};

use anyhow::{Context, Result};

use self::daemon::Owner;
pub use self::{
    daemon::are_installed,
    mariadb::MariaDb,
    postgres::Postgres,
    rabbitmq::{Cluster, Permissions, RabbitMq},
};

/// PostgreSQL and RabbitMQ. They end, and whatever they wrote with them, when this is dropped.
pub struct Servers {
    /// The database.
    pub postgres: Postgres,
    /// The broker.
    pub rabbitmq: RabbitMq,
}

impl Servers {
    /// Starts both, with everything they write below `folder`.
    pub async fn start(folder: &Path) -> Result<Self> {
        let (postgres, rabbitmq) =
            tokio::try_join!(Postgres::start(folder, None), RabbitMq::start(folder, None))?;
        Ok(Self { postgres, rabbitmq })
    }
}

/// A server's TLS: texts in PEM.
pub struct ServerTls<'a> {
    /// Its certificate.
    pub cert: &'a str,
    /// The private key of that.
    pub key: &'a str,
    /// The authority that client certificates must be signed by.
    pub client_ca: &'a str,
}

impl ServerTls<'_> {
    /// Writes it into a server's folder.
    fn write(&self, owner: Owner, folder: &Path) -> Result<()> {
        owner.write(&folder.join("server.pem"), self.cert)?;
        owner.write_secret(&folder.join("server-key.pem"), self.key)?;
        owner.write(&folder.join("client-ca.pem"), self.client_ca)
    }
}

/// A port of 127.0.0.1 that nobody listens on now.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    Ok(listener.local_addr()?.port())
}
