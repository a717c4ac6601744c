//! Publishes dead letters, parked pairs, suspects and events over a connection of its own, and reopens it when it breaks.
//!
//! Dead letters and parked pairs are published one at a time, so that a return is exact: a message that no queue took must not
//! count as safe.

mod events;
mod journal;
mod supervised;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection};
use tokio::sync::{Mutex, Notify, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use self::events::EventFate;
use self::supervised::Supervised;
use super::confirmed::{Publish, confirmed, confirming_channel};
use super::dead_letters::Sealed;
use super::outgoing::PERSISTENT;
use super::{AGAIN, BrokerError, DeadLetter, Feed, MovedMessage, MovedTo, Names, Troubles, connect, within};
use crate::contract::PARKED_PAIR_TYPE;
use crate::domain::secret::KeyRing;
use crate::retry::retry_forever;
use crate::settings::Broker;
use crate::telemetry;

/// Publishes dead letters, parked pairs, suspects and events. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Publisher {
    settings: Arc<Broker>,
    /// Seals dead letters.
    keys: Arc<KeyRing>,
    dead_letters: Arc<str>,
    wire: watch::Receiver<Option<Arc<Wire>>>,
    /// Tells the supervisor to check the connection, because a publish failed.
    suspicion: Arc<Notify>,
    /// The worker's, its other connections included.
    troubles: Troubles,
    hard_stop: CancellationToken,
}

/// The worker stops. The message was not published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the worker is stopping")]
pub struct Stopped;

/// The message stays where it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the broker did not take it, twice")]
pub struct NotMoved;

/// How long it takes at most to notice a lost connection after a publish failed.
const SUPERVISED: Duration = Duration::from_millis(500);

/// One connection and its confirming channels.
#[derive(Debug)]
struct Wire {
    connection: Connection,
    /// For one publish at a time, so that a return is exact.
    exact: Mutex<Channel>,
    /// The same for suspects. There may be many, and dead letters and parked pairs must not wait behind them.
    moving: Mutex<Channel>,
    /// A publish got no answer although nothing blocks the connection. The other end is gone, and otherwise only the heartbeat
    /// would find out.
    silent: AtomicBool,
    /// Opened for the first event. The broker closes it if there is no exchange of events. That must not affect dead letters.
    events: Mutex<Option<Channel>>,
    /// For many publishes at once. Opened for the first record of the journal, for the same reason.
    journal: Mutex<Option<Channel>>,
}

impl Publisher {
    /// Returns a publisher and the task that keeps its connection up until `closed` fires. After `hard_stop` it no longer
    /// retries.
    pub fn new(
        settings: Arc<Broker>,
        keys: Arc<KeyRing>,
        name: String,
        hard_stop: CancellationToken,
        closed: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (up, wire) = watch::channel(None);
        let (suspicion, troubles) = (Arc::new(Notify::new()), Troubles::new(&settings));
        let supervised = Supervised {
            settings: Arc::clone(&settings),
            name,
            up,
            suspicion: Arc::clone(&suspicion),
            troubles: troubles.clone(),
        };
        let dead_letters = Names::new(&settings.prefix).dead_letters().into();
        let publisher = Self { settings, keys, dead_letters, wire, suspicion, troubles, hard_stop };
        (publisher, supervised.keep_up(closed))
    }

    /// What keeps the worker from its broker.
    pub const fn troubles(&self) -> &Troubles {
        &self.troubles
    }

    /// Whether the connection is up and not blocked.
    pub fn is_ready(&self) -> bool {
        self.wire.borrow().as_ref().is_some_and(|wire| wire.is_open() && !wire.connection.status().blocked())
    }

    /// Publishes a message to the dead letters and waits for the confirm, however long that takes: over a new connection if
    /// this one breaks, and until an alarm is over. Seals a body, unless it is known to hold no secret.
    ///
    /// # Errors
    /// [`Stopped`] when the worker stops first.
    pub async fn dead_letter(&self, letter: &DeadLetter<'_>, body: &[u8]) -> Result<(), Stopped> {
        let sealed = letter.sealed(&self.keys, body);
        let body = sealed.as_ref().map_or(body, |sealed| &sealed.body);
        self.retry_until_stopped(|wire| self.try_dead_letter(wire, letter, sealed.as_ref(), body)).await
    }

