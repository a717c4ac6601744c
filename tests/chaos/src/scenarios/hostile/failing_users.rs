//! Users whose refreshes always fail, at the hosts where everybody else's work.

use std::sync::Arc;

use anyhow::Result;
use tokenkeeper_testkit::scm::{Fault, SimulatedScm};

use super::{
    attack::Target,
    hosts::Place,
    publisher::{Outbox, every, pace},
};

/// A user whose refresh token the host cannot cope with.
const BROKEN: &str = "failing-users-500";
/// A user who is told to stay away for three years.
const FAR: &str = "failing-users-retry-after";
const FAR_SECS: u64 = 99_999_999;
/// Users whose refresh tokens are dead, who log in with another dead one again and again.
const DEAD: usize = 8;

/// All of these go on asking, one request a tick.
const PER_SECOND: u32 = 10;

pub(super) async fn run(outbox: Outbox, target: Arc<Target>) -> Result<()> {
    let scms = [Place::BitbucketServer, Place::GitHub].map(|place| target.scm(place));
    for scm in scms {
        scm.fail_always_for(BROKEN, Fault::Status(500));
        scm.fail_always_for(FAR, Fault::RetryAfter { status: 429, seconds: FAR_SECS });
    }
    let dead: Vec<_> = (0..DEAD).map(|number| format!("failing-users-dead-{number}")).collect();
    let everybody: Vec<_> = [BROKEN, FAR].into_iter().chain(dead.iter().map(String::as_str)).collect();
    for scm in scms {
        for user in &everybody {
            log_in(&outbox, scm, user).await?;
        }
    }
    let mut logins = every(target.every(10, 5));
    let mut ticks = pace(PER_SECOND);
    let mut number = 0;
    loop {
        tokio::select! {
            _ = logins.tick() => {
                for user in &dead {
                    log_in(&outbox, scms[0], user).await?;
                    scms[0].revoke(user);
                }
                // At once, so that nobody else's refresh comes between them.
                for user in &dead {
                    outbox.request(user, &scms[0].host(), 60).await?;
                }
            }
            _ = ticks.tick() => {
                number += 1;
                let scm = scms[number % 2];
                outbox.request(everybody[number / 2 % everybody.len()], &scm.host(), 60).await?;
            }
        }
    }
}

/// With a pair that has expired, so that each request needs the host.
async fn log_in(outbox: &Outbox, scm: &SimulatedScm, user: &str) -> Result<()> {
    outbox.store(scm, &scm.authorize_until(user, scm.now_ms() - 60_000)).await
}
