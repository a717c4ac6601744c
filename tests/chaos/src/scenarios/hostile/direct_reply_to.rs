//! Direct reply-tos of which the broker makes nothing: it ends the connection of whoever publishes to some of them.

use std::sync::Arc;

use anyhow::Result;
use base64::{Engine, prelude::BASE64_STANDARD};

use super::{
    attack::Target,
    hosts::Place,
    publisher::{Message, Outbox, pace},
};

const PER_SECOND: u32 = 1;

const PREFIX: &str = "amq.rabbitmq.reply-to.";

/// What stands behind the name of the process: a key of 16 bytes.
const KEY: &str = "g2dkAA1rZXkta2V5LWtleQ==";

pub(super) async fn run(outbox: Outbox, target: Arc<Target>) -> Result<()> {
    let scm = target.scm(Place::GitHub);
    let mut ticks = pace(PER_SECOND);
    for name in names().iter().cycle() {
        ticks.tick().await;
        // Nobody knows the user, and the reply says so.
        let mut message = Message::request("direct-reply-to", &scm.host(), 60);
        message.reply_to = name;
        outbox.publish(message).await?;
    }
    Ok(())
}

/// Names that are malformed, and some that only look as if somebody listened.
fn names() -> Vec<String> {
    // The external term format of Erlang: <https://www.erlang.org/doc/apps/erts/erl_ext_dist.html>.
    let broken: [&[u8]; 6] = [
        b"\x83",
        b"\x83\xff\x01\x02",
        // A process id that ends in the middle.
        b"\x83\x58\x77\xc8chaos@localhost",
        // An atom where a process id belongs.
        b"\x83\x77\x02ok",
        // A list of four thousand million elements.
        b"\x83\x6c\xff\xff\xff\xff",
        // Compressed, with a size that is a lie.
        b"\x83\x50\xff\xff\xff\xff\x78\x9c\x01",
    ];
    let terms = broken.into_iter().map(<[u8]>::to_vec);
    let processes = ["chaos@localhost", "reply@133742", "gone@localhost"].map(process);
    let encoded =
        terms.chain(processes).map(|term| format!("{PREFIX}{}.{KEY}", BASE64_STANDARD.encode(term)));
    let no_terms = ["", ".", "!!!", "!!!.!!!", "YQ", "YQ==.", "....", "g2dkAA"];
    encoded.chain(no_terms.map(|text| format!("{PREFIX}{text}"))).collect()
}

/// The name of a process on this node that there never was.
fn process(node: &str) -> Vec<u8> {
    let mut term = vec![0x83, 0x58, 0x77, u8::try_from(node.len()).unwrap_or(u8::MAX)];
    term.extend(node.as_bytes());
    for number in [7_654_321_u32, 0, 1_700_000_000] {
        term.extend(number.to_be_bytes());
    }
    term
}
