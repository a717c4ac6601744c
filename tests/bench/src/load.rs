//! The load generator: the same for the echo worker and for tokenkeeper. It shares the machine with what it measures,
//! so it does as little as it can: one connection that publishes, one that consumes, no parsing.
//!
//! Every reply is checked: `ok`, for the right user where one is named, to a request that is under way. One that is
//! wrong, missing or there twice makes the run a failure.

mod ask;
mod heard;
mod ticks;

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, Consumer,
    message::Delivery,
    options::{BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions},
    types::{FieldTable, ShortString},
};
use tokio::time::{error::Elapsed, timeout};

pub(crate) use self::{
    ask::{Ask, SEEDED_USERS, Users, user_name},
    heard::{Heard, OK},
};
use self::{heard::Book, ticks::Ticks};

/// How long the last replies are waited for. Longer than any request's time in a worker.
const PATIENCE: Duration = Duration::from_secs(40);

/// How requests follow one another.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// So many are under way at any time: the next one goes out when a reply comes in.
    InFlight(usize),
    /// So many a second, whatever comes back. Latencies count from when a request was to be sent, so that a stall is
    /// paid for by everybody who would have come during it.
    PerSecond(f64),
}

/// When no more requests are sent: after this time, or after so many.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amount {
    pub(crate) time: Duration,
    pub(crate) requests: u64,
}

impl Amount {
    /// As many requests as there is time for.
    pub(crate) const fn of_time(time: Duration) -> Self {
        Self { time, requests: u64::MAX }
    }

    /// So many requests, however long they take.
    pub(crate) const fn of_requests(requests: u64) -> Self {
        Self { time: Duration::from_hours(1), requests }
    }

    /// The same, ended by so many requests as well.
    pub(crate) const fn at_most(self, requests: u64) -> Self {
        Self { requests, ..self }
    }
}

/// Two connections to the broker, and the queue that replies come to.
pub(crate) struct Generator {
    publishing: Connection,
    consuming: Connection,
    requests: Channel,
    replies: Consumer,
    exchange: ShortString,
    /// Where to publish by user instead: the exchange of the partitions.
    by_user: Option<ShortString>,
    properties: BasicProperties,
    body: Vec<u8>,
    id: Vec<u8>,
}

impl Generator {
    /// Connects, to ask the worker whose queues have this prefix.
    pub(crate) async fn connect(url: &str, prefix: &str) -> Result<Self> {
        let properties = || ConnectionProperties::default().with_connection_name("tokenkeeper-bench".into());
        let publishing = Connection::connect(url, properties()).await.context("connect to publish")?;
        let consuming = Connection::connect(url, properties()).await.context("connect to consume")?;
        let requests = publishing.create_channel().await.context("open a channel for requests")?;
        let channel = consuming.create_channel().await.context("open a channel for replies")?;
        // A worker does not reply to a queue that the broker named. Deleted with this connection.
        let name = format!("bench-replies-{prefix}-{}", std::process::id());
        let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare(name.as_str().into(), exclusive, FieldTable::default()).await;
        let queue = queue.context("declare a queue for replies")?.name().clone();
        let unacked = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let replies =
            channel.basic_consume(queue.clone(), "replies".into(), unacked, FieldTable::default()).await;
        Ok(Self {
            publishing,
            consuming,
            requests,
            replies: replies.context("consume replies")?,
            exchange: ShortString::try_new(prefix).context("the prefix is too long")?,
            by_user: None,
            properties: BasicProperties::default().with_reply_to(queue),
            body: Vec::with_capacity(512),
            id: Vec::with_capacity(20),
        })
    }

    /// From now on token requests go to the partition of their user, or not.
    pub(crate) fn by_user(&mut self, by_user: bool) {
        self.by_user = by_user.then(|| ShortString::from(format!("{}.token-requests", self.exchange)));
    }

    /// Asks at this pace, until everything is answered. `answered` is told how many replies have come.
    pub(crate) async fn run(
        &mut self,
        ask: &Ask,
        pace: Pace,
        amount: Amount,
        mut answered: impl FnMut(u64),
    ) -> Result<Heard> {
        let mut book = Book::new(amount)?;
        match pace {
            Pace::InFlight(count) => self.run_closed(ask, count, &mut book, &mut answered).await?,
            Pace::PerSecond(rate) => self.run_open(ask, rate, &mut book, &mut answered).await?,
        }
        Ok(book.close())
    }

    /// Lets go of both connections.
    pub(crate) async fn close(self) -> Result<()> {
        self.consuming.close(200, "done".into()).await.context("close the connection of replies")?;
        self.publishing.close(200, "done".into()).await.context("close the connection of requests")
    }

    async fn run_closed(
        &mut self,
        ask: &Ask,
        in_flight: usize,
        book: &mut Book,
        answered: &mut impl FnMut(u64),
    ) -> Result<()> {
        for _ in 0..in_flight {
            if let Some(number) = book.enter(Instant::now()) {
                self.publish(ask, number).await?;
            }
        }
        while book.is_waiting() {
            let reply = self.next(book).await?;
            let now = Instant::now();
            answered(book.take(id_of(&reply), &reply.data, ask, now)?);
            if let Some(number) = book.enter(now) {
                self.publish(ask, number).await?;
            }
        }
        Ok(())
    }

    async fn run_open(
        &mut self,
        ask: &Ask,
        rate: f64,
        book: &mut Book,
        answered: &mut impl FnMut(u64),
    ) -> Result<()> {
        let mut ticks = Ticks::start(rate);
        let mut sending = true;
        while sending || book.is_waiting() {
            tokio::select! {
                biased;
                due = ticks.next(), if sending => match book.enter(due) {
                    Some(number) => self.publish(ask, number).await?,
                    None => sending = false,
                },
                reply = timeout(PATIENCE, self.replies.next()) => {
                    let reply = heard(reply, book)?;
                    answered(book.take(id_of(&reply), &reply.data, ask, Instant::now())?);
                }
            }
        }
        Ok(())
    }

    async fn next(&mut self, book: &Book) -> Result<Delivery> {
        heard(timeout(PATIENCE, self.replies.next()).await, book)
    }

    async fn publish(&mut self, ask: &Ask, number: usize) -> Result<()> {
        self.id.clear();
        write!(self.id, "{number}").context("write a correlation id")?;
        self.body.clear();
        ask.write(number, &mut self.body)?;
        let id = ShortString::from(String::from_utf8_lossy(&self.id).as_ref());
        let properties = self.properties.clone().with_correlation_id(id);
        let options = BasicPublishOptions::default();
        let (exchange, key) = match &self.by_user {
            Some(exchange) => (exchange.clone(), user_name(ask.user(number)).into()),
            None => (self.exchange.clone(), ask.routing_key().into()),
        };
        let publish = self.requests.basic_publish(exchange, key, options, &self.body, properties);
        publish.await.map(drop).context("publish a request")
    }
}

fn id_of(reply: &Delivery) -> Option<&str> {
    reply.properties.correlation_id().as_ref().map(ShortString::as_str)
}

/// Within the patience, what the consumer gave.
fn heard(reply: Result<Option<lapin::Result<Delivery>>, Elapsed>, book: &Book) -> Result<Delivery> {
    match reply {
        Ok(Some(reply)) => reply.context("consume replies"),
        Ok(None) => bail!("the broker cancelled the consumer of replies"),
        Err(_) => bail!("MISSING: {} within {} s", book.missing(), PATIENCE.as_secs()),
    }
}
