//! Replies, over the connection that their requests came over.
//!
//! One connection serves both, because each needs the other. A request is acked after its reply is confirmed, so an alarm that
//! stops replies delays the acks anyway. When a connection breaks, its requests are delivered again, whatever became of their
//! replies.
//!
//! Replies share one channel and are pipelined: many wait for their confirm at once. `lapin` attaches a returned message to the
//! next confirm, whichever that is. So the returned message itself says which reply was unroutable, not its confirm.
//!
//! A requester chooses where its reply goes, so a reply is not retried for ever. If the queue refuses it, or does not confirm
//! it, the reply waits as long as the request's time and its share of the prefetch allow. If the broker closes its channel, it is
//! tried once more alone (`aside.rs`). After that it is given up, and counts as unroutable.

mod aside;
mod line;

use std::sync::{Arc, OnceLock};

use lapin::{Channel, Connection};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

pub use self::aside::Aside;
use self::line::{Line, Tried};
use super::confirmed::confirming_channel;
use super::{AGAIN, BrokerError, Diagnosis, OutgoingReply, Stopped, within};
use crate::retry::Delays;
use crate::settings::Broker;
use crate::telemetry::{self, ReplyGivenUp};

/// Publishes the replies to what one connection delivers.
#[derive(Debug)]
pub struct Replies {
    settings: Arc<Broker>,
    connection: Arc<Connection>,
    /// Replaced when the broker closes it.
    channel: Mutex<Arc<Channel>>,
    /// When the other end last gave a sign of life. The lock admits one task that checks the channel or the connection.
    care: tokio::sync::Mutex<Instant>,
    /// The connection is of no use: the other end is silent, and otherwise only the heartbeat would find out, or it lets nobody
    /// reply.
    useless: CancellationToken,
    /// How the broker refused to take any reply, if it did.
    refusal: OnceLock<lapin::Error>,
    hard_stop: CancellationToken,
    aside: Arc<Aside>,
}

/// Why a request got no reply. The request goes back to the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// The worker stops.
    #[error("the worker is stopping")]
    Stopped,
    /// Its connection is gone, so it cannot be acked. The broker delivers it again by itself.
    #[error("the connection that it came over is gone")]
    ConnectionGone,
    /// It failed for now, its publisher cannot be told, and the waiting queue does not take it.
    #[error("it failed, may succeed later, and nobody can be told")]
    NobodyToTell,
}

/// What became of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// The broker has put the reply into its queue.
    Yes,
    /// Given up: there is no such queue, or the queue refuses.
    No,
}

impl From<Stopped> for Unanswered {
    fn from(Stopped: Stopped) -> Self {
        Self::Stopped
    }
}

/// Called whenever a reply is not taken at once. Returns until when it may wait. None: no longer.
pub trait Patience: FnMut(Instant) -> Option<Instant> + Send {}

impl<F: FnMut(Instant) -> Option<Instant> + Send> Patience for F {}

/// Where a reply is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Over the connection that its request came over.
    Home,
    /// Over a connection without requests.
    Aside,
    /// The same, with no other reply under way there.
    Alone,
}

impl Replies {
    /// For the requests of `connection`. After `hard_stop` it no longer retries.
    ///
    /// # Errors
    /// [`BrokerError`]: no channel can be opened.
    pub async fn open(
        connection: Arc<Connection>,
        settings: Arc<Broker>,
        aside: Arc<Aside>,
        hard_stop: CancellationToken,
    ) -> Result<Self, BrokerError> {
        let channel = confirming_channel(&connection, &settings).await?;
        Ok(Self {
            settings,
            connection,
            channel: Mutex::new(Arc::new(channel)),
            care: tokio::sync::Mutex::new(Instant::now()),
            useless: CancellationToken::new(),
            refusal: OnceLock::new(),
            hard_stop,
            aside,
        })
    }

    pub const fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Publishes a reply and waits until the broker has confirmed it, or it is given up. Always waits while an alarm blocks
    /// the connection, because nothing can be acked either.
    ///
    /// # Errors
    /// [`Unanswered`]: the worker stopped first, or the request's connection broke.
    pub async fn publish(
        &self,
        reply: &OutgoingReply<'_>,
        body: &[u8],
        mut patience: impl Patience,
    ) -> Result<Told, Unanswered> {
        tokio::select! {
            biased;
            published = self.try_until_settled(reply, body, &mut patience) => published,
            () = self.hard_stop.cancelled() => Err(Unanswered::Stopped),
        }
    }

    /// Waits until the connection is known to be of no use although it is open.
    pub async fn useless(&self) -> BrokerError {
        self.useless.cancelled().await;
        let action = "publish a reply".to_owned();
        match self.refusal.get() {
            Some(error) => BrokerError::Amqp { action, error: error.clone() },
            None => BrokerError::Timeout { action, after: self.settings.operation_timeout },
        }
    }

