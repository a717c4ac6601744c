//! The dead letters: an operator's commands list them, take them out and publish them again.
//!
//! AMQP cannot browse. So a command takes all letters without acking them, and gives them back in the end. The quorum queue
//! then delivers them first, in their order. Two commands at once would each see half of the letters. So an exclusive queue,
//! which the broker deletes with its owner's connection, admits one at a time.
//!
//! No letter is lost, however a command ends. Only an ack removes a letter, and unacked ones go back with the connection.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod letter;
mod replay;
mod seal;
mod sealer;

use std::mem;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer, Queue};
use tokio::time::{Instant, sleep, timeout};

pub use self::letter::{Destination, Letter, is_ours};
pub(super) use self::letter::{id_of, is_of_death};
pub use self::replay::{REPLAY_COUNT_HEADER, Replayer, Unreplayed};
pub(super) use self::seal::{Sealed, without_seal};
pub use self::seal::{Unopened, open};
pub use self::sealer::Sealer;
use super::topology::{short, text};
use super::{BrokerError, Names, connect, within};
use crate::settings::Broker;

/// How many letters one channel holds. A full channel stays open, and a new one takes over. That bounds the memory for letters
/// that have arrived and not been looked at.
const HELD_PER_CHANNEL: u16 = 500;

/// The pause between two checks whether returned letters are ready. The first check usually comes just too early.
const READY_POLL: Duration = Duration::from_millis(10);

/// How long to wait for letters that a broken connection held. A consumer that stays longer is none of ours: nobody else may
/// read the letters meanwhile.
const LEFT_BEHIND: Duration = Duration::from_secs(2);

/// The pause between two tries to get in. The broker logs each refusal.
const LOCK_POLL: Duration = Duration::from_millis(50);

/// The dead letters cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DeadLettersError {
    #[error(
        "there is no queue {queue} at {broker}: a worker declares it; are `broker.url` and `broker.prefix` its own?"
    )]
    NoQueue {
        queue: String,
        /// The broker, without its password.
        broker: String,
    },
    /// Somebody else has them.
    #[error(
        "another `tokenkeeper dead` command, or a worker that seals them, has had {queue} for {} s; try again when it has ended",
        after.as_secs()
    )]
    Busy { queue: String, after: Duration },
    /// The broker, or the connection to it.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// The dead letters that were there at opening, one after the other. Nobody else can open them meanwhile.
#[derive(Debug)]
pub struct DeadLetters {
    settings: Broker,
    names: Names,
    queue: String,
    connection: Connection,
    /// Kept open, because closing a channel gives its letters back.
    full: Vec<Channel>,
    current: Option<Current>,
    waiting: u32,
    seen: u32,
    acked: u32,
}

/// The channel that letters come over.
#[derive(Debug)]
struct Current {
    channel: Channel,
    consumer: Consumer,
    held: u16,
}

impl DeadLetters {
    /// Opens the dead letters. If somebody else has them, calls `on_wait` and waits at most `patience`.
    ///
    /// # Errors
    /// [`DeadLettersError`]; no letter was taken.
    pub async fn open(
        settings: &Broker,
        patience: Duration,
        on_wait: impl FnOnce(),
    ) -> Result<Self, DeadLettersError> {
        let names = Names::new(&settings.prefix);
        let mut letters = Self {
            settings: settings.clone(),
            queue: names.dead_letters(),
            names,
            connection: connect(settings, "tokenkeeper dead letters").await?,
            full: Vec::new(),
            current: None,
            waiting: 0,
            seen: 0,
            acked: 0,
        };
        // Before the lock, so that an operator with a wrong prefix learns it at once.
        letters.existing().await?;
        letters.lock(patience, on_wait).await?;
        letters.waiting = letters.all_back().await?;
        Ok(letters)
    }

    /// How many letters there were at opening.
    pub fn waiting(&self) -> u32 {
        self.waiting
    }

