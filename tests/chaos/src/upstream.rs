//! Upstream: publishes requests with confirms, reads the answers from a queue of its own, and writes down both.
//!
//! It outlives every fault: connections are made again, and what the broker has not confirmed is published again,
//! as is a publisher's duty. A request without an answer is never repeated.

mod book;
mod link;

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use lapin::{
    BasicProperties, Channel,
    options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions},
    types::FieldTable,
};
use serde_json::json;
use tokenkeeper_testkit::queues::TOKEN_REQUEST;
use tokio::{
    sync::{Mutex, mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};

pub(crate) use self::book::{Answer, Answered, Ask, Book, RequestId, Sent};
use self::link::{Links, Queue};

/// Who publishes at once: each has one message in flight, so that a confirm tells about the message it belongs to.
const PUBLISHERS: usize = 96;
/// How many requests may be without an answer before the next one is sent.
const BACKLOG: usize = 4000;
/// A confirm that does not come: the broker may be blocked, or gone without a word.
const CONFIRM_PATIENCE: Duration = Duration::from_secs(20);
const AGAIN: Duration = Duration::from_millis(100);
const PERSISTENT: u8 = 2;

/// Publishes requests and collects answers.
pub(crate) struct Upstream {
    book: Arc<Book>,
    jobs: mpsc::UnboundedSender<RequestId>,
    url: String,
    prefix: String,
    _tasks: JoinSet<()>,
}

impl Upstream {
    /// Begins to work on the broker at `url`, for workers with this prefix. `clock` is the one that the SCMs go by.
    pub(crate) fn start(url: &str, prefix: &str, clock: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        let book = Arc::new(Book::new(clock));
        let (jobs, waiting) = mpsc::unbounded_channel();
        let waiting = Arc::new(Mutex::new(waiting));
        let mut tasks = JoinSet::new();
        let replies = format!("{prefix}-replies");
        let links = Links::start(url, &mut tasks);
        tasks.spawn(read_answers(url.to_owned(), Queue::quorum(&replies), Arc::clone(&book)));
        for _ in 0..PUBLISHERS {
            let publisher = Publisher {
                book: Arc::clone(&book),
                waiting: Arc::clone(&waiting),
                exchange: prefix.to_owned(),
                reply_to: replies.clone(),
            };
            tasks.spawn(publisher.run(links.clone()));
        }
        Self { book, jobs, url: url.to_owned(), prefix: prefix.to_owned(), _tasks: tasks }
    }

    /// Sends a request; it is published as soon as the broker takes it.
    pub(crate) fn send(&self, ask: Ask) -> RequestId {
        let id = self.book.enter(ask);
        // The publishers live as long as this.
        let _ = self.jobs.send(id);
        id
    }

    /// Sends requests at this rate, `count` of them; slower where the machine does not keep up, since a backlog that
    /// only grows says nothing about faults.
    pub(crate) async fn send_steadily(&self, count: usize, per_second: u32, mut next: impl FnMut() -> Ask) {
        let began = Instant::now();
        for number in 0..count {
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            sleep_until(began + Duration::from_secs(1) * number / per_second).await;
            while self.book.unanswered() > BACKLOG {
                sleep(AGAIN).await;
            }
            self.send(next());
        }
    }

    /// What was written down.
    pub(crate) fn book(&self) -> &Book {
        &self.book
    }

    /// The first answer to a request, or none within `patience`.
    pub(crate) async fn answer(&self, id: RequestId, patience: Duration) -> Option<Answer> {
        let until = Instant::now() + patience;
        let mut changes = self.book.changes();
        loop {
            if let Some(answer) = self.book.first_answer(id) {
                return Some(answer);
            }
            timeout_at(until, changes.changed()).await.ok()?.ok()?;
        }
    }

    /// Waits until every request is answered; gives up when no answer has come for `patience`.
    pub(crate) async fn settle(&self, patience: Duration) {
        let mut changes = self.book.changes();
        while !self.book.all_answered() {
            if timeout(patience, changes.changed()).await.is_err() {
                return;
            }
        }
    }

    /// The requests that lie in the dead letters, which are taken out.
    pub(crate) async fn dead_letters(&self) -> Result<Vec<RequestId>> {
        let connection = link::connect(&self.url).await.context("look into the dead letters")?;
        let channel = connection.create_channel().await?;
        let queue = format!("{}.dead-letters", self.prefix);
        let mut found = Vec::new();
        while let Some(letter) =
            channel.basic_get(queue.as_str().into(), BasicGetOptions { no_ack: true }).await?
        {
            let id = letter.delivery.properties.correlation_id().as_ref();
            found.extend(id.and_then(|id| RequestId::parse(id.as_str())));
        }
        connection.close(200, "done".into()).await?;
        Ok(found)
    }

    /// Deletes a queue of the workers, with everything in it.
    pub(crate) async fn delete_queue(&self, suffix: &str) -> Result<()> {
        let connection = link::connect(&self.url).await.context("delete a queue")?;
        let channel = connection.create_channel().await?;
        let name = format!("{}.{suffix}", self.prefix);
        channel.queue_delete(name.into(), lapin::options::QueueDeleteOptions::default()).await?;
        connection.close(200, "done".into()).await?;
        Ok(())
    }

    /// How many messages are ready in a queue of the workers.
    pub(crate) async fn queue_depth(&self, suffix: &str) -> Result<u32> {
        let connection = link::connect(&self.url).await.context("look at a queue")?;
        let channel = connection.create_channel().await?;
        let passive = lapin::options::QueueDeclareOptions {
            passive: true,
            ..lapin::options::QueueDeclareOptions::default()
        };
        let name = format!("{}.{suffix}", self.prefix);
        let queue = channel.queue_declare(name.into(), passive, FieldTable::default()).await?;
        connection.close(200, "done".into()).await?;
        Ok(queue.message_count())
    }
}

async fn read_answers(url: String, queue: Queue, book: Arc<Book>) {
    loop {
        // Whatever breaks: the queue keeps the answers that were not acked.
        let _ = link::consume(&url, &queue, |delivery| book.answered(delivery)).await;
        sleep(AGAIN).await;
    }
}

/// Publishes one request at a time.
struct Publisher {
    book: Arc<Book>,
    waiting: Arc<Mutex<mpsc::UnboundedReceiver<RequestId>>>,
    exchange: String,
    reply_to: String,
}

impl Publisher {
    async fn run(self, mut links: Links) {
        let mut unconfirmed = None;
        loop {
            let Ok(channel) = open(&mut links).await else {
                sleep(AGAIN).await;
                continue;
            };
            while let Some(id) = self.next(&mut unconfirmed).await {
                if self.publish(&channel, id).await.is_err() {
                    unconfirmed = Some(id);
                    sleep(AGAIN).await;
                    break;
                }
                self.book.confirmed(id);
            }
        }
    }

    async fn next(&self, unconfirmed: &mut Option<RequestId>) -> Option<RequestId> {
        match unconfirmed.take() {
            Some(id) => Some(id),
            None => self.waiting.lock().await.recv().await,
        }
    }

    async fn publish(&self, channel: &Channel, id: RequestId) -> Result<()> {
        let sent = self.book.request(id);
        let body = json!({
            "user_id": sent.ask.user.as_ref(), "host": sent.ask.host.as_ref(),
            "requested_lifetime_secs": sent.ask.lifetime_secs,
        });
        let properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_correlation_id(id.to_string().into())
            .with_reply_to(self.reply_to.as_str().into());
        let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let body = body.to_string();
        let publishing = async {
            let exchange = self.exchange.as_str().into();
            let publish =
                channel.basic_publish(exchange, TOKEN_REQUEST.into(), mandatory, body.as_bytes(), properties);
            publish.await?.await
        };
        let confirmation = timeout(CONFIRM_PATIENCE, publishing).await.context("no confirm")??;
        // Not acked: the broker did not take it. A message in it: no queue wanted it.
        ensure!(confirmation.is_ack() && confirmation.take_message().is_none(), "the broker did not take it");
        Ok(())
    }
}

async fn open(links: &mut Links) -> Result<Channel> {
    let connection = links.current().await;
    let opening = async {
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok::<_, lapin::Error>(channel)
    };
    Ok(timeout(CONFIRM_PATIENCE, opening).await??)
}

/// Changes whenever an answer has come.
pub(crate) type Changes = watch::Receiver<u64>;
