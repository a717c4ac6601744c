//! A token endpoint that takes as long as its path says and grants everything: in a process of its own, so that its processor time is nobody
//! else's. The kit's simulated SCM keeps a record of every call, which a storm of refreshes would pay for.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener as StdListener},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use axum::{
    Router,
    extract::{Path, State},
    http::header::CONTENT_TYPE,
    response::IntoResponse,
    routing::{get, post},
};
use clap::Args;
use tokenkeeper_testkit::{
    http,
    wait::{PATIENCE, eventually},
};
use tokio::{
    net::TcpListener,
    process::{Child, Command},
    time::sleep,
};

use crate::process_of_ours;

/// How long a token lives that it grants, in seconds.
const LIFETIME_SECS: u32 = 7_200;

/// What the endpoint is told.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The port on 127.0.0.1.
    #[arg(long)]
    port: u16,
}

/// Grants until it is killed.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let granted = Arc::new(AtomicU64::new(0));
    let router = Router::new()
        .route("/token/{milliseconds}", post(grant))
        .route(
            "/granted",
            get(async |State(granted): State<Arc<AtomicU64>>| granted.load(Ordering::Relaxed).to_string()),
        )
        .with_state(granted);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, arguments.port));
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    axum::serve(listener, router).await.context("serve the token endpoint")
}

async fn grant(Path(milliseconds): Path<u64>, State(granted): State<Arc<AtomicU64>>) -> impl IntoResponse {
    let number = granted.fetch_add(1, Ordering::Relaxed);
    sleep(Duration::from_millis(milliseconds)).await;
    // As long as a token of Bitbucket Data Center.
    let body = format!(
        r#"{{"access_token":"access-{number:0>57}","refresh_token":"refresh-{number:0>56}","token_type":"bearer","scope":"repo","expires_in":{LIFETIME_SECS}}}"#
    );
    ([(CONTENT_TYPE, "application/json")], body)
}

/// The endpoint's process. It ends when this is dropped.
pub(crate) struct Endpoint {
    port: u16,
    _process: Child,
}

impl Endpoint {
    /// Starts one, and waits until it answers.
    pub(crate) async fn start() -> Result<Self> {
        let port = free_port()?;
        let mut command: Command = process_of_ours("endpoint")?;
        let process =
            command.args(["--port", &port.to_string()]).spawn().context("start the token endpoint")?;
        let endpoint = Self { port, _process: process };
        eventually("the token endpoint to answer", PATIENCE, async || endpoint.granted().await.ok()).await;
        Ok(endpoint)
    }

    /// Where a refresh takes so long.
    pub(crate) fn token_url(&self, latency: Duration) -> String {
        format!("http://127.0.0.1:{}/token/{}", self.port, latency.as_millis())
    }

    /// How many pairs it has granted.
    pub(crate) async fn granted(&self) -> Result<u64> {
        let url = format!("http://127.0.0.1:{}/granted", self.port);
        let answer = http::client().get(url).send().await?.error_for_status()?.text().await?;
        answer.parse().context("the token endpoint tells no number")
    }
}

/// A port of 127.0.0.1 that nobody listens on now.
pub(crate) fn free_port() -> Result<u16> {
    let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    Ok(listener.local_addr()?.port())
}
