//! The requester's side: publishes one request and waits for its reply.

use std::future::Future;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{FieldTable, ShortString};
use lapin::uri::{AMQPUri, SASLMechanism};
use lapin::{BasicProperties, Channel, Confirmation, Connection, Consumer};
use tokenkeeper::broker::{BrokerError, Feed, Names, connect, within};
use tokenkeeper::contract::{DIRECT_REPLY_TO, MessageKind};
use tokenkeeper::domain::secret::ExposeSecret;
use tokenkeeper::settings::Broker;
use tokio::time::timeout;
use uuid::Uuid;

/// A worker also answers when the request's time is over. That answer comes a moment late.
const LAST_WORD: Duration = Duration::from_secs(1);

pub(super) struct Question<'a> {
    pub(super) kind: MessageKind,
    /// Decides the partition, if there are partitions.
    pub(super) user: &'a str,
    pub(super) body: &'a [u8],
    pub(super) timeout: Duration,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum NoReply {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("no queue takes {kind} under the prefix `{prefix}` at {broker}; start a worker")]
    Unroutable { kind: MessageKind, prefix: String, broker: String },
    #[error(
        "no reply came within {}; check that a worker consumes {queue} at {broker}",
        humantime::format_duration(*after)
    )]
    InTime { after: Duration, queue: String, broker: String },
}

/// Publishes a request and returns the body of its reply.
pub(super) async fn ask(settings: &Broker, question: &Question<'_>) -> Result<Vec<u8>, NoReply> {
    let connection = connect(settings, "tokenkeeper request").await?;
    let reply = Requester { settings, connection: &connection }.ask(question).await;
    let close = connection.close(200, "done".into());
    // An error while closing does not matter.
    drop(within(settings.operation_timeout, || "close the connection".to_owned(), close).await);
    reply
}

struct Requester<'a> {
    settings: &'a Broker,
    connection: &'a Connection,
}

impl Requester<'_> {
    async fn ask(&self, question: &Question<'_>) -> Result<Vec<u8>, NoReply> {
        let channel = self.within("open a channel", self.connection.create_channel()).await?;
        let confirms = channel.confirm_select(ConfirmSelectOptions::default());
        self.within("ask for publisher confirms", confirms).await?;
        // Direct reply-to needs no queue for the reply. The consumer must come first, on the channel that publishes.
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consume =
            channel.basic_consume(DIRECT_REPLY_TO.into(), "".into(), options, FieldTable::default());
        let replies = self.within("consume the reply", consume).await?;
        let correlation_id = Uuid::new_v4().simple().to_string();
        self.publish(&channel, question, &correlation_id).await?;
        match timeout(question.timeout + LAST_WORD, await_reply(replies, &correlation_id)).await {
            Ok(reply) => Ok(reply?),
            Err(_) => Err(NoReply::InTime {
                after: question.timeout,
                queue: Names::new(&self.settings.prefix).queue(Feed::Messages(question.kind)),
                broker: self.settings.display_url().to_owned(),
            }),
        }
    }

    async fn publish(
        &self,
        channel: &Channel,
        question: &Question<'_>,
        correlation_id: &str,
    ) -> Result<(), NoReply> {
        let Question { kind, body, .. } = *question;
        let (exchange, routing_key) = self.route(question)?;
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = self.properties(question, correlation_id)?;
        let published =
            async { channel.basic_publish(exchange, routing_key, options, body, properties).await?.await };
        match self.within("publish the request", published).await {
            Ok(Confirmation::Ack(None)) => Ok(()),
            Ok(Confirmation::Ack(Some(_))) => Err(self.unroutable(kind)),
            Ok(Confirmation::Nack(_) | Confirmation::NotRequested) => {
                Err(BrokerError::Refused { what: "the request" }.into())
            }
            Err(error) if error.soft_error() == Some(&AMQPSoftError::NOTFOUND) => Err(self.unroutable(kind)),
            Err(error) => Err(error.into()),
        }
    }

    /// The exchange and the routing key. With partitions, the user's name is the key, if it is short enough.
    fn route(&self, question: &Question<'_>) -> Result<(ShortString, ShortString), BrokerError> {
        let names = Names::new(&self.settings.prefix);
        let to = |exchange: &str| short(exchange, "the name of the exchange");
        match ShortString::try_new(question.user) {
            Ok(user) if self.settings.partitions > 0 => Ok((to(&names.hash_exchange(question.kind))?, user)),
            _ => Ok((to(names.exchange())?, question.kind.routing_key().into())),
        }
    }

    fn properties(
        &self,
        question: &Question<'_>,
        correlation_id: &str,
    ) -> Result<BasicProperties, BrokerError> {
        let mut properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_reply_to(DIRECT_REPLY_TO.into())
            .with_correlation_id(short(correlation_id, "the correlation id")?)
            .with_expiration(short(&question.timeout.as_millis().to_string(), "the expiration")?);
        if let Some(user) = user_of(self.settings) {
            properties = properties.with_user_id(short(&user, "the broker's user")?);
        }
        Ok(properties)
    }

    fn unroutable(&self, kind: MessageKind) -> NoReply {
        NoReply::Unroutable {
            kind,
            prefix: self.settings.prefix.clone(),
            broker: self.settings.display_url().to_owned(),
        }
    }

    async fn within<T>(
        &self,
        action: &str,
        call: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, BrokerError> {
        within(self.settings.operation_timeout, || action.to_owned(), call).await
    }
}

async fn await_reply(mut replies: Consumer, correlation_id: &str) -> Result<Vec<u8>, BrokerError> {
    while let Some(reply) = replies.next().await {
        let reply =
            reply.map_err(|error| BrokerError::Amqp { action: "wait for the reply".to_owned(), error })?;
        let answers = reply.properties.correlation_id().as_ref().map(ShortString::as_str);
        if answers == Some(correlation_id) {
            return Ok(reply.data);
        }
    }
    Err(BrokerError::Cancelled { queue: DIRECT_REPLY_TO.to_owned() })
}

/// The publisher for the worker's access rules, or `None` if the broker does not authenticate us by the URL's user.
fn user_of(settings: &Broker) -> Option<String> {
    let uri: AMQPUri = settings.url.expose_secret().parse().ok()?;
    match uri.query.auth_mechanism {
        Some(SASLMechanism::External | SASLMechanism::Anonymous) => None,
        _ => Some(uri.authority.userinfo.username),
    }
}

fn short(text: &str, what: &str) -> Result<ShortString, BrokerError> {
    ShortString::try_new(text).map_err(|_| BrokerError::TooLong { what: what.to_owned() })
}
