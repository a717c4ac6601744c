//! The requester's side: the client that every publisher can use, over a connection that is made as a worker's is.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use tokenkeeper::broker::{BrokerError, Diagnosis, Feed, Login, Names, connect};
use tokenkeeper::contract::MessageKind;
use tokenkeeper::domain::problem::Problem;
use tokenkeeper::domain::secret::ExposeSecret;
use tokenkeeper::settings::Broker;
use tokenkeeper_client::{Client, Error, Options, Published};

#[derive(Debug, thiserror::Error)]
pub(super) enum NoReply {
    #[error(transparent)]
    Client(Error),
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
    #[error(
        "the broker at {broker} did not confirm the request within {}; is it out of memory or disk?",
        humantime::format_duration(*after)
    )]
    NotConfirmed { after: Duration, broker: String },
}

impl NoReply {
    /// Says what a publisher needs, where that is missing.
    pub(super) fn of(error: Error, kind: MessageKind, settings: &Broker) -> Self {
        let broker = || settings.display_url().to_owned();
        match error {
            Error::Unroutable { .. } => {
                Self::Unroutable { kind, prefix: settings.prefix.clone(), broker: broker() }
            }
            Error::NoReply { after, published: Published::Yes, .. } => Self::InTime {
                after,
                queue: Names::new(&settings.prefix).queue(Feed::Messages(kind)),
                broker: broker(),
            },
            Error::NoReply { after, .. } => Self::NotConfirmed { after, broker: broker() },
            Error::Broker { action, error } => {
                let error = BrokerError::Amqp { action: action.to_owned(), error };
                Self::refused(&error, settings).unwrap_or(Self::Broker(error))
            }
            Error::Connect(cause) => {
                let refused = of_broker(&*cause).and_then(|error| Self::refused(error, settings));
                refused.unwrap_or(Self::Client(Error::Connect(cause)))
            }
            error => Self::Client(error),
        }
    }

    fn refused(error: &BrokerError, settings: &Broker) -> Option<Self> {
        match Diagnosis::of(error) {
            diagnosis @ (Diagnosis::Forbidden { .. } | Diagnosis::NoAccess | Diagnosis::NoVhost) => {
                Some(Self::Refused(diagnosis.problem(&Login::of_publisher(settings))))
            }
            _ => None,
        }
    }
}

fn of_broker<'a>(cause: &'a (dyn StdError + Send + Sync + 'static)) -> Option<&'a BrokerError> {
    cause.downcast_ref()
}

/// A client that connects as the settings say, under this name.
pub(super) async fn client(settings: &Broker, name: &'static str) -> Result<Client, Error> {
    // Any node says as whom to publish.
    let url = settings.nodes.urls().first().map(|url| url.expose_secret().to_owned());
    let options = Options::new(url.unwrap_or_default())
        .prefix(&*settings.prefix)
        .partitioned(settings.partitions > 0)
        // Each command says itself whether it asks sealed, and how often.
        .sealed(false)
        .retries(0)
        // Each connection has its own limit, which says more.
        .connect_timeout(settings.connect_timeout + Duration::from_secs(1))
        .operation_timeout(settings.operation_timeout);
    let broker = Arc::new(settings.clone());
    let connecting = move || {
        let broker = Arc::clone(&broker);
        Box::pin(async move { Ok(connect(&broker, name).await?) }) as _
    };
    Client::connect(options.connector(connecting)).await
}
