//! One request, until there is an answer or its time is over: published, asked again where that is right, and read.

use std::time::Duration;

use futures_util::FutureExt;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use tokio::time::{Instant, sleep, timeout_at};

use crate::client::Client;
use crate::error::{Error, UnusableReply};
use crate::kind::MessageKind;
use crate::link::Outgoing;
use crate::options::Options;
use crate::pending::Outcome;
use crate::progress::{Progress, Published, Steps};
use crate::reply::Body;
use crate::seal::ReplyKey;

/// A worker also answers when the request's time is over, up to a quarter of a second later. The rest is the way of the answer.
const LAST_WORD: Duration = Duration::from_secs(1);

/// The broker and the workers count a request's time in milliseconds.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_hours(24);

/// The first and the longest wait before a request is asked again.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What all kinds of request have in common.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    pub(crate) timeout: Duration,
    pub(crate) retries: u32,
    pub(crate) sealed: bool,
    pub(crate) traceparent: Option<String>,
    pub(crate) progress: Progress,
}

impl Terms {
    pub(crate) fn of(options: &Options) -> Self {
        let Options { timeout, retries, sealed, .. } = *options;
        Self { timeout, retries, sealed, traceparent: None, progress: Progress::new() }
    }
}

/// A message, as it is published.
pub(crate) struct Message {
    pub(crate) body: Vec<u8>,
    /// Opens what comes back.
    pub(crate) key: Option<ReplyKey>,
}

/// What is asked, and of whom.
#[derive(Clone, Copy)]
pub(crate) struct Question<'a> {
    pub(crate) client: &'a Client,
    pub(crate) kind: MessageKind,
    pub(crate) user: &'a str,
    pub(crate) terms: &'a Terms,
}

