//! ACK: settles deliveries at the broker, in as few frames as their order allows.
//!
//! Each subscription has one task that acks on its channel. Deliveries that are settled while it writes go into its next
//! frames: one frame up to the first message that is still in hand, and one for each message beyond it.

mod ledger;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use lapin::options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions};
use lapin::types::DeliveryTag;
use lapin::{Channel, Connection};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use self::ledger::{Ack, Ledger};
use crate::telemetry;

/// How long an ack may take. It is one frame without an answer, but on a broken connection the write can hang.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// How a delivery is settled, in the words of AMQP 0-9-1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disposition {
    Ack,
    /// The broker delivers it again.
    Nack,
    /// The same, and it counts against the message's delivery limit. RabbitMQ counts a reject in every version, but no nack from
    /// 4.3 on.
    Reject,
}

/// Takes the dispositions of one channel's deliveries. Clones share the channel.
#[derive(Debug, Clone)]
pub(super) struct Acks {
    dispositions: UnboundedSender<(DeliveryTag, Disposition)>,
}

impl Acks {
    /// For a channel without deliveries so far. It spawns a task on `tasks`, which keeps the channel open and ends when the last
    /// clone is dropped.
    pub(super) fn open(connection: Arc<Connection>, channel: Arc<Channel>, tasks: &TaskTracker) -> Self {
        let (dispositions, settled) = unbounded_channel();
        tasks.spawn(Writer { connection, channel }.run(settled));
        Self { dispositions }
    }

    /// Whether the channel is closed, so that no ack reaches the broker.
    pub(super) fn is_closed(&self) -> bool {
        self.dispositions.is_closed()
    }

    /// Settles a delivery, once at most: the broker closes a channel on an unknown tag.
    pub(super) fn settle(&self, tag: DeliveryTag, disposition: Disposition) {
        if self.dispositions.send((tag, disposition)).is_err() {
            telemetry::acks_lost(1);
        }
    }
}

/// Writes acks to a channel.
struct Writer {
    connection: Arc<Connection>,
    channel: Arc<Channel>,
}

impl Writer {
    async fn run(self, mut settled: UnboundedReceiver<(DeliveryTag, Disposition)>) {
        /// Larger than any prefetch.
        const AT_ONCE: usize = 1 << 16;
        let mut ledger = Ledger::default();
        let mut dispositions = Vec::new();
        while settled.recv_many(&mut dispositions, AT_ONCE).await > 0 {
            for (tag, disposition) in dispositions.drain(..) {
                match disposition {
                    Disposition::Ack => ledger.answered(tag),
                    // Before any ack beyond it, which would cover it. If the nack may not have been written, the delivery stays
                    // in hand, so that no such ack is written.
                    Disposition::Nack if self.give_back(self.nack(tag)).await => ledger.given_back(tag),
                    Disposition::Reject if self.give_back(self.reject(tag)).await => ledger.given_back(tag),
                    Disposition::Nack | Disposition::Reject => {}
                }
            }
            join_all(ledger.acks().into_iter().map(|ack| self.write(ack))).await;
        }
    }

    async fn write(&self, Ack { tag, messages }: Ack) {
        let ack = self.channel.basic_ack(tag, BasicAckOptions { multiple: messages > 1 });
        match timeout(ACK_TIMEOUT, ack).await {
            Ok(Ok(())) => {}
            // It is written as soon as the alarm is over.
            Err(_) if self.connection.status().blocked() => {}
            Ok(Err(_)) | Err(_) => telemetry::acks_lost(messages),
        }
    }

    async fn nack(&self, tag: DeliveryTag) -> lapin::Result<()> {
        let options = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
        self.channel.basic_nack(tag, options).await
    }

    async fn reject(&self, tag: DeliveryTag) -> lapin::Result<()> {
        self.channel.basic_reject(tag, BasicRejectOptions { requeue: true }).await
    }

    /// Whether the broker got the frame.
    async fn give_back(&self, written: impl Future<Output = lapin::Result<()>>) -> bool {
        // Nothing is written while the broker has an alarm. A worker that gives messages back is about to stop, and then the
        // broker takes everything back.
        let written =
            !self.connection.status().blocked() && matches!(timeout(ACK_TIMEOUT, written).await, Ok(Ok(())));
        if !written {
            telemetry::acks_lost(1);
        }
        written
    }
}

#[cfg(test)]
mod tests_with_a_broker {
    use lapin::ConnectionProperties;
    use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
    use tokenkeeper_testkit::queues::{BasicProperties, FieldTable, TestBroker};

    use super::*;

    #[tokio::test]
    async fn a_message_that_is_given_back_is_not_acked_along_with_those_behind_it() {
        let broker = TestBroker::connect().await;
        let connection = Connection::connect(broker.url(), ConnectionProperties::default()).await.unwrap();
        let connection = Arc::new(connection);
        let (upstream, channel) = (
            connection.create_channel().await.unwrap(),
            Arc::new(connection.create_channel().await.unwrap()),
        );
        upstream.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let queue = upstream.queue_declare("".into(), options, FieldTable::default()).await.unwrap();
        let queue = queue.name().clone();
        for body in ["first", "second", "third"] {
            let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
            let name = queue.clone();
            let publish = upstream.basic_publish("".into(), name, options, body.as_bytes(), properties);
            // Confirmed, so that the other channel finds it.
            publish.await.unwrap().await.unwrap();
            channel.basic_get(queue.clone(), BasicGetOptions::default()).await.unwrap().expect("it is there");
        }

        let tasks = TaskTracker::new();
        let acks = Acks::open(Arc::clone(&connection), Arc::clone(&channel), &tasks);
        // All at once, so that one ack could stand for everything.
        for (tag, disposition) in [(1, Disposition::Nack), (2, Disposition::Ack), (3, Disposition::Ack)] {
            acks.settle(tag, disposition);
        }
        drop(acks);
        tasks.close();
        tasks.wait().await;
        // Deliveries that are not acked by now come again.
        channel.close(200, "done".into()).await.unwrap();

        let no_ack = BasicGetOptions { no_ack: true };
        let again = upstream.basic_get(queue.clone(), no_ack).await.unwrap().expect("it was given back");
        assert_eq!(again.delivery.data, b"first");
        assert!(upstream.basic_get(queue, no_ack).await.unwrap().is_none(), "the others were acked");
    }
}
