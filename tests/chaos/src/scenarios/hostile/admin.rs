//! Connections to each worker's admin endpoint that say nothing, or say it slowly.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    task::JoinSet,
    time::sleep,
};

use super::{attack::Target, publisher::pace};

/// For each worker: together more than it may open files.
const IDLE: usize = 400;
const SLOW: usize = 100;
const CONNECTS_PER_SECOND: u32 = 300;

/// How long a connection that was ended stays away.
const AGAIN: Duration = Duration::from_secs(2);

pub(super) async fn run(target: Arc<Target>) -> Result<()> {
    let mut connections = JoinSet::new();
    let mut ticks = pace(CONNECTS_PER_SECOND);
    for number in 0..IDLE + SLOW {
        for worker in &target.admin {
            ticks.tick().await;
            connections.spawn(hold(worker.clone(), number % 5 == 0));
        }
    }
    while connections.join_next().await.is_some() {}
    Ok(())
}

/// Holds a connection to a worker for as long as it lets us, and then another one.
async fn hold(mut worker: watch::Receiver<SocketAddr>, slow: bool) {
    loop {
        let address = *worker.borrow_and_update();
        if let Ok(stream) = TcpStream::connect(address).await {
            talk(stream, slow).await;
        }
        // A worker that was killed is soon elsewhere.
        sleep(AGAIN).await;
    }
}

async fn talk(mut stream: TcpStream, slow: bool) {
    if !slow {
        // Silent, until the other side ends it.
        let mut byte = [0];
        let _ = stream.read(&mut byte).await;
        return;
    }
    let mut next: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: a\r\nX-Slow: ";
    while stream.write_all(next).await.is_ok() {
        next = b"x";
        sleep(Duration::from_secs(1)).await;
    }
}
