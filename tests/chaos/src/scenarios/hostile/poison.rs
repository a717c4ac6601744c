//! Messages that end whoever they come to. What is wrong with them stands for a fault that nobody knows yet, so it is a
//! marker that a proxy sees on its way to a worker.

use std::{sync::Arc, time::Duration};

use anyhow::Result;

use super::{
    attack::Target,
    hosts::Place,
    publisher::{Message, Outbox, every},
};

/// Ends the connection of one of the workers each time it goes there.
pub(super) const CUTS: &str = "poison-that-cuts";
/// Ends the process of another one each time it goes there.
pub(super) const KILLS: &str = "poison-that-kills";

/// How many come at once that cut; some of them come to the worker that they cut.
const CUTTING: usize = 3;
/// Of those that kill.
const KILLING: usize = 3;

pub(super) async fn run(outbox: Outbox, target: Arc<Target>) -> Result<()> {
    let mut cuts = every(Duration::from_secs(5));
    let mut kills = every(target.every(30, 12));
    loop {
        let (marker, count) = tokio::select! {
            _ = cuts.tick() => (CUTS, CUTTING),
            _ = kills.tick() => (KILLS, KILLING),
        };
        for _ in 0..count {
            let host = target.scm(Place::GitHub).host();
            let mut message = Message::request("poison", &host, 60);
            message.id = Some(marker);
            outbox.publish(message).await?;
        }
    }
}