    async fn try_until_settled(
        &self,
        reply: &OutgoingReply<'_>,
        body: &[u8],
        patience: &mut impl Patience,
    ) -> Result<Told, Unanswered> {
        let mut delays = AGAIN.delays();
        let mut way = match (reply.exact, reply.is_direct()) {
            (true, _) => Way::Alone,
            (false, true) => Way::Aside,
            (false, false) => Way::Home,
        };
        loop {
            if !self.is_alive() {
                return Err(Unanswered::ConnectionGone);
            }
            let tried = match way {
                Way::Home => self.try_at_home(reply, body, patience).await,
                Way::Aside => Box::pin(self.aside.publish(reply, body, patience)).await,
                Way::Alone => Box::pin(self.aside.publish_alone(reply, body, patience)).await,
            };
            let given_up = match tried {
                Tried::Taken => return Ok(Told::Yes),
                // Another reply on the channel may have caused it.
                Tried::Returned => return Ok(if way == Way::Alone { Told::No } else { Told::Yes }),
                Tried::GivenUp(reason) => Some(reason),
                // The reply is not at fault: this user may not publish to the default exchange any more. The next connection
                // proves that before it takes a message.
                Tried::Broken(BrokerError::Amqp { error, .. }) if is_refused_to_all(&error) => {
                    self.refusal.get_or_init(|| error);
                    self.useless.cancel();
                    return Err(Unanswered::ConnectionGone);
                }
                Tried::Broken(error) => {
                    telemetry::reply_tried_again(&error);
                    let alone_before = way == Way::Alone;
                    way = Way::Alone;
                    (alone_before && self.is_alive()).then_some(ReplyGivenUp::ClosesChannel)
                }
                Tried::NoConnection(error) => {
                    telemetry::reply_tried_again(&error);
                    self.pause(&mut delays, patience).await.err()
                }
                Tried::Refused => self.pause(&mut delays, patience).await.err(),
            };
            if let Some(reason) = given_up {
                telemetry::reply_given_up(reason, reply.reply_type);
                return Ok(Told::No);
            }
        }
    }

    /// Waits before the next try, if there may be one.
    async fn pause(&self, delays: &mut Delays, patience: &mut impl Patience) -> Result<(), ReplyGivenUp> {
        let now = Instant::now();
        let until = patience(now).ok_or(ReplyGivenUp::Refused)?;
        let delay = delays.next_delay();
        sleep_until(until.min(now + delay)).await;
        Ok(())
    }

    async fn try_at_home(
        &self,
        reply: &OutgoingReply<'_>,
        body: &[u8],
        patience: &mut impl Patience,
    ) -> Tried {
        let channel = match self.open_channel().await {
            Ok(channel) => channel,
            Err(error) => {
                self.look_after(&error).await;
                return Tried::NoConnection(error);
            }
        };
        let line = Line { connection: &self.connection, channel: &channel, caretaker: Some(self) };
        line.publish(reply, body, self.settings.operation_timeout, patience).await
    }

    async fn open_channel(&self) -> Result<Arc<Channel>, BrokerError> {
        let usable = || Some(Arc::clone(&self.channel())).filter(|channel| channel.status().connected());
        if let Some(channel) = usable() {
            return Ok(channel);
        }
        Box::pin(async {
            let _care = self.care.lock().await;
            // Another task may have replaced it already.
            if let Some(channel) = usable() {
                return Ok(channel);
            }
            let opened = Arc::new(confirming_channel(&self.connection, &self.settings).await?);
            *self.channel() = Arc::clone(&opened);
            Ok(opened)
        })
        .await
    }

    fn is_alive(&self) -> bool {
        self.connection.status().connected() && !self.useless.is_cancelled()
    }

    /// Checks a connection over which nothing came for long. A missing confirm may be the fault of the reply's queue. But if
    /// the other end does not even open a channel, it is gone.
    async fn look_after(&self, error: &BrokerError) {
        if !matches!(error, BrokerError::Timeout { .. }) {
            return;
        }
        let limit = self.settings.operation_timeout;
        let mut alive_at = self.care.lock().await;
        // One of many waiting tasks checks.
        if alive_at.elapsed() < limit || self.useless.is_cancelled() || self.connection.status().blocked() {
            return;
        }
        match within(limit, || "open a channel".to_owned(), self.connection.create_channel()).await {
            Ok(_) => *alive_at = Instant::now(),
            Err(_) if self.connection.status().blocked() => {}
            Err(_) => self.useless.cancel(),
        }
    }

    fn channel(&self) -> MutexGuard<'_, Arc<Channel>> {
        // No code under the lock panics.
        self.channel.lock()
    }
}

