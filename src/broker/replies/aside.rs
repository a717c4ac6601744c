//! Replies that may cost their connection, over connections that carry no requests.
//!
//! Only the broker can judge a direct reply-to. RabbitMQ 3.10 ends the connection of a publisher whose name holds a broken term,
//! and closes channels over others. So such replies have a connection of their own from the start. If a reply's channel is
//! closed, the reply is tried once more alone. If that channel is closed, too, this reply is the cause, and no other reply is
//! blamed.

use std::sync::Arc;

use lapin::{Channel, Connection};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use super::line::{Line, Tried};
use super::{OutgoingReply, Patience};
use crate::broker::confirmed::confirming_channel;
use crate::broker::{BrokerError, connect, take_leave};
use crate::limits::bulkhead::STALLED_AFTER;
use crate::settings::Broker;
use crate::telemetry::{self, Link, ReplyGivenUp};

/// The connections for such replies, opened for the first one.
#[derive(Debug)]
pub struct Aside {
    settings: Arc<Broker>,
    /// Names the connections at the broker.
    name: String,
    together: Mutex<Option<Arc<Wire>>>,
    /// Locked while a reply is under way, so there is never a second one.
    alone: Mutex<Option<Arc<Wire>>>,
}

#[derive(Debug)]
struct Wire {
    connection: Connection,
    channel: Channel,
}

impl Wire {
    fn is_open(&self) -> bool {
        self.connection.status().connected() && self.channel.status().connected()
    }
}

impl Aside {
    pub fn new(settings: Arc<Broker>, name: String) -> Self {
        Self { settings, name, together: Mutex::default(), alone: Mutex::default() }
    }

    pub async fn close(&self) {
        for wire in [&self.together, &self.alone] {
            if let Some(wire) = wire.lock().await.take() {
                take_leave(&wire.connection).await;
            }
        }
    }

    /// Publishes a reply beside others.
    pub(super) async fn publish(
        &self,
        reply: &OutgoingReply<'_>,
        body: &[u8],
        patience: &mut impl Patience,
    ) -> Tried {
        let wire = {
            let mut together = self.together.lock().await;
            match self.open(&mut together).await {
                Ok(wire) => wire,
                Err(error) => return Tried::NoConnection(error),
            }
        };
        self.publish_over(&wire, reply, body, patience).await
    }

    /// Publishes a reply alone. It has two seconds, because others wait for their turn.
    pub(super) async fn publish_alone(
        &self,
        reply: &OutgoingReply<'_>,
        body: &[u8],
        patience: &mut impl Patience,
    ) -> Tried {
        let mut alone = loop {
            let now = Instant::now();
            if let Ok(alone) = timeout_at(now + STALLED_AFTER, self.alone.lock()).await {
                break alone;
            }
            if patience(now).is_none_or(|until| until <= now) {
                return Tried::GivenUp(ReplyGivenUp::Unconfirmed);
            }
        };
        let wire = match self.open(&mut alone).await {
            Ok(wire) => wire,
            Err(error) => return Tried::NoConnection(error),
        };
        let mut briefly = |_: Instant| None;
        self.publish_over(&wire, reply, body, &mut briefly).await
    }

    async fn publish_over(
        &self,
        wire: &Wire,
        reply: &OutgoingReply<'_>,
        body: &[u8],
        patience: &mut impl Patience,
    ) -> Tried {
        let line = Line { connection: &wire.connection, channel: &wire.channel, caretaker: None };
        line.publish(reply, body, self.settings.operation_timeout, patience).await
    }

    async fn open(&self, slot: &mut Option<Arc<Wire>>) -> Result<Arc<Wire>, BrokerError> {
        if let Some(wire) = slot.as_ref().filter(|wire| wire.is_open()) {
            return Ok(Arc::clone(wire));
        }
        if let Some(broken) = slot.take() {
            telemetry::reply_connection_lost();
            take_leave(&broken.connection).await;
        }
        let connection = connect(&self.settings, &self.name).await?;
        let channel = confirming_channel(&connection, &self.settings).await?;
        telemetry::broker_connected(Link::Reply, self.settings.display_url());
        let wire = Arc::new(Wire { connection, channel });
        *slot = Some(Arc::clone(&wire));
        Ok(wire)
    }
}
