//! A PostgreSQL and a RabbitMQ that belong to this run alone, so that they may be broken.

mod daemon;
mod postgres;
mod rabbitmq;

use std::{
    net::{Ipv4Addr, TcpListener},
    path::Path,
};

use anyhow::{Context, Result};

pub(crate) use self::{
    postgres::Postgres,
    rabbitmq::{Permissions, RabbitMq},
};

/// Both of them. They end, and whatever they wrote with them, when this is dropped.
pub(crate) struct Servers {
    pub(crate) postgres: Postgres,
    pub(crate) rabbitmq: RabbitMq,
}

impl Servers {
    /// Starts both, with everything they write below `folder`.
    pub(crate) async fn start(folder: &Path) -> Result<Self> {
        let (postgres, rabbitmq) = tokio::try_join!(Postgres::start(folder), RabbitMq::start(folder))?;
        Ok(Self { postgres, rabbitmq })
    }
}

/// A port of 127.0.0.1 that nobody listens on now.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    Ok(listener.local_addr()?.port())
}