fn is_refused_to_all(error: &lapin::Error) -> bool {
    let diagnosis = Diagnosis::of_call("publish a reply", error);
    matches!(diagnosis, Diagnosis::Forbidden { object, .. } if object == "exchange amq.default")
}

#[cfg(test)]
mod tests_with_a_broker {
    use std::collections::HashMap;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD as BASE64;
    use futures_util::future::join_all;
    use lapin::BasicProperties;
    use tokenkeeper_testkit::queues::TestBroker;

    use super::*;
    use crate::broker::connect;
    use crate::contract::Envelope;
    use crate::settings::Settings;

    async fn replies(broker: &TestBroker, hard_stop: &CancellationToken) -> Replies {
        let settings = HashMap::from([("AMQP_URL".to_owned(), broker.url().to_owned())]);
        let settings = Arc::new(Settings::load_from(None, settings).unwrap().broker);
        let connection = connect(&settings, "a test").await.unwrap();
        let aside = Arc::new(Aside::new(Arc::clone(&settings), "a test, aside".to_owned()));
        Replies::open(Arc::new(connection), settings, aside, hard_stop.clone()).await.unwrap()
    }

    /// To nobody: what it comes to is said by the broker all the same.
    async fn publish(replies: &Replies) -> Result<Told, Unanswered> {
        let envelope = Envelope::read(&BasicProperties::default().with_reply_to("nobody".into()), "a-test");
        let reply_to = envelope.reply_to.as_ref().unwrap();
        let reply = OutgoingReply { reply_to, reply_type: "token.reply", envelope: &envelope, exact: false };
        replies.publish(&reply, b"{}", |_| None).await
    }

    #[tokio::test]
    async fn a_channel_that_was_closed_is_opened_anew() {
        let broker = TestBroker::connect().await;
        let replies = replies(&broker, &CancellationToken::new()).await;
        let closed = Arc::clone(&replies.channel());
        closed.close(200, "for a test".into()).await.unwrap();
        assert_eq!(publish(&replies).await, Ok(Told::Yes));
        assert!(!closed.status().connected() && replies.channel().status().connected());
    }

    #[tokio::test]
    async fn a_reply_that_somebody_must_get_is_known_to_get_nowhere() {
        let broker = TestBroker::connect().await;
        let replies = replies(&broker, &CancellationToken::new()).await;
        let envelope = Envelope::read(&BasicProperties::default().with_reply_to("nobody".into()), "a-test");
        let reply_to = envelope.reply_to.as_ref().unwrap();
        let reply = OutgoingReply { reply_to, reply_type: "token.reply", envelope: &envelope, exact: true };
        assert_eq!(replies.publish(&reply, b"{}", |_| None).await, Ok(Told::No));
    }

    #[tokio::test]
    async fn a_reply_over_a_connection_that_is_gone_is_given_up() {
        let broker = TestBroker::connect().await;
        let replies = replies(&broker, &CancellationToken::new()).await;
        replies.connection().close(200, "for a test".into()).await.unwrap();
        assert_eq!(publish(&replies).await, Err(Unanswered::ConnectionGone));
    }

    /// A direct reply-to as RabbitMQ writes it, of a channel at a node that is not in this cluster.
    fn of_another_cluster() -> Envelope {
        let mut term = vec![131, 88, 119, 11];
        term.extend_from_slice(b"reply@12345");
        term.extend_from_slice(&[0, 0, 3, 1, 0, 0, 0, 0, 0x66, 0, 0, 1]);
        let name = format!("amq.rabbitmq.reply-to.{}.{}", BASE64.encode(term), BASE64.encode([7; 16]));
        Envelope::read(&BasicProperties::default().with_reply_to(name.into()), "a-test")
    }

    /// RabbitMQ 3.10 ends the connection of whoever publishes to it, and only the broker knows that it does.
    #[tokio::test]
    async fn a_reply_that_ends_its_connection_costs_no_request_and_no_other_reply() {
        let broker = TestBroker::connect().await;
        let replies = replies(&broker, &CancellationToken::new()).await;
        let poison = of_another_cluster();
        let published = join_all((0..10).map(|_| {
            let reply_to = poison.reply_to.as_ref().expect("a well-formed name");
            let reply =
                OutgoingReply { reply_to, reply_type: "token.reply", envelope: &poison, exact: false };
            let replies = &replies;
            async move { replies.publish(&reply, b"{}", |_| None).await }
        }));
        let (published, plain) = tokio::join!(published, join_all((0..10).map(|_| publish(&replies))));
        assert!(published.into_iter().all(|published| published == Ok(Told::No)));
        assert!(plain.into_iter().all(|published| published == Ok(Told::Yes)));
        assert!(replies.connection().status().connected(), "the requests' connection never carried it");
    }
}
