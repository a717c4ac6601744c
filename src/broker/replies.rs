//! Replies, over the connection that their requests came over.
//!
//! One connection for both, because neither is worth anything without the other. A request is acked once its reply is
//! confirmed, so what keeps replies from being published (an alarm, above all) keeps the acks waiting anyway; and what a
//! connection takes with it when it breaks is delivered again, whatever became of its reply.
//!
//! Replies share one channel and are pipelined: many wait for their confirm at once. `lapin` attaches a returned message to
//! whichever confirm completes next, so "unroutable" is read off the returned message itself and never off the publish
//! that it came back with.
//!
//! A requester chooses where its reply goes, so no reply is insisted on. One that its queue refuses, or that is not
//! confirmed, waits for as long as its request's time and its share of the prefetch allow. One whose channel the broker
//! closes is tried once more alone (`aside.rs`). After that it is given up, which counts as unroutable.

mod aside;
mod line;

use std::sync::Arc;

use lapin::{Channel, Connection};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

pub use self::aside::Aside;
use self::line::{Line, Tried};
use super::confirmed::confirming_channel;
use super::{AGAIN, BrokerError, OutgoingReply, Stopped, within};
use crate::retry::Delays;
use crate::settings::Broker;
use crate::telemetry::{self, ReplyGivenUp};

/// Publishes the replies to what one connection delivers.
#[derive(Debug)]
pub struct Replies {
    settings: Arc<Broker>,
    connection: Arc<Connection>,
    /// Another one as soon as the broker has closed it: that costs nothing but the channel.
    channel: Mutex<Arc<Channel>>,
    /// Held by whoever looks after the channel or the connection, so that one does it for all. When the other end last
    /// gave a sign of life.
    care: tokio::sync::Mutex<Instant>,
    /// The other end says nothing any more, and only the heartbeat would find out.
    silent: CancellationToken,
    hard_stop: CancellationToken,
    aside: Arc<Aside>,
}

/// Why a request got no reply. It goes back to the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// The worker stops.
    #[error("the worker is stopping")]
    Stopped,
    /// What it came over is gone, and with it the means to ack it. The broker delivers it again by itself.
    #[error("the connection that it came over is gone")]
    ConnectionGone,
    /// It failed, may succeed later, nobody can be told so, and there is no place for it to wait.
    #[error("it failed, may succeed later, and nobody can be told")]
    NobodyToTell,
}

/// What became of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// The broker has put it into its queue.
    Yes,
    /// It was given up: there is no such queue, or it takes nothing.
    No,
}

impl From<Stopped> for Unanswered {
    fn from(Stopped: Stopped) -> Self {
        Self::Stopped
    }
}

/// Asked whenever a reply is not taken at once: until when it may wait on. None: no longer.
pub trait Patience: FnMut(Instant) -> Option<Instant> + Send {}

impl<F: FnMut(Instant) -> Option<Instant> + Send> Patience for F {}

/// Where a reply is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Over the connection that its request came over.
    Home,
    /// Over a connection that takes no requests with it.
    Aside,
    /// The same, with nothing else under way there.
    Alone,
}

impl Replies {
    /// For what `connection` delivers. From `hard_stop` on it insists on nothing any more.
    ///
    /// # Errors
    /// [`BrokerError`]: there is no channel to be had.
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
            silent: CancellationToken::new(),
            hard_stop,
            aside,
        })
    }

    /// The connection that requests come over.
    pub const fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Publishes a reply and waits until the broker has confirmed it, or it is given up. While an alarm blocks the
    /// connection it waits in any case: nothing can be acked either.
    ///
    /// # Errors
    /// [`Unanswered`] when the worker stops, or the connection of the request breaks, first.
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

    /// Waits until it is known that the other end says nothing any more.
    pub async fn gone_silent(&self) -> BrokerError {
        self.silent.cancelled().await;
        BrokerError::Timeout { action: "publish a reply".into(), after: self.settings.operation_timeout }
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
                // Beside others it may have been one of theirs.
                Tried::Returned => return Ok(if way == Way::Alone { Told::No } else { Told::Yes }),
                Tried::GivenUp(reason) => Some(reason),
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

    /// Waits before the next try, where there may be one.
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
            // Somebody else may have seen to it.
            if let Some(channel) = usable() {
                return Ok(channel);
            }
            let opened = Arc::new(confirming_channel(&self.connection, &self.settings).await?);
            *self.channel() = Arc::clone(&opened);
            Ok(opened)
        })
        .await
    }

    /// Whether the connection is still of use.
    fn is_alive(&self) -> bool {
        self.connection.status().connected() && !self.silent.is_cancelled()
    }

    /// Looks whether the connection is still of use, where nothing came for long. A confirm that does not come may be the
    /// fault of the queue that the reply is for; an end that does not even open a channel is gone.
    async fn look_after(&self, error: &BrokerError) {
        if !matches!(error, BrokerError::Timeout { .. }) {
            return;
        }
        let limit = self.settings.operation_timeout;
        let mut alive_at = self.care.lock().await;
        // Of many who wait one looks.
        if alive_at.elapsed() < limit || self.silent.is_cancelled() || self.connection.status().blocked() {
            return;
        }
        match within(limit, || "open a channel".to_owned(), self.connection.create_channel()).await {
            Ok(_) => *alive_at = Instant::now(),
            Err(_) if self.connection.status().blocked() => {}
            Err(_) => self.silent.cancel(),
        }
    }

    fn channel(&self) -> MutexGuard<'_, Arc<Channel>> {
        // Nothing that runs under it panics.
        self.channel.lock()
    }
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