impl Question<'_> {
    /// The answer: the first one that is not worth another try, or the last one within the request's time and number of tries.
    /// `write` makes the message of each try, `read` reads its answer, and `pause` says of an answer whether it is worth another
    /// try, and after what time at least.
    pub(crate) async fn ask<T>(
        &self,
        mut write: impl FnMut() -> Result<Message, Error>,
        read: impl Fn(&Body) -> Result<T, Error>,
        pause: impl Fn(&T) -> Option<Duration>,
    ) -> Result<T, Error> {
        let timeout = self.terms.timeout;
        if !(SHORTEST..=LONGEST).contains(&timeout) {
            return Err(Error::Invalid("the timeout must be from 1 ms to 24 h"));
        }
        let deadline = Instant::now() + timeout;
        let steps = Steps::new(&self.terms.progress);
        let mut wait = RETRY_PAUSES.0;
        let mut tries_left = self.terms.retries;
        let mut last = None;
        loop {
            let answer = self.once(&mut write, deadline, &steps).await.and_then(|body| read(&body));
            let at_least = match &answer {
                Ok(answer) => pause(answer),
                Err(Error::Refused(refusal)) if refusal.retryable => {
                    Some(refusal.retry_after.unwrap_or_default())
                }
                Err(Error::Nacked { .. }) => Some(Duration::ZERO),
                Err(_) => None,
            };
            let Some(at_least) = at_least.filter(|_| tries_left > 0) else { return or_last(answer, last) };
            // Others were refused at the same time.
            let pause = at_least.max(wait.mul_f64(0.5)).saturating_add(wait.mul_f64(0.5 * fastrand::f64()));
            let Some(next) = Instant::now().checked_add(pause).filter(|next| *next < deadline) else {
                return or_last(answer, last);
            };
            last = answer.ok().or(last);
            sleep(next.saturating_duration_since(Instant::now())).await;
            tries_left -= 1;
            wait = (wait * 2).min(RETRY_PAUSES.1);
        }
    }

    /// One answer. A request for tokens is asked again over a new link where the old one broke.
    async fn once(
        &self,
        write: &mut impl FnMut() -> Result<Message, Error>,
        deadline: Instant,
        steps: &Steps,
    ) -> Result<Body, Error> {
        loop {
            match timeout_at(deadline + LAST_WORD, self.over_a_link(write, deadline, steps)).await {
                Ok(Ok(Some(body))) => return Ok(body),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(self.too_late(steps)),
            }
        }
    }

    /// None: the link broke, and the request may be asked again.
    async fn over_a_link(
        &self,
        write: &mut impl FnMut() -> Result<Message, Error>,
        deadline: Instant,
        steps: &Steps,
    ) -> Result<Option<Body>, Error> {
        let Self { client, kind, user, .. } = *self;
        let permit = timeout_at(deadline, client.permit()).await.map_err(|_| self.too_late(steps))??;
        let link = match client.shared().link().now_or_never() {
            Some(link) => link?,
            None => {
                timeout_at(deadline, client.shared().link()).await.map_err(|_| self.too_late(steps))??
            }
        };
        let Message { body, key } = write()?;
        let (exchange, routing_key) = self.route();
        let mut reply = client.shared().pending.enter(link.number, exchange.clone(), steps.clone());
        let properties = self.properties()?;
        let id = reply.id;
        let outgoing =
            Outgoing { id, exchange, routing_key, properties, body, deadline, permit: permit.clone() };
        let outcome = if link.send(outgoing).await { reply.outcome().await } else { Outcome::Lost };
        drop(permit);
        let body = match outcome {
            Outcome::Answered(body) => body,
            Outcome::TooLong => return Err(UnusableReply::TooLong.into()),
            Outcome::Unroutable => {
                let prefix = client.options().prefix.clone();
                return Err(Error::Unroutable { kind, prefix });
            }
            Outcome::Nacked => return Err(Error::Nacked { kind }),
            Outcome::Refused(error) => return Err(Error::Broker { action: "publish the request", error }),
            Outcome::Lost if client.shared().is_closed() => return Err(Error::Closed),
            Outcome::Lost if kind.is_repeatable() || steps.published() == Published::No => return Ok(None),
            Outcome::Lost => return Err(Error::ConnectionLost { kind, published: steps.published() }),
        };
        match key {
            None => Ok(Some(Body(body))),
            Some(key) => Ok(Some(Body(key.open(user, &body)?))),
        }
    }

    /// What is told where the time is over.
    fn too_late(&self, steps: &Steps) -> Error {
        let published = steps.published();
        match self.client.shared().cause() {
            Some(cause) if published != Published::Yes => Error::Connect(cause),
            _ => Error::NoReply { kind: self.kind, after: self.terms.timeout, published },
        }
    }

    /// The exchange and the routing key. With partitions, the user's name is the key, if it is short enough.
    fn route(&self) -> (ShortString, ShortString) {
        let options = self.client.options();
        // The prefix was checked to be short.
        let to = |exchange: String| ShortString::try_new(exchange).unwrap_or_default();
        match (
            options.partitioned.then(|| self.kind.partition_exchange()).flatten(),
            ShortString::try_new(self.user),
        ) {
            (Some(name), Ok(user)) => (to(format!("{}.{name}", options.prefix)), user),
            _ => (to(options.prefix.clone()), self.kind.routing_key().into()),
        }
    }

    fn properties(&self) -> Result<BasicProperties, Error> {
        let mut properties = BasicProperties::default();
        if let Some(publisher) = Options::publisher(&self.client.shared().nodes.any()) {
            let publisher = ShortString::try_new(publisher);
            let publisher = publisher
                .map_err(|_| Error::Options("the broker's user is longer than 255 bytes".to_owned()))?;
            properties = properties.with_user_id(publisher);
        }
        if let Some(traceparent) = &self.terms.traceparent {
            let mut headers = FieldTable::default();
            headers
                .insert("traceparent".into(), AMQPValue::LongString(LongString::from(traceparent.as_str())));
            properties = properties.with_headers(headers);
        }
        Ok(properties)
    }
}

/// The answer of an earlier try, where a later one brought nothing. It may have some tokens, which are better than none.
fn or_last<T>(answer: Result<T, Error>, last: Option<T>) -> Result<T, Error> {
    match (answer, last) {
        (Err(error), Some(last)) if error.retryable() => Ok(last),
        (answer, _) => answer,
    }
}
