//! The requester's side: publishes one request and waits for its reply.

use std::cell::Cell;
use std::future::Future;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{FieldTable, ShortString};
use lapin::uri::{AMQPUri, SASLMechanism};
use lapin::{BasicProperties, Channel, Confirmation, Connection, Consumer};
use tokenkeeper::broker::{BrokerError, Diagnosis, Feed, Login, Names, connect, within};
use tokenkeeper::contract::{DIRECT_REPLY_TO, MessageKind};
use tokenkeeper::domain::problem::Problem;
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

/// How far a request has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    No,
    /// The broker has not confirmed it yet.
    Perhaps,
    Yes,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum NoReply {
    #[error(transparent)]
    Broker(BrokerError),
    /// The broker does not let the user do what a publisher does.
    #[error(transparent)]
    Refused(Problem),
    #[error("no queue takes {kind} under the prefix `{prefix}` at {broker}; start a worker")]
    Unroutable { kind: MessageKind, prefix: String, broker: String },
    #[error(
        "no reply came within {}; check that a worker consumes {queue} at {broker}",
        humantime::format_duration(*after)
    )]
    InTime { after: Duration, queue: String, broker: String },
}

impl NoReply {
    /// Says what a publisher needs, where that is missing.
    fn of(error: BrokerError, settings: &Broker) -> Self {
        match Diagnosis::of(&error) {
            diagnosis @ (Diagnosis::Forbidden { .. } | Diagnosis::NoAccess | Diagnosis::NoVhost) => {
                Self::Refused(diagnosis.problem(&Login::of_publisher(settings)))
            }
            _ => Self::Broker(error),
        }
    }
}

/// Publishes a request and returns the body of its reply. Keeps in `sent` how far it came.
pub(super) async fn ask(
    settings: &Broker,
    question: &Question<'_>,
    sent: &Cell<Sent>,
) -> Result<Vec<u8>, NoReply> {
    let connection = connect(settings, "tokenkeeper request").await;
    let connection = connection.map_err(|error| NoReply::of(error, settings))?;
    let reply = Requester { settings, connection: &connection, sent }.ask(question).await;
    let close = connection.close(200, "done".into());
    // An error while closing does not matter.
    drop(within(settings.operation_timeout, || "close the connection".to_owned(), close).await);
    reply
}

struct Requester<'a> {
    settings: &'a Broker,
    connection: &'a Connection,
    sent: &'a Cell<Sent>,
}

impl Requester<'_> {
    async fn ask(&self, question: &Question<'_>) -> Result<Vec<u8>, NoReply> {
        let broker = |error| NoReply::of(error, self.settings);
        let channel =
            self.within("open a channel", self.connection.create_channel()).await.map_err(broker)?;
        let confirms = channel.confirm_select(ConfirmSelectOptions::default());
        self.within("ask for publisher confirms", confirms).await.map_err(broker)?;
        // Direct reply-to needs no queue for the reply. The consumer must come first, on the channel that publishes.
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consume =
            channel.basic_consume(DIRECT_REPLY_TO.into(), "".into(), options, FieldTable::default());
        let replies = self.within("consume the reply", consume).await.map_err(broker)?;
        let correlation_id = Uuid::new_v4().simple().to_string();
        self.publish(&channel, question, &correlation_id).await?;
        match timeout(question.timeout + LAST_WORD, await_reply(replies, &correlation_id)).await {
            Ok(reply) => reply.map_err(NoReply::Broker),
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
        let (exchange, routing_key) = self.route(question).map_err(NoReply::Broker)?;
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = self.properties(question, correlation_id).map_err(NoReply::Broker)?;
        self.sent.set(Sent::Perhaps);
        let published =
            async { channel.basic_publish(exchange, routing_key, options, body, properties).await?.await };
        match self.within("publish the request", published).await {
            Ok(Confirmation::Ack(None)) => {
                self.sent.set(Sent::Yes);
                Ok(())
            }
            Ok(Confirmation::Ack(Some(_))) => Err(self.unroutable(kind)),
            Ok(Confirmation::Nack(_) | Confirmation::NotRequested) => {
                Err(NoReply::Broker(BrokerError::Refused { what: "the request" }))
            }
            Err(error) if error.soft_error() == Some(&AMQPSoftError::NOTFOUND) => Err(self.unroutable(kind)),
            Err(error) => Err(NoReply::of(error, self.settings)),
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
