//! The load generator: the same for the echo worker and for tokenkeeper. It shares the machine with what it measures,
//! so it does as little as it can: one connection that publishes, one that consumes, no parsing.
//!
//! Every reply is checked: of the outcome that its request must have, for the right user where one is named, to a request
//! that is under way. One that is wrong, missing or there twice makes the run a failure.

mod ask;
mod by_client;
mod heard;
mod mix;
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

use self::{
    ask::Request,
    heard::{Book, Run},
    ticks::Ticks,
};
pub(crate) use self::{
    ask::{Ask, OK, SEEDED_USERS, Users, user_name},
    by_client::{Load, Requester},
    heard::Heard,
    mix::{Mix, REFRESHED},
};

/// How long the last replies are waited for. Longer than any request's time in a worker.
const PATIENCE: Duration = Duration::from_secs(40);

/// How requests follow one another.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// So many are under way at any time: the next one goes out when a reply comes in. Those that wait for a slow host
    /// are under way beside them.
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
    book: Book,
    body: Vec<u8>,
    id: Vec<u8>,
}

impl Generator {
    /// Connects, to ask the worker whose queues have this prefix. The first request has the number `first`, which says whom
    /// it asks for.
    pub(crate) async fn connect(url: &str, prefix: &str, first: usize) -> Result<Self> {
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
            book: Book::new(first),
            body: Vec::with_capacity(512),
            id: Vec::with_capacity(20),
        })
    }

    /// From now on token requests go to the partition of their user, or not.
    pub(crate) fn by_user(&mut self, by_user: bool) {
        self.by_user = by_user.then(|| ShortString::from(format!("{}.token-requests", self.exchange)));
    }

    /// Asks at this pace, until everything is answered but what waits for a slow host. `answered` is told how many replies
    /// have come.
    pub(crate) async fn run(
        &mut self,
        ask: &Ask,
        pace: Pace,
        amount: Amount,
        mut answered: impl FnMut(u64),
    ) -> Result<Heard> {
        let mut run = Run::begin(amount)?;
        match pace {
            Pace::InFlight(count) => self.run_closed(ask, count, &mut run, &mut answered).await?,
            Pace::PerSecond(rate) => self.run_open(ask, rate, &mut run, &mut answered).await?,
        }
        Ok(run.end())
    }

    /// Waits for what is still under way, and lets go of both connections. Tells the number that comes next.
    pub(crate) async fn close(mut self) -> Result<usize> {
        let mut run = Run::begin(Amount::of_requests(0))?;
        while self.book.slow() > 0 {
            self.next(&mut run).await?;
        }
        self.consuming.close(200, "done".into()).await.context("close the connection of replies")?;
        self.publishing.close(200, "done".into()).await.context("close the connection of requests")?;
        Ok(self.book.next_number())
    }

    async fn run_closed(
        &mut self,
        ask: &Ask,
        in_flight: usize,
        run: &mut Run,
        answered: &mut impl FnMut(u64),
    ) -> Result<()> {
        let mut now = Instant::now();
        loop {
            while self.book.in_flight() < in_flight
                && let Some((number, request)) = self.book.enter(ask, run, now)
            {
                self.publish(number, &request).await?;
            }
            if self.book.in_flight() == 0 {
                return Ok(());
            }
            now = self.next(run).await?;
            answered(run.answered());
        }
    }

    async fn run_open(
        &mut self,
        ask: &Ask,
        rate: f64,
        run: &mut Run,
        answered: &mut impl FnMut(u64),
    ) -> Result<()> {
        let mut ticks = Ticks::start(rate);
        let mut sending = true;
        while sending || self.book.in_flight() > 0 {
            tokio::select! {
                biased;
                due = ticks.next(), if sending => match self.book.enter(ask, run, due) {
                    Some((number, request)) => self.publish(number, &request).await?,
                    None => sending = false,
                },
                reply = timeout(PATIENCE, self.replies.next()) => {
                    self.take(reply, run)?;
                    answered(run.answered());
                }
            }
        }
        Ok(())
    }

    /// Waits for a reply and checks it. Gives back when it came.
    async fn next(&mut self, run: &mut Run) -> Result<Instant> {
        let reply = timeout(PATIENCE, self.replies.next()).await;
        self.take(reply, run)
    }

    /// Checks what the consumer gave within the patience.
    fn take(
        &mut self,
        reply: Result<Option<lapin::Result<Delivery>>, Elapsed>,
        run: &mut Run,
    ) -> Result<Instant> {
        let now = Instant::now();
        let reply = match reply {
            Ok(Some(reply)) => reply.context("consume replies")?,
            Ok(None) => bail!("the broker cancelled the consumer of replies"),
            Err(_) => bail!("MISSING: {} within {} s", self.book.missing(), PATIENCE.as_secs()),
        };
        let id = reply.properties.correlation_id().as_ref().map(ShortString::as_str);
        self.book.take(id, &reply.data, run, now)?;
        Ok(now)
    }

    async fn publish(&mut self, number: usize, request: &Request) -> Result<()> {
        self.id.clear();
        write!(self.id, "{number}").context("write a correlation id")?;
        self.body.clear();
        request.write(number, &mut self.body)?;
        let id = ShortString::from(String::from_utf8_lossy(&self.id).as_ref());
        let properties = self.properties.clone().with_correlation_id(id);
        let options = BasicPublishOptions::default();
        let (exchange, key) = match &self.by_user {
            Some(exchange) => (exchange.clone(), user_name(request.user).into()),
            None => (self.exchange.clone(), request.routing_key().into()),
        };
        let publish = self.requests.basic_publish(exchange, key, options, &self.body, properties);
        publish.await.map(drop).context("publish a request")
    }
}
