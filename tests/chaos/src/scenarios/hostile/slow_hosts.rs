//! Hosts that are a burden to whoever calls them, and users who need them.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use tokio::time::sleep;

use super::{
    attack::Target,
    hosts::Place,
    publisher::{Message, Outbox, every, pace},
};

/// So many refreshes at once at the host that sends endless 1xx answers.
const AT_ONCE: usize = 8;
/// Of the hosts that hang and drip, in turn.
const PER_SECOND: u32 = 2;
const USERS: usize = 10;
const PATIENCE_SECS: u32 = 10;

pub(super) async fn run(outbox: Outbox, target: Arc<Target>) -> Result<()> {
    let user = |number: usize| format!("slow-hosts-{number}");
    for place in [Place::Endless, Place::Hanging, Place::Dripping] {
        let scm = target.scm(place);
        for number in 0..USERS {
            outbox.store(scm, &scm.authorize_until(&user(number), scm.now_ms() - 60_000)).await?;
        }
    }
    sleep(Duration::from_secs(1)).await;
    let ask = async |place, number| {
        let mut message = Message::request(&user(number), &target.scm(place).host(), 30);
        message.expiration_secs = Some(PATIENCE_SECS);
        outbox.publish(message).await
    };
    let mut bursts = every(target.every(20, 10));
    let mut ticks = pace(PER_SECOND);
    let mut number = 0;
    loop {
        tokio::select! {
            _ = bursts.tick() => {
                for number in 0..AT_ONCE {
                    ask(Place::Endless, number).await?;
                }
            }
            _ = ticks.tick() => {
                number += 1;
                let place = if number % 2 == 0 { Place::Hanging } else { Place::Dripping };
                ask(place, number / 2 % USERS).await?;
            }
        }
    }
}