    /// How many dead letters are ready. Waits until the connection is up.
    ///
    /// # Errors
    /// [`BrokerError`]: the broker does not answer, or there is no such queue.
    pub async fn dead_letters_ready(&self) -> Result<u32, BrokerError> {
        let queue = &self.dead_letters;
        let wire = self.wire.clone().wait_for(Option::is_some).await.ok().and_then(|wire| wire.clone());
        // This happens only at the end of the worker.
        let Some(wire) = wire else { return Ok(0) };
        let limit = self.settings.operation_timeout;
        let channel = within(limit, || "open a channel".to_owned(), wire.connection.create_channel()).await?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declare = channel.queue_declare(short_name(queue)?, passive, FieldTable::default());
        let found = within(limit, || format!("find queue {queue}"), declare).await?;
        within(limit, || "close a channel".to_owned(), channel.close(200, "done".into())).await?;
        Ok(found.message_count())
    }

    /// Parks a pair and waits for the confirm, also after the hard stop, but at most `patience`.
    ///
    /// # Errors
    /// [`BrokerError`]: the broker does not have the pair.
    pub async fn park(&self, body: &[u8], patience: Duration) -> Result<(), BrokerError> {
        let action = || "park a refreshed pair".to_owned();
        let parking = async {
            let wire = self.wire.clone().wait_for(Option::is_some).await.ok().and_then(|wire| wire.clone());
            match wire {
                Some(wire) => self.try_park(wire, body).await,
                None => Err(BrokerError::Timeout { action: action(), after: Duration::ZERO }),
            }
        };
        timeout(patience, parking)
            .await
            .unwrap_or_else(|_| Err(BrokerError::Timeout { action: action(), after: patience }))
    }

    /// Moves a message to a queue of ours and waits for the confirm. Does not retry: a suspect may end this connection, too, and
    /// others wait behind it.
    ///
    /// # Errors
    /// [`NotMoved`].
    pub async fn move_on(&self, moved: &MovedMessage<'_>, body: &[u8]) -> Result<(), NotMoved> {
        self.try_twice(|wire| self.try_move_on(wire, moved, body)).await
    }

    /// Publishes a suspect to the dead letters. Does not retry either.
    ///
    /// # Errors
    /// [`NotMoved`].
    pub async fn dead_letter_of_suspect(&self, letter: &DeadLetter<'_>, body: &[u8]) -> Result<(), NotMoved> {
        let sealed = letter.sealed(&self.keys, body);
        let body = sealed.as_ref().map_or(body, |sealed| &sealed.body);
        self.try_twice(|wire| self.try_dead_letter(wire, letter, sealed.as_ref(), body)).await
    }

