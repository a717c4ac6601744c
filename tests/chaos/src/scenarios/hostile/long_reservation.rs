//! One user who holds a token for long, and hundreds of requests that need another one.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use tokio::time::sleep;

use super::{
    attack::Target,
    hosts::Place,
    publisher::{Message, Outbox, every, pace},
};

const WAITING: u32 = 600;
const PER_SECOND: u32 = 100;
const USER: &str = "long-reservation";

/// The token lives for a minute. It is held for twenty seconds of it, and wanted for longer than is left.
const HELD_SECS: u64 = 20;
const NEEDED_SECS: u64 = 55;
const PATIENCE_SECS: u32 = 60;
const LIVES_MS: i64 = 40_000;

pub(super) async fn run(outbox: Outbox, target: Arc<Target>) -> Result<()> {
    let scm = target.scm(Place::Waiting);
    let mut rounds = every(Duration::from_secs(45));
    loop {
        rounds.tick().await;
        outbox.store(scm, &scm.authorize_until(USER, scm.now_ms() + LIVES_MS)).await?;
        sleep(Duration::from_secs(1)).await;
        outbox.request(USER, &scm.host(), HELD_SECS).await?;
        sleep(Duration::from_millis(500)).await;
        let mut ticks = pace(PER_SECOND);
        for _ in 0..WAITING {
            ticks.tick().await;
            let mut message = Message::request(USER, &scm.host(), NEEDED_SECS);
            message.expiration_secs = Some(PATIENCE_SECS);
            outbox.publish(message).await?;
        }
    }
}
