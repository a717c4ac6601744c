//! Events, as a stream that survives its connection.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Consumer};
use serde::Deserialize;
use tokio::time::{sleep, timeout};

use crate::error::Error;
use crate::link::Shared;
pub use crate::words::EventKind;
use crate::words::RefreshCause;

/// How many events wait here.
const PREFETCH: u16 = 256;

/// How many events wait at the broker for a caller who is slow. The oldest give way: they are news.
const WAITING: i64 = 10_000;

/// How many events are remembered, so that one that comes twice is told once.
const REMEMBERED: usize = 1_000;

/// The wait before events are subscribed to again.
const RESUBSCRIBE_PAUSE: Duration = Duration::from_millis(500);

/// Something that happened. Fields that do not apply are `None`. No field is a secret.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Event {
    /// What.
    #[serde(rename = "event")]
    pub kind: EventKind,
    /// The provider's host.
    pub host: String,
    /// When it was found out.
    pub at: DateTime<Utc>,
    /// The platform's user.
    pub user_id: Option<String>,
    /// Which pair: counts the pairs stored for this user at this host.
    pub generation: Option<i64>,
    /// Why a token was refreshed.
    pub cause: Option<RefreshCause>,
    /// When the new token expires. None: never, or there is none.
    pub expires_at: Option<DateTime<Utc>>,
    /// How it came to that, in a word or in words.
    pub reason: Option<String>,
    /// After how many seconds a worker tries again.
    pub retry_after_secs: Option<u64>,
    /// Since when a host has refused everybody.
    pub since: Option<DateTime<Utc>>,
    /// The message's id. The broker may deliver an event twice, with the same one; a stream yields it once.
    #[serde(skip)]
    pub message_id: Option<String>,
}

/// A stream of events. After a lost connection it yields [`Error::EventsMissed`] and goes on; after any other error it ends, and so it
/// does with its client. What is no event of the contract is left out.
#[must_use = "a stream does nothing until it is polled"]
pub struct Events(BoxStream<'static, Result<Event, Error>>);

impl Events {
    pub(crate) async fn subscribe(shared: Arc<Shared>, pattern: String) -> Result<Self, Error> {
        let (after, action) = (shared.options.timeout, "subscribe to events");
        let mut listening =
            Listening { shared, pattern, subscription: None, seen: Seen::default(), is_over: false };
        let subscribed = timeout(after, async {
            while listening.subscription.is_none() {
                listening.subscription = listening.subscribe().await?;
            }
            Ok::<(), Error>(())
        });
        subscribed.await.map_err(|_| Error::Silent { action, after })??;
        Ok(Self(stream::unfold(listening, async |mut it| it.next().await.map(|next| (next, it))).boxed()))
    }
}

impl Stream for Events {
    type Item = Result<Event, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(context)
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Events")
    }
}

struct Listening {
    shared: Arc<Shared>,
    pattern: String,
    subscription: Option<Subscription>,
    seen: Seen,
    is_over: bool,
}

/// The ids of the last events.
#[derive(Default)]
struct Seen(VecDeque<String>);

impl Seen {
    /// Whether an id is a new one. From now on it is none.
    fn is_new(&mut self, id: &str) -> bool {
        if self.0.iter().any(|seen| seen == id) {
            return false;
        }
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(id.to_owned());
        true
    }
}

/// A subscription over one connection.
struct Subscription {
    /// Closed when it is dropped.
    _channel: Channel,
    events: Consumer,
}

impl Listening {
    async fn next(&mut self) -> Option<Result<Event, Error>> {
        if self.is_over {
            return None;
        }
        loop {
            let Some(subscription) = &mut self.subscription else {
                match self.subscribe().await {
                    Ok(Some(subscription)) => {
                        self.subscription = Some(subscription);
                        return Some(Err(Error::EventsMissed));
                    }
                    Ok(None) => {}
                    Err(Error::Closed) => return None,
                    Err(error) => {
                        self.is_over = true;
                        return Some(Err(error));
                    }
                }
                continue;
            };
            let delivery = tokio::select! {
                biased;
                // Also where only this stream still holds the connection.
                () = self.shared.closed() => return None,
                delivery = subscription.events.next() => delivery,
            };
            match delivery {
                Some(Ok(delivery)) => {
                    // Where that fails the connection is gone, and so is the queue.
                    let _ = delivery.ack(BasicAckOptions::default()).await;
                    let Ok(event) = serde_json::from_slice::<Event>(&delivery.data) else { continue };
                    let message_id = delivery.properties.message_id().as_ref().map(ToString::to_string);
                    if message_id.as_ref().is_some_and(|id| !self.seen.is_new(id)) {
                        continue;
                    }
                    return Some(Ok(Event { message_id, ..event }));
                }
                Some(Err(_)) | None => self.subscription = None,
            }
        }
    }

    /// None: the connection broke meanwhile.
    async fn subscribe(&self) -> Result<Option<Subscription>, Error> {
        let link = self.shared.link().await?;
        let pattern = ShortString::try_new(self.pattern.as_str())
            .map_err(|_| Error::Invalid("the pattern is longer than 255 bytes"))?;
        let exchange =
            ShortString::try_new(format!("{}.events", self.shared.options.prefix)).unwrap_or_default();
        let subscribing = async {
            let shared = &self.shared;
            let channel = shared.within("open a channel", link.connection.create_channel()).await?;
            let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
            let mut arguments = FieldTable::default();
            arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(WAITING));
            let declare = channel.queue_declare("".into(), exclusive, arguments);
            let queue = shared.within("declare a queue for events", declare).await?.name().clone();
            let bind = channel.queue_bind(
                queue.clone(),
                exchange,
                pattern,
                QueueBindOptions::default(),
                FieldTable::default(),
            );
            shared.within("bind a queue to the events", bind).await?;
            let qos = channel.basic_qos(PREFETCH, BasicQosOptions::default());
            shared.within("limit the events that wait", qos).await?;
            let options = BasicConsumeOptions::default();
            let consume = channel.basic_consume(queue, "".into(), options, FieldTable::default());
            let events = shared.within("consume events", consume).await?;
            Ok(Subscription { _channel: channel, events })
        };
        match subscribing.await {
            Ok(subscription) => Ok(Some(subscription)),
            // The broker refuses it, and would do so again.
            Err(Error::Broker { action, error }) if error.is_amqp_soft_error() => {
                Err(Error::Broker { action, error })
            }
            Err(_) => {
                sleep(RESUBSCRIBE_PAUSE).await;
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_new_once_and_only_the_last_ones_are_remembered() {
        let mut seen = Seen::default();
        assert!(seen.is_new("first") && !seen.is_new("first"));
        for number in 0..REMEMBERED {
            assert!(seen.is_new(&number.to_string()));
        }
        assert_eq!(seen.0.len(), REMEMBERED);
        assert!(!seen.is_new("0") && seen.is_new("first"));
    }

    #[test]
    fn an_event_of_a_newer_worker_is_read() {
        let body = r#"{"event": "token.forgotten", "host": "h", "at": "2020-01-01T00:00:00.000Z", "cause": "whim", "x": 1}"#;
        let event: Event = serde_json::from_str(body).unwrap();
        assert_eq!(event.kind, EventKind::Other("token.forgotten".to_owned()));
        assert_eq!(event.cause, Some(RefreshCause::Other("whim".to_owned())));
    }
}
