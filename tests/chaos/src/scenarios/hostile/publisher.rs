//! The hostile publisher's way to the broker: as fast as it is told, without waiting for confirms or replies.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties,
    options::{BasicPublishOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};
use tokenkeeper_testkit::{
    queues::{TOKEN_REQUEST, TOKEN_STORE},
    scm::{IssuedPair, SimulatedScm},
};
use tokio::time::{Interval, MissedTickBehavior, interval};

/// Its account at the broker, and the first part of the names of its queues.
pub(super) const NAME: &str = "hostile-publisher";

/// Where replies go that it does not care for: a queue that keeps the last one.
const SINK: &str = "hostile-publisher.sink";

/// A connection of the hostile publisher's.
pub(super) struct HostilePublisher(Connection);

impl HostilePublisher {
    pub(super) async fn connect(url: &str) -> Result<Self> {
        let properties = ConnectionProperties::default().with_connection_name(NAME.into());
        Ok(Self(Connection::connect(url, properties).await.context("connect the hostile publisher")?))
    }

    /// A channel for one attack, to the contract's exchange.
    pub(super) async fn outbox(&self, attack: &'static str, exchange: &str) -> Result<Outbox> {
        let channel = self.0.create_channel().await?;
        let outbox = Outbox { channel, exchange: exchange.into(), attack, sent: Arc::default() };
        outbox.declare(SINK, &[("x-max-length", AMQPValue::LongInt(1))]).await?;
        Ok(outbox)
    }
}

/// A channel for one attack.
#[derive(Clone)]
pub(super) struct Outbox {
    channel: Channel,
    exchange: Arc<str>,
    attack: &'static str,
    sent: Arc<AtomicUsize>,
}

/// What is published.
pub(super) struct Message<'a> {
    pub(super) routing_key: &'a str,
    pub(super) body: Value,
    pub(super) reply_to: &'a str,
    /// How long the publisher says that it waits.
    pub(super) expiration_secs: Option<u32>,
    /// What its correlation id begins with; the name of the attack otherwise.
    pub(super) id: Option<&'a str>,
}

impl<'a> Message<'a> {
    pub(super) fn new(routing_key: &'a str, body: Value) -> Self {
        Self { routing_key, body, reply_to: SINK, expiration_secs: None, id: None }
    }

    /// A request for a token.
    pub(super) fn request(user: &str, host: &str, lifetime_secs: u64) -> Self {
        let body = json!({"user_id": user, "host": host, "requested_lifetime_secs": lifetime_secs});
        Self::new(TOKEN_REQUEST, body)
    }
}

impl Outbox {
    /// Makes a queue of the hostile publisher's, with these arguments.
    pub(super) async fn declare(&self, queue: &str, arguments: &[(&str, AMQPValue)]) -> Result<()> {
        let mut table = FieldTable::default();
        for (name, value) in arguments {
            table.insert((*name).into(), value.clone());
        }
        let options = QueueDeclareOptions::default();
        self.channel
            .queue_declare(queue.into(), options, table)
            .await
            .with_context(|| format!("declare {queue}"))?;
        Ok(())
    }

    /// Publishes a message. Every other one says who its publisher is; the others leave it open.
    pub(super) async fn publish(&self, message: Message<'_>) -> Result<()> {
        let number = self.sent.fetch_add(1, Ordering::Relaxed);
        let id = message.id.unwrap_or(self.attack);
        let mut properties = BasicProperties::default()
            .with_correlation_id(format!("{id}-{number}").into())
            .with_reply_to(message.reply_to.into());
        if number.is_multiple_of(2) {
            properties = properties.with_user_id(NAME.into());
        }
        if let Some(secs) = message.expiration_secs {
            properties = properties.with_expiration((secs * 1000).to_string().into());
        }
        let body = message.body.to_string();
        let options = BasicPublishOptions::default();
        let (exchange, key) = (self.exchange.as_ref().into(), message.routing_key.into());
        let published =
            self.channel.basic_publish(exchange, key, options, body.as_bytes(), properties).await?;
        // No confirm was asked for, so there is none to wait for.
        drop(published);
        Ok(())
    }

    /// Asks for a token.
    pub(super) async fn request(&self, user: &str, host: &str, lifetime_secs: u64) -> Result<()> {
        self.publish(Message::request(user, host, lifetime_secs)).await
    }

    /// Stores a pair of an own user.
    pub(super) async fn store(&self, scm: &SimulatedScm, pair: &IssuedPair) -> Result<()> {
        self.publish(Message::new(TOKEN_STORE, scm.token_store_body(pair))).await
    }

    pub(super) fn attack(&self) -> &'static str {
        self.attack
    }

    /// How many messages it has sent.
    pub(super) fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }
}

/// Ticks so often a second, the first time at once. What is late is not caught up with.
pub(super) fn pace(per_second: u32) -> Interval {
    every(Duration::from_secs(1) / per_second)
}

/// Ticks in this interval, the first time at once.
pub(super) fn every(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
