//! Replies that are to go where the worker may write and the publisher may not: a reply about a victim *is* a valid
//! `token.store`, and what lies in the dead letters lies there in clear.

use std::sync::Arc;

use anyhow::Result;
use lapin::types::AMQPValue;
use serde_json::json;
use tokenkeeper_testkit::queues::{TOKEN_STORE, WORKSPACE_START};

use super::{
    attack::Target,
    hosts::Place,
    publisher::{Message, Outbox, pace},
};

/// After the prefix and a dot; some of these are there only where partitions are.
const QUEUES: [&str; 11] = [
    "token-requests",
    "workspace-starts",
    "token-stores",
    "parked-pairs",
    "dead-letters",
    "dead-letters.in-use",
    "token-requests.0",
    "workspace-starts.0",
    "token-stores.0",
    "token-requests.suspects",
    "suspects",
];

/// A queue of the hostile publisher's own whose messages the broker itself passes on, as requests to store a pair.
const DETOUR: &str = "hostile-publisher.detour";

const PER_SECOND: u32 = 10;

/// Asks for victims, so that the reply goes to a queue of the workers, and stores pairs of its own with such replies, so
/// that their tokens come to lie in the dead letters.
pub(super) async fn run(outbox: Outbox, target: Arc<Target>) -> Result<()> {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let arguments = [
        ("x-message-ttl", AMQPValue::LongInt(0)),
        ("x-dead-letter-exchange", text(&target.prefix)),
        ("x-dead-letter-routing-key", text(TOKEN_STORE)),
    ];
    outbox.declare(DETOUR, &arguments).await?;
    let queues = QUEUES.map(|queue| format!("{}.{queue}", target.prefix));
    let own = target.scm(Place::GitHub);
    let mut ticks = pace(PER_SECOND);
    for number in 0.. {
        ticks.tick().await;
        let queue = &queues[number % queues.len()];
        let victim = &target.victims[(number / queues.len()) % target.victims.len()];
        let host = target.scms[victim.scm].host();
        // 8 and 11 have no common factor: each of these meets each queue.
        let mut message = match number % 8 {
            0 => {
                let repositories = [format!("https://{host}/scm/proj/repo.git")];
                let body = json!({
                    "user_id": victim.name.as_ref(), "workspace_id": "ws-1", "repositories": repositories,
                    "requested_lifetime_secs": 1,
                });
                Message::new(WORKSPACE_START, body)
            }
            1 => {
                let pair = own.authorize(&format!("own-queues-{}", number % 5));
                Message::new(TOKEN_STORE, own.token_store_body(&pair))
            }
            2 => {
                // No date: it breaks the contract, and has a token that lives.
                let pair = own.authorize(&format!("own-queues-{}", number % 5));
                let mut body = own.token_store_body(&pair);
                body["token"]["expires_at"] = json!("soon");
                Message::new(TOKEN_STORE, body)
            }
            _ => Message::request(&victim.name, &host, 1),
        };
        message.reply_to = if number % 8 == 3 { DETOUR } else { queue };
        outbox.publish(message).await?;
    }
    Ok(())
}
