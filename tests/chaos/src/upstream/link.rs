//! Connections to the broker that are made again whenever they break.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use futures_util::StreamExt;
use lapin::{
    Connection, ConnectionProperties,
    message::Delivery,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::AGAIN;

const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
const PREFETCH: u16 = 1000;

/// Connects, with a heartbeat that soon notices a broker that is gone.
pub(super) async fn connect(url: &str) -> Result<Connection> {
    let properties = ConnectionProperties::default().with_connection_name("tokenkeeper-chaos".into());
    let url = format!("{url}?heartbeat=5");
    Ok(timeout(CONNECT_PATIENCE, Connection::connect(&url, properties)).await.context("no answer")??)
}

/// The connection to publish over, one after the other.
#[derive(Clone)]
pub(super) struct Links(watch::Receiver<Option<Arc<Connection>>>);

impl Links {
    /// Keeps a connection.
    pub(super) fn start(url: &str, tasks: &mut JoinSet<()>) -> Self {
        let (sender, receiver) = watch::channel(None);
        tasks.spawn(keep(url.to_owned(), sender));
        Self(receiver)
    }

    /// The connection of now, as soon as there is one.
    pub(super) async fn current(&mut self) -> Arc<Connection> {
        loop {
            let connection = self.0.borrow_and_update().clone();
            if let Some(connection) = connection.filter(|connection| connection.status().connected()) {
                return connection;
            }
            if self.0.changed().await.is_err() {
                // The keeper ends with everybody else.
                std::future::pending::<()>().await;
            }
        }
    }
}

async fn keep(url: String, sender: watch::Sender<Option<Arc<Connection>>>) {
    loop {
        if let Ok(connection) = connect(&url).await {
            let connection = Arc::new(connection);
            sender.send_replace(Some(Arc::clone(&connection)));
            while connection.status().connected() {
                sleep(AGAIN).await;
            }
            sender.send_replace(None);
        }
        sleep(AGAIN).await;
    }
}

/// A durable queue with copies on every node.
pub(super) struct Queue {
    name: String,
    arguments: FieldTable,
}

impl Queue {
    pub(super) fn quorum(name: &str) -> Self {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        Self { name: name.to_owned(), arguments }
    }
}

/// Declares the queue and consumes it until something breaks; each delivery is acked when it was looked at.
pub(super) async fn consume(url: &str, queue: &Queue, mut look: impl FnMut(&Delivery)) -> Result<()> {
    let connection = connect(url).await?;
    let channel = connection.create_channel().await?;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.name.as_str().into(), durable, queue.arguments.clone()).await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let mut deliveries = channel
        .basic_consume(queue.name.as_str().into(), "answers".into(), options, FieldTable::default())
        .await?;
    while let Some(delivery) = deliveries.next().await {
        let delivery = delivery?;
        look(&delivery);
        delivery.acker.ack(BasicAckOptions::default()).await?;
    }
    bail!("the queue {} is not consumed any more", queue.name)
}