    /// The next letter, or None after the last one that was there at opening. A replayed letter that comes back is not
    /// given out again.
    ///
    /// # Errors
    /// [`DeadLettersError::Broker`]: the connection is gone, and the letters are back in the queue.
    pub async fn next(&mut self) -> Result<Option<Letter>, DeadLettersError> {
        if self.seen == self.waiting {
            return Ok(None);
        }
        let limit = self.settings.operation_timeout;
        let current = self.current().await?;
        match timeout(limit, current.consumer.next()).await {
            Ok(Some(Ok(delivery))) => {
                current.held += 1;
                self.seen += 1;
                Ok(Some(Letter::new(delivery, &self.names)))
            }
            Ok(Some(Err(error))) => {
                Err(BrokerError::Amqp { action: format!("read queue {}", self.queue), error }.into())
            }
            Ok(None) => Err(BrokerError::Cancelled { queue: self.queue.clone() }.into()),
            // Somebody purged the queue, or took letters by other means.
            Err(_) if self.ready().await?.unwrap_or_default() == 0 => Ok(None),
            Err(_) => {
                let action = format!("read queue {}", self.queue);
                Err(BrokerError::Timeout { action, after: limit }.into())
            }
        }
    }

    /// Removes a letter. It must be the last one that [`DeadLetters::next`] gave out.
    ///
    /// # Errors
    /// [`BrokerError`]: the letter is back in the queue.
    pub async fn take_out(&mut self, letter: &Letter) -> Result<(), BrokerError> {
        let limit = self.settings.operation_timeout;
        if !within(limit, || "ack a dead letter".to_owned(), letter.ack()).await? {
            return Err(BrokerError::Cancelled { queue: self.queue.clone() });
        }
        self.acked += 1;
        if let Some(current) = &mut self.current {
            current.held = current.held.saturating_sub(1);
        }
        Ok(())
    }

    /// Gives back the letters that were not removed, and lets the next command in.
    ///
    /// # Errors
    /// [`BrokerError`]: some removed letters may be back in the queue, too.
    pub async fn close(mut self) -> Result<(), BrokerError> {
        let limit = self.settings.operation_timeout;
        let current = self.current.take();
        if let Some(Current { channel, consumer, .. }) = &current {
            // Otherwise letters that other channels give back would come here, and go back behind the rest.
            let cancel = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
            within(limit, || "stop reading the dead letters".to_owned(), cancel).await?;
        }
        // One channel after the other, the oldest first, so that the letters keep their order. They are back a moment
        // after their channel is closed. Without a pause the next channel's letters could overtake them.
        let mut back = self.ready().await?.unwrap_or_default();
        let mut all_came = true;
        for channel in mem::take(&mut self.full) {
            self.give_back(&channel).await?;
            back += u32::from(HELD_PER_CHANNEL);
            // One failed wait is enough: somebody takes them away.
            all_came = all_came && self.until_ready(back).await?;
        }
        if let Some(Current { channel, .. }) = &current {
            self.give_back(channel).await?;
            // The next command must find all of them.
            if all_came {
                self.until_ready(self.waiting.saturating_sub(self.acked)).await?;
            }
        }
        let close = self.connection.close(200, "done".into());
        within(limit, || "close the connection".to_owned(), close).await
    }

    async fn give_back(&self, channel: &Channel) -> Result<(), BrokerError> {
        let close = channel.close(200, "done".into());
        within(self.settings.operation_timeout, || "give back the dead letters".to_owned(), close).await
    }

    /// Waits until so many are ready, and returns whether they are. Gives up after a while: somebody may have purged the
    /// queue, or taken letters by other means.
    async fn until_ready(&self, count: u32) -> Result<bool, BrokerError> {
        let give_up_at = Instant::now() + self.settings.operation_timeout;
        loop {
            match self.ready().await? {
                None => return Ok(false),
                Some(ready) if ready >= count => return Ok(true),
                Some(_) if Instant::now() >= give_up_at => return Ok(false),
                Some(_) => sleep(READY_POLL).await,
            }
        }
    }

    /// The channel that letters come over. Opens a new one when the last one is full.
    async fn current(&mut self) -> Result<&mut Current, BrokerError> {
        let current = match self.current.take() {
            Some(current) if current.held < HELD_PER_CHANNEL => current,
            before => {
                self.full.extend(before.map(|before| before.channel));
                self.subscribe().await?
            }
        };
        Ok(self.current.insert(current))
    }

