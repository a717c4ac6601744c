//! Too much of what is allowed.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use serde_json::json;
use tokenkeeper_testkit::queues::TOKEN_STORE;
use tokio::time::{interval, sleep};

use super::{
    attack::Target,
    hosts::Place,
    publisher::{Message, Outbox, every, pace},
};

/// Requests of a flood, and how many are sent in a hundredth of a second.
const FLOOD: usize = 20_000;
const IN_A_TICK: usize = 20;
const TICKS_PER_SECOND: u32 = 100;
/// Who they are for.
const USERS: usize = 50;

/// Users of a Bitbucket Server who are asked for with a lifetime of a second, each about once a second.
const SHORT_LIVED: usize = 20;
const SHORT_LIVED_PER_SECOND: u32 = 18;

/// Pairs that are made up, stored and asked for.
const MADE_UP_PER_SECOND: u32 = 10;

pub(super) async fn run(outbox: Outbox, target: Arc<Target>) -> Result<()> {
    tokio::try_join!(
        flood(&outbox, &target),
        ask_for_short_lifetimes(&outbox, &target),
        make_pairs_up(&outbox, &target),
    )?;
    Ok(())
}

async fn flood(outbox: &Outbox, target: &Target) -> Result<()> {
    let scm = target.scm(Place::GitHub);
    let users: Vec<_> = (0..USERS).map(|number| format!("flood-{number}")).collect();
    let mut floods = every(target.every(60, 20));
    let count = if target.scaled_down { FLOOD / 4 } else { FLOOD };
    loop {
        floods.tick().await;
        for user in &users {
            outbox.store(scm, &scm.authorize(user)).await?;
        }
        sleep(Duration::from_secs(1)).await;
        // What is late is caught up with: a flood is no trickle.
        let mut ticks = interval(Duration::from_secs(1) / TICKS_PER_SECOND);
        for number in 0..count {
            if number % IN_A_TICK == 0 {
                ticks.tick().await;
            }
            outbox.request(&users[number % USERS], &scm.host(), 5).await?;
        }
    }
}

/// Each reservation ends before the next request, so each of them may lead to an opportunistic refresh.
async fn ask_for_short_lifetimes(outbox: &Outbox, target: &Target) -> Result<()> {
    let scm = target.scm(Place::BitbucketServer);
    let users: Vec<_> = (0..SHORT_LIVED).map(|number| format!("short-lived-{number}")).collect();
    for user in &users {
        outbox.store(scm, &scm.authorize(user)).await?;
    }
    sleep(Duration::from_secs(1)).await;
    let mut ticks = pace(SHORT_LIVED_PER_SECOND);
    for user in users.iter().cycle() {
        ticks.tick().await;
        outbox.request(user, &scm.host(), 1).await?;
    }
    Ok(())
}

/// The host knows none of these tokens, and is asked about each.
async fn make_pairs_up(outbox: &Outbox, target: &Target) -> Result<()> {
    let host = target.scm(Place::BitbucketServer).host();
    let mut random = fastrand::Rng::with_seed(0);
    let mut ticks = pace(MADE_UP_PER_SECOND);
    for number in 0.. {
        ticks.tick().await;
        let user = format!("made-up-{number}");
        let mut token = || -> String { (0..64).map(|_| random.alphanumeric()).collect() };
        let body = json!({
            "user_id": user, "host": host,
            "token": {"value": token(), "refresh_token": token(), "expires_at": "2020-01-01T00:00:00.000Z"},
        });
        outbox.publish(Message::new(TOKEN_STORE, body)).await?;
        sleep(Duration::from_millis(50)).await;
        outbox.request(&user, &host, 60).await?;
    }
    Ok(())
}
