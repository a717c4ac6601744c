//! IN HAND: the messages of one subscription that are not settled yet.
//!
//! The task that consumes a queue also polls its messages. With a task for each message, another thread woke it about three
//! times on its way.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::TaskTracker;

/// The messages in hand. When it is dropped, each unsettled message goes on in a task of its own.
pub(super) struct InHand {
    messages: FuturesUnordered<Message>,
    /// Gets that task.
    tasks: TaskTracker,
}

/// A place for a message in hand. It is free again once the message is settled, or ended by a bug.
pub(super) type Place = OwnedSemaphorePermit;

/// An unsettled message.
struct Message {
    future: BoxFuture<'static, ()>,
    _place: Option<Place>,
}

impl InHand {
    pub(super) fn nothing(tasks: &TaskTracker) -> Self {
        Self { messages: FuturesUnordered::new(), tasks: tasks.clone() }
    }

    /// Takes a message in hand. It begins with the next [`InHand::go_on`].
    pub(super) fn take(&mut self, message: impl Future<Output = ()> + Send + 'static, place: Option<Place>) {
        self.messages.push(Message { future: message.boxed(), _place: place });
    }

    /// Polls every message that can go on, and tells whether one was settled. `context` is woken when one can go on again.
    pub(super) fn go_on(&mut self, context: &mut Context<'_>) -> bool {
        let mut settled = false;
        while let Poll::Ready(Some(())) = self.messages.poll_next_unpin(context) {
            settled = true;
        }
        settled
    }
}

impl Future for Message {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        // A panic of one message must not end the others. Its delivery is settled by `settlement.rs`.
        catch_unwind(AssertUnwindSafe(|| self.future.as_mut().poll(context))).unwrap_or(Poll::Ready(()))
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        let messages = mem::take(&mut self.messages);
        // Without a runtime the process ends, and the broker delivers them to others.
        if let Ok(runtime) = Handle::try_current()
            && !messages.is_empty()
        {
            self.tasks.spawn_on(messages.collect::<()>(), &runtime);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;

    use tokio::sync::{Notify, Semaphore, oneshot};
    use tokio::task::yield_now;

    use super::*;

    fn places(count: usize) -> Arc<Semaphore> {
        Arc::new(Semaphore::new(count))
    }

    fn place(places: &Arc<Semaphore>) -> Place {
        Arc::clone(places).try_acquire_owned().expect("a place")
    }

    #[tokio::test]
    async fn what_is_not_settled_when_the_queue_is_left_goes_on_and_is_waited_for() {
        let tasks = TaskTracker::new();
        let (answer, answered) = oneshot::channel();
        let (settle, settled) = oneshot::channel();
        let mut in_hand = InHand::nothing(&tasks);
        let places = places(1);
        let message = async move {
            answered.await.expect("the answer comes");
            settle.send(()).expect("somebody waits");
        };
        in_hand.take(message, Some(place(&places)));
        poll_fn(|context| {
            in_hand.go_on(context);
            Poll::Ready(())
        })
        .await;
        drop(in_hand);
        assert_eq!(tasks.len(), 1, "a worker that stops waits for it");
        assert_eq!(places.available_permits(), 0, "and it keeps its place");
        answer.send(()).expect("the message is still handled");
        settled.await.expect("the message is settled");
        tasks.close();
        tasks.wait().await;
        assert_eq!(places.available_permits(), 1);
    }

    #[tokio::test]
    async fn a_message_whose_handling_panics_leaves_its_place() {
        let mut in_hand = InHand::nothing(&TaskTracker::new());
        let places = places(1);
        in_hand.take(async { panic!("a bug") }, Some(place(&places)));
        poll_fn(|context| Poll::Ready(in_hand.go_on(context))).await;
        assert_eq!(places.available_permits(), 1);
    }

    #[tokio::test]
    async fn a_message_that_can_go_on_wakes_the_task_of_its_queue() {
        let mut in_hand = InHand::nothing(&TaskTracker::new());
        let news = Arc::new(Notify::new());
        let heard = Arc::clone(&news);
        in_hand.take(async move { heard.notified().await }, Some(place(&places(1))));
        let told = async {
            yield_now().await;
            news.notify_one();
        };
        let settled = poll_fn(|context| {
            in_hand.go_on(context);
            if in_hand.messages.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        });
        tokio::join!(settled, told);
    }
}

#[cfg(test)]
mod tests_with_a_broker {
    use std::future::poll_fn;
    use std::sync::Arc;

    use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
    use lapin::{Connection, ConnectionProperties};
    use tokenkeeper_testkit::queues::{BasicProperties, FieldTable, TestBroker};
    use tokio::sync::Semaphore;
    use tokio::task::yield_now;

    use super::super::acks::{Acks, Disposition};
    use super::super::settlement::Settlement;
    use super::*;

    #[tokio::test]
    async fn a_message_whose_handling_panics_is_given_back_and_ends_no_other() {
        let broker = TestBroker::connect().await;
        let connection = Connection::connect(broker.url(), ConnectionProperties::default()).await.unwrap();
        let connection = Arc::new(connection);
        let channel = Arc::new(connection.create_channel().await.unwrap());
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare("".into(), options, FieldTable::default()).await.unwrap();
        let queue = queue.name().clone();
        let tasks = TaskTracker::new();
        let acks = Acks::open(Arc::clone(&connection), Arc::clone(&channel), &tasks);
        let mut in_hand = InHand::nothing(&tasks);
        let places = Arc::new(Semaphore::new(3));
        for body in ["first", "second", "third"] {
            let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
            let publish =
                channel.basic_publish("".into(), queue.clone(), options, body.as_bytes(), properties);
            publish.await.unwrap().await.unwrap();
            let got = channel.basic_get(queue.clone(), BasicGetOptions::default()).await.unwrap();
            let delivery = got.expect("it is there").delivery;
            let settlement = Settlement::new(acks.clone(), delivery.delivery_tag);
            let message = async move {
                yield_now().await;
                assert!(delivery.data != b"second", "a bug that the second message meets");
                settlement.settle(Disposition::Ack);
            };
            in_hand.take(message, Arc::clone(&places).try_acquire_owned().ok());
        }
        poll_fn(|context| {
            in_hand.go_on(context);
            if in_hand.messages.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        drop(acks);
        tasks.close();
        tasks.wait().await;

        let no_ack = BasicGetOptions { no_ack: true };
        let again = channel.basic_get(queue.clone(), no_ack).await.unwrap().expect("it was given back");
        assert_eq!((again.delivery.data.as_slice(), again.delivery.redelivered), (&b"second"[..], true));
        assert!(channel.basic_get(queue, no_ack).await.unwrap().is_none(), "the others were acked");
    }
}