    async fn subscribe(&self) -> Result<Current, BrokerError> {
        let limit = self.settings.operation_timeout;
        let channel = self.channel().await?;
        // Before consuming, or the broker sends everything it has.
        let qos = channel.basic_qos(HELD_PER_CHANNEL, BasicQosOptions::default());
        within(limit, || "set the prefetch".to_owned(), qos).await?;
        let options = BasicConsumeOptions::default();
        let consume = channel.basic_consume(short(&self.queue)?, "".into(), options, FieldTable::default());
        let consumer = within(limit, || format!("read queue {}", self.queue), consume).await?;
        Ok(Current { channel, consumer, held: 0 })
    }

    /// How many letters are ready once the broker has taken back those of a command whose connection broke. The broker lets
    /// us in a moment before that.
    async fn all_back(&self) -> Result<u32, DeadLettersError> {
        let give_up_at = Instant::now() + LEFT_BEHIND;
        loop {
            let queue = self.existing().await?;
            if queue.consumer_count() == 0 || Instant::now() >= give_up_at {
                return Ok(queue.message_count());
            }
            sleep(READY_POLL).await;
        }
    }

    async fn existing(&self) -> Result<Queue, DeadLettersError> {
        self.look().await?.ok_or_else(|| DeadLettersError::NoQueue {
            queue: self.queue.clone(),
            broker: self.settings.display_url().to_owned(),
        })
    }

    /// How many letters are ready in the queue. None: there is no such queue.
    async fn ready(&self) -> Result<Option<u32>, BrokerError> {
        Ok(self.look().await?.map(|queue| queue.message_count()))
    }

    /// The queue as it is. None: there is no such queue.
    async fn look(&self) -> Result<Option<Queue>, BrokerError> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        match self.declare(&self.queue, passive, FieldTable::default()).await {
            Ok(queue) => Ok(Some(queue)),
            Err(error) if error.soft_error() == Some(&AMQPSoftError::NOTFOUND) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Declares the exclusive queue. The broker refuses it to every other connection until ours is gone.
    async fn lock(&self, patience: Duration, on_wait: impl FnOnce()) -> Result<(), DeadLettersError> {
        let name = format!("{}.in-use", self.queue);
        let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let mut arguments = FieldTable::default();
        // Whatever the virtual host's default type is: only a classic queue can be exclusive.
        arguments.insert("x-queue-type".into(), text("classic"));
        let give_up_at = Instant::now() + patience;
        let mut on_wait = Some(on_wait);
        loop {
            let Err(error) = self.declare(&name, exclusive, arguments.clone()).await else { return Ok(()) };
            match error.soft_error() {
                Some(AMQPSoftError::RESOURCELOCKED) if Instant::now() < give_up_at => {
                    if let Some(on_wait) = on_wait.take() {
                        on_wait();
                    }
                    sleep(LOCK_POLL).await;
                }
                Some(AMQPSoftError::RESOURCELOCKED) => {
                    return Err(DeadLettersError::Busy { queue: self.queue.clone(), after: patience });
                }
                // This user may not declare queues: then operators themselves must not run two commands at once.
                Some(AMQPSoftError::ACCESSREFUSED) => return Ok(()),
                _ => return Err(error.into()),
            }
        }
    }

    /// Over a channel of its own: a missing or foreign queue closes it.
    async fn declare(
        &self,
        name: &str,
        options: QueueDeclareOptions,
        arguments: FieldTable,
    ) -> Result<Queue, BrokerError> {
        let limit = self.settings.operation_timeout;
        let channel = self.channel().await?;
        let declare = channel.queue_declare(short(name)?, options, arguments);
        let queue = within(limit, || format!("find queue {name}"), declare).await?;
        within(limit, || "close a channel".to_owned(), channel.close(200, "done".into())).await?;
        Ok(queue)
    }

    async fn channel(&self) -> Result<Channel, BrokerError> {
        let limit = self.settings.operation_timeout;
        within(limit, || "open a channel".to_owned(), self.connection.create_channel()).await
    }
}
