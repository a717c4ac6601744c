//! Whether the queues have a quorum. A quorum queue of which more than half of the nodes are away takes and gives nothing, and
//! tells nobody: consumers stay subscribed, and confirms do not come.

use std::time::Duration;

use lapin::Connection;
use lapin::options::{BasicGetOptions, BasicNackOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use tokio::time::timeout;

use super::topology::short;
use super::{BrokerError, Feed, Names, within};
use crate::settings::Broker;

/// How long a queue has to answer. A node elects another leader within a second or two.
const PATIENCE: Duration = Duration::from_secs(5);

/// The queues without a leader, of those that this worker consumes: a leader would know of its consumer. Over a connection that
/// carries nothing else, since RabbitMQ 3.10 ends it where a queue cannot answer.
///
/// # Errors
/// [`BrokerError::NoQuorum`] of the queue of parked pairs: it has a leader, or none, and its nodes cannot agree. All queues of a
/// worker were declared together, so the others stand no better as a rule. Any other error says nothing of queues.
pub async fn without_leader(
    connection: &Connection,
    settings: &Broker,
    consumed: impl Fn(Feed) -> bool,
) -> Result<Vec<Feed>, BrokerError> {
    let names = Names::new(&settings.prefix);
    let limit = settings.operation_timeout;
    let channel =
        within(limit, || "open a channel for a check".to_owned(), connection.create_channel()).await?;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let mut without = Vec::new();
    for feed in Feed::ALL.into_iter().filter(|feed| consumed(*feed)) {
        let queue = names.queue(feed);
        let look = channel.queue_declare(short(&queue)?, passive, FieldTable::default());
        let found = within(limit, || format!("look at queue {queue}"), look).await?;
        if found.consumer_count() == 0 && consumed(feed) {
            without.push(feed);
        }
    }
    let queue = names.parked_pairs();
    let look = channel.queue_declare(short(&queue)?, passive, FieldTable::default());
    let found = within(limit, || format!("look at queue {queue}"), look).await?;
    // To take from a queue is for its nodes to agree on. A pair would count as delivered once more, so not where there are some.
    if found.message_count() == 0 {
        let get = channel.basic_get(short(&queue)?, BasicGetOptions::default());
        match timeout(PATIENCE, get).await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(pair))) => {
                let requeue = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
                within(limit, || "give a parked pair back".to_owned(), pair.nack(requeue)).await?;
            }
            Ok(Err(error)) => {
                let error = BrokerError::Amqp { action: format!("read queue {queue}"), error };
                // 541, once the broker itself has lost patience.
                return Err(if error.is_internal() { BrokerError::NoQuorum { queue } } else { error });
            }
            // Unless it is the node that is silent.
            Err(_) => {
                within(limit, || "open a channel for a check".to_owned(), connection.create_channel())
                    .await?;
                return Err(BrokerError::NoQuorum { queue });
            }
        }
    }
    within(limit, || "close a channel".to_owned(), channel.close(200, "looked".into())).await?;
    Ok(without)
}
