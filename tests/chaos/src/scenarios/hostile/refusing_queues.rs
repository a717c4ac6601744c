//! Reply queues that refuse every message: the broker nacks, and nothing says when it will take more.

use std::sync::Arc;

use anyhow::Result;
use lapin::types::AMQPValue;

use super::{
    attack::Target,
    hosts::Place,
    publisher::{Message, Outbox, every, pace},
};

/// In a burst: so many replies to one queue, and as many to many queues.
const TO_EACH_SIDE: usize = 300;
const MANY: usize = 30;
const PER_SECOND: u32 = 100;

pub(super) async fn run(outbox: Outbox, target: Arc<Target>) -> Result<()> {
    let refuses = [
        ("x-max-length", AMQPValue::LongInt(0)),
        ("x-overflow", AMQPValue::LongString("reject-publish".into())),
    ];
    let queues: Vec<_> = (0..=MANY).map(|number| format!("hostile-publisher.full-{number}")).collect();
    for queue in &queues {
        outbox.declare(queue, &refuses).await?;
    }
    let (one, many) = queues.split_at(1);
    let scm = target.scm(Place::GitHub);
    let mut bursts = every(target.every(40, 15));
    loop {
        bursts.tick().await;
        let mut ticks = pace(PER_SECOND);
        for number in 0..2 * TO_EACH_SIDE {
            ticks.tick().await;
            let mut message = Message::request("refusing-queues", &scm.host(), 60);
            message.reply_to = if number % 2 == 0 { &one[0] } else { &many[number / 2 % MANY] };
            outbox.publish(message).await?;
        }
    }
}