    async fn try_twice<F>(&self, publish: impl Fn(Arc<Wire>) -> F) -> Result<(), NotMoved>
    where
        F: Future<Output = Result<(), BrokerError>>,
    {
        let mut wire = self.wire.clone();
        for _ in 0..2 {
            let up = timeout(self.settings.connect_timeout, wire.wait_for(Option::is_some)).await;
            let Ok(Ok(Some(up))) = up.map(|up| up.map(|up| up.clone())) else { return Err(NotMoved) };
            match publish(Arc::clone(&up)).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    telemetry::message_not_moved(&error);
                    self.suspicion.notify_one();
                    // A lost wire is not used again.
                    let _ = timeout(SUPERVISED, wire.wait_for(|now| !is_same(now.as_ref(), &up))).await;
                }
            }
        }
        Err(NotMoved)
    }

    async fn try_move_on(
        &self,
        wire: Arc<Wire>,
        moved: &MovedMessage<'_>,
        body: &[u8],
    ) -> Result<(), BrokerError> {
        let names = Names::new(&self.settings.prefix);
        let (exchange, queue) = match moved.to {
            MovedTo::Queue(feed) => (String::new(), names.queue(feed)),
            MovedTo::Again(kind) => (names.again(), names.queue(Feed::Messages(kind))),
        };
        let message = Publish {
            exchange: short_name(&exchange)?,
            routing_key: short_name(&queue)?,
            mandatory: true,
            properties: moved.properties(wire.connection.configuration().frame_max()),
        };
        let channel = wire.moving.lock().await;
        let (publishing, limit) = (pin!(message.over(&channel, body)), self.settings.operation_timeout);
        match confirmed(&wire.connection, publishing, "a message that is moved", limit).await? {
            None => Ok(()),
            Some(_) => Err(BrokerError::NoQueue { queue }),
        }
    }

    async fn try_dead_letter(
        &self,
        wire: Arc<Wire>,
        letter: &DeadLetter<'_>,
        sealed: Option<&Sealed>,
        body: &[u8],
    ) -> Result<(), BrokerError> {
        let exchange = self.dead_letters.to_string();
        let properties = letter.properties(sealed, wire.connection.configuration().frame_max());
        let message = Publish {
            exchange: short_name(&exchange)?,
            routing_key: short_name(letter.routing_key)?,
            mandatory: true,
            properties: properties.clone(),
        };
        let channel = wire.exact.lock().await;
        let (publishing, limit) = (pin!(message.over(&channel, body)), self.settings.operation_timeout);
        if confirmed(&wire.connection, publishing, "a dead letter", limit).await?.is_some() {
            return Err(BrokerError::NoDeadLetters { exchange });
        }
        letter.published(&properties, body);
        Ok(())
    }

    async fn try_park(&self, wire: Arc<Wire>, body: &[u8]) -> Result<(), BrokerError> {
        let queue = Names::new(&self.settings.prefix).parked_pairs();
        let message = Publish {
            exchange: ShortString::default(),
            routing_key: short_name(&queue)?,
            mandatory: true,
            properties: BasicProperties::default()
                .with_type(PARKED_PAIR_TYPE.into())
                .with_content_type("application/json".into())
                .with_delivery_mode(PERSISTENT),
        };
        let channel = wire.exact.lock().await;
        let (publishing, limit) = (pin!(message.over(&channel, body)), self.settings.operation_timeout);
        match confirmed(&wire.connection, publishing, "a parked pair", limit).await? {
            None => Ok(()),
            Some(_) => Err(BrokerError::NoQueue { queue }),
        }
    }

    /// A channel that the broker may close without harm to the others: open, or opened now.
    async fn own_channel(
        &self,
        connection: &Connection,
        place: &Mutex<Option<Channel>>,
    ) -> Result<Channel, BrokerError> {
        let mut place = place.lock().await;
        let channel = match place.take().filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => confirming_channel(connection, &self.settings).await?,
        };
        Ok(place.insert(channel).clone())
    }

    /// Retries until the publish works or the worker stops.
    async fn retry_until_stopped<F>(&self, publish: impl Fn(Arc<Wire>) -> F) -> Result<(), Stopped>
    where
        F: Future<Output = Result<(), BrokerError>>,
    {
        let attempts = retry_forever(AGAIN, |delay| {
            let publish = &publish;
            async move {
                let Some(up) = self.wire_up().await else { return Some(Err(Stopped)) };
                let error = match publish(Arc::clone(&up)).await {
                    Ok(()) => return Some(Ok(())),
                    Err(error) => error,
                };
                self.suspect(&up, &error);
                telemetry::publish_failed(&error, delay);
                None
            }
        });
        tokio::select! {
            () = self.hard_stop.cancelled() => Err(Stopped),
            published = attempts => if self.hard_stop.is_cancelled() { Err(Stopped) } else { published },
        }
    }

    /// Waits for a connection. None: the supervisor has ended, after the hard stop.
    async fn wire_up(&self) -> Option<Arc<Wire>> {
        let mut wire = self.wire.clone();
        wire.wait_for(Option::is_some).await.ok().and_then(|up| up.clone())
    }

    /// Makes the supervisor check a connection after an error.
    fn suspect(&self, up: &Wire, error: &BrokerError) {
        if matches!(error, BrokerError::Timeout { .. }) && !up.connection.status().blocked() {
            up.silent.store(true, Ordering::Relaxed);
        }
        self.suspicion.notify_one();
    }
}

impl Wire {
    async fn open(settings: &Broker, name: &str) -> Result<Self, BrokerError> {
        let connection = connect(settings, name).await?;
        let exact = confirming_channel(&connection, settings).await?;
        let moving = confirming_channel(&connection, settings).await?;
        Ok(Self {
            connection,
            exact: Mutex::new(exact),
            moving: Mutex::new(moving),
            silent: AtomicBool::new(false),
            events: Mutex::default(),
            journal: Mutex::default(),
        })
    }

    fn is_open(&self) -> bool {
        let open = |channel: &Mutex<Channel>| {
            channel.try_lock().map_or(true, |channel| channel.status().connected())
        };
        !self.silent.load(Ordering::Relaxed)
            && self.connection.status().connected()
            && open(&self.exact)
            && open(&self.moving)
    }
}

fn is_same(now: Option<&Arc<Wire>>, before: &Arc<Wire>) -> bool {
    now.is_some_and(|now| Arc::ptr_eq(now, before))
}

/// One of our names as an AMQP short string.
fn short_name(name: &str) -> Result<ShortString, BrokerError> {
    ShortString::try_new(name).map_err(|_| BrokerError::TooLong { what: format!("the name {name}") })
}
