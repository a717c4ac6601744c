//! Replies, over the connection that their requests came over.
//!
//! One connection for both, because neither is worth anything without the other. A request is acked once its reply is
//! confirmed, so what keeps replies from being published (an alarm, above all) keeps the acks waiting anyway; and what a
//! connection takes with it when it breaks is delivered again, whatever became of its reply.
//!
//! Replies share one channel and are pipelined: many wait for their confirm at once. `lapin` attaches a returned message to
//! whichever confirm completes next, so "unroutable" is read off the returned message itself and never off the publish
//! that it came back with.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lapin::types::ShortString;
use lapin::{Channel, Connection};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::confirmed::{Publish, confirmed, confirming_channel};
use super::{AGAIN, BrokerError, OutgoingReply, Stopped, within};
use crate::settings::Broker;
use crate::telemetry;

/// Publishes the replies to what one connection delivers.
#[derive(Debug)]
pub struct Replies {
    settings: Arc<Broker>,
    connection: Arc<Connection>,
    /// Another one as soon as the broker has closed it: that costs nothing but the channel.
    channel: Mutex<Arc<Channel>>,
    /// Held by whoever looks after the channel or the connection, so that one does it for all.
    care: tokio::sync::Mutex<()>,
    /// The other end says nothing any more, and only the heartbeat would find out.
    silent: CancellationToken,
    hard_stop: CancellationToken,
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
}

impl From<Stopped> for Unanswered {
    fn from(Stopped: Stopped) -> Self {
        Self::Stopped
    }
}

impl Replies {
    /// For what `connection` delivers. From `hard_stop` on it insists on nothing any more.
    ///
    /// # Errors
    /// [`BrokerError`]: there is no channel to be had.
    pub async fn open(
        connection: Arc<Connection>,
        settings: Arc<Broker>,
        hard_stop: CancellationToken,
    ) -> Result<Self, BrokerError> {
        let channel = confirming_channel(&connection, &settings).await?;
        Ok(Self {
            settings,
            connection,
            channel: Mutex::new(Arc::new(channel)),
            care: tokio::sync::Mutex::default(),
            silent: CancellationToken::new(),
            hard_stop,
        })
    }

    /// The connection that it publishes over.
    pub const fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Publishes a reply and waits for the broker's confirm, for as long as that takes: over a new channel where the broker
    /// closes this one, and until an alarm is over where it blocks the connection.
    ///
    /// # Errors
    /// [`Unanswered`] when the worker stops, or the connection breaks, first.
    pub async fn publish(&self, reply: &OutgoingReply<'_>, body: &[u8]) -> Result<(), Unanswered> {
        tokio::select! {
            biased;
            published = self.insist(reply, body) => published,
            () = self.hard_stop.cancelled() => Err(Unanswered::Stopped),
        }
    }

    /// Waits until it is known that the other end says nothing any more.
    pub async fn gone_silent(&self) -> BrokerError {
        self.silent.cancelled().await;
        BrokerError::Timeout { action: "publish a reply".into(), after: self.settings.operation_timeout }
    }

    async fn insist(&self, reply: &OutgoingReply<'_>, body: &[u8]) -> Result<(), Unanswered> {
        let mut delays = AGAIN.delays();
        loop {
            let error = match self.try_publish(reply, body).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if !Box::pin(self.is_alive_after(&error)).await {
                return Err(Unanswered::ConnectionGone);
            }
            let delay = delays.next().unwrap_or(AGAIN.max_interval);
            telemetry::publish_failed(&error, delay);
            sleep(delay).await;
        }
    }

    async fn try_publish(&self, reply: &OutgoingReply<'_>, body: &[u8]) -> Result<(), BrokerError> {
        let channel = self.open_channel().await?;
        let message = Publish {
            exchange: ShortString::default(),
            // What came over AMQP fits into AMQP.
            routing_key: reply.routing_key()?,
            mandatory: reply.mandatory(),
            properties: reply.properties()?,
        };
        let (publishing, limit) = (pin!(message.over(&channel, body)), self.settings.operation_timeout);
        if let Some(returned) = confirmed(&self.connection, publishing, "a reply", limit).await? {
            let reply_type = returned.properties.kind().as_ref().map_or("", ShortString::as_str);
            telemetry::reply_unroutable(reply_type);
        }
        Ok(())
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

    /// Whether the connection is still of use. A confirm that does not come may be the fault of the queue that the reply is
    /// for; an end that does not even open a channel is gone.
    async fn is_alive_after(&self, error: &BrokerError) -> bool {
        if matches!(error, BrokerError::Timeout { .. }) {
            let _care = self.care.lock().await;
            let (limit, sign_of_life) = (self.settings.operation_timeout, self.connection.create_channel());
            if !self.silent.is_cancelled()
                && !self.connection.status().blocked()
                && within(limit, || "open a channel".to_owned(), sign_of_life).await.is_err()
                && !self.connection.status().blocked()
            {
                self.silent.cancel();
            }
        }
        self.connection.status().connected() && !self.silent.is_cancelled()
    }

    fn channel(&self) -> MutexGuard<'_, Arc<Channel>> {
        // Nothing that runs under it panics.
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use lapin::BasicProperties;
    use tokenkeeper_testkit::queues::TestBroker;

    use super::*;
    use crate::broker::connect;
    use crate::message::Envelope;
    use crate::settings::Settings;

    async fn replies(broker: &TestBroker, hard_stop: &CancellationToken) -> Replies {
        let settings = HashMap::from([("AMQP_URL".to_owned(), broker.url().to_owned())]);
        let settings = Arc::new(Settings::load_from(None, settings).unwrap().broker);
        let connection = connect(&settings, "a test").await.unwrap();
        Replies::open(Arc::new(connection), settings, hard_stop.clone()).await.unwrap()
    }

    /// To nobody: what it comes to is said by the broker all the same.
    async fn publish(replies: &Replies) -> Result<(), Unanswered> {
        let envelope = Envelope::read(&BasicProperties::default().with_reply_to("nobody".into()), "a-test");
        let reply_to = envelope.reply_to.as_ref().unwrap();
        let reply = OutgoingReply { reply_to, reply_type: "token.reply", envelope: &envelope };
        replies.publish(&reply, b"{}").await
    }

    #[tokio::test]
    async fn a_channel_that_was_closed_is_opened_anew() {
        let broker = TestBroker::connect().await;
        let replies = replies(&broker, &CancellationToken::new()).await;
        let closed = Arc::clone(&replies.channel());
        closed.close(200, "for a test".into()).await.unwrap();
        assert_eq!(publish(&replies).await, Ok(()));
        assert!(!closed.status().connected() && replies.channel().status().connected());
    }

    #[tokio::test]
    async fn a_reply_over_a_connection_that_is_gone_is_given_up() {
        let broker = TestBroker::connect().await;
        let replies = replies(&broker, &CancellationToken::new()).await;
        replies.connection().close(200, "for a test".into()).await.unwrap();
        assert_eq!(publish(&replies).await, Err(Unanswered::ConnectionGone));
    }
}
