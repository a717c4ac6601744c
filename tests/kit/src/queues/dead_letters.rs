//! The dead letters that a test's workers, or the broker, have left.

use lapin::options::{BasicGetOptions, QueueDeclareOptions};
use lapin::{BasicProperties, Channel, types::FieldTable};

use super::connect;

/// A message that a worker gave up on.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// The routing key it was published with.
    pub routing_key: String,
    /// Its properties, without the headers.
    pub properties: BasicProperties,
    /// Its headers, those of the dead-lettering among them.
    pub headers: FieldTable,
    /// Its body as it was published.
    pub body: Vec<u8>,
}

/// Takes the dead letters that a test has left, over a connection of its own: the test may be over. None are there where no
/// worker has declared the queue.
pub async fn remaining_dead_letters(url: &str, prefix: &str) -> Vec<DeadLetter> {
    let connection = connect(url).await;
    let channel = connection.create_channel().await.expect("open a channel");
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let queue = format!("{prefix}.dead-letters");
    let mut letters = Vec::new();
    if channel.queue_declare(queue.into(), passive, FieldTable::default()).await.is_ok() {
        while let Some(letter) = next_dead_letter(&channel, prefix).await {
            letters.push(letter);
        }
    }
    connection.close(200, "done".into()).await.expect("close the connection");
    letters
}

pub(super) async fn next_dead_letter(channel: &Channel, prefix: &str) -> Option<DeadLetter> {
    let queue = format!("{prefix}.dead-letters");
    let taken = channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await;
    let delivery = taken.expect("take a dead letter")?.delivery;
    let headers = delivery.properties.headers().clone().unwrap_or_default();
    let properties = delivery.properties.with_headers(FieldTable::default());
    let routing_key = delivery.routing_key.to_string();
    Some(DeadLetter { routing_key, properties, headers, body: delivery.data })
}
