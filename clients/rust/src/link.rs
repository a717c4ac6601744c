//! One connection with one channel, over which requests go out and replies come in; and the task that keeps one up.
//!
//! Publishing is a task of its own: a caller who stops waiting must not stop in the middle of a message. It also waits for all
//! confirms, since the library keeps each one that nobody waits for.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, Consumer, ErrorKind};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::connect::Nodes;
use crate::error::{Cause, Error};
use crate::options::Options;
use crate::pending::{Outcome, Pending};

/// Where replies go without a queue (<https://www.rabbitmq.com/docs/direct-reply-to>).
const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// The first and the longest wait before another connection.
const RECONNECT_PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// How many messages wait for the task that publishes. A few: what waits there when a link ends is asked again.
const WAITING: usize = 128;

/// How long the reason of an end is waited for.
const REASON: Duration = Duration::from_millis(500);

/// What is on its way to the broker.
pub(crate) struct Outgoing {
    pub(crate) id: Uuid,
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Vec<u8>,
    /// When nobody waits for its reply any more.
    pub(crate) deadline: Instant,
    /// Held until the broker has confirmed it: so what the library keeps is bounded also where nobody waits.
    pub(crate) permit: Arc<OwnedSemaphorePermit>,
}

/// A connection that works, as far as anybody knows.
pub(crate) struct Link {
    pub(crate) number: u64,
    pub(crate) connection: Connection,
    outgoing: mpsc::Sender<Outgoing>,
}

impl Link {
    /// Hands a message to the task that publishes. False: the link is gone.
    pub(crate) async fn send(&self, outgoing: Outgoing) -> bool {
        self.outgoing.send(outgoing).await.is_ok()
    }
}

/// Whether there is a link.
#[derive(Clone)]
pub(crate) enum State {
    Up(Arc<Link>),
    /// Another connection is tried. With the error of the last try, if there was one.
    Down(Option<Cause>),
    Closed,
}

/// What a link consists of before it is in use.
pub(crate) struct Opened {
    link: Arc<Link>,
    channel: Channel,
    replies: Consumer,
    to_publish: mpsc::Receiver<Outgoing>,
}

/// What the client and the task that keeps a link up share.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) nodes: Nodes,
    pub(crate) pending: Pending,
    state: watch::Sender<State>,
    numbers: Mutex<u64>,
}

impl Shared {
    pub(crate) fn new(options: Options) -> Result<Self, Error> {
        let nodes = Nodes::new(options.uris()?);
        let (pending, state) = (Pending::default(), watch::Sender::new(State::Down(None)));
        Ok(Self { options, nodes, pending, state, numbers: Mutex::new(0) })
    }

    /// Connects, and prepares the channel.
    pub(crate) async fn open(&self) -> Result<Opened, Error> {
        let connection = self.nodes.connect(&self.options).await?;
        let channel = self.within("open a channel", connection.create_channel()).await?;
        // Without this every confirm looks like success.
        self.within("ask for publisher confirms", channel.confirm_select(ConfirmSelectOptions::default()))
            .await?;
        // Direct reply-to: the consumer must come first, on the channel that publishes.
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consume =
            channel.basic_consume(DIRECT_REPLY_TO.into(), "".into(), options, FieldTable::default());
        let replies = self.within("consume the reply", consume).await?;
        let number = {
            let mut numbers = self.numbers.lock();
            *numbers += 1;
            *numbers
        };
        let (outgoing, to_publish) = mpsc::channel(WAITING);
        let link = Arc::new(Link { number, connection, outgoing });
        Ok(Opened { link, channel, replies, to_publish })
    }

    /// Waits for an AMQP call, with a limit: a blocked or half-dead connection never answers.
    pub(crate) async fn within<T>(
        &self,
        action: &'static str,
        call: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, Error> {
        let after = self.options.operation_timeout;
        match timeout(after, call).await {
            Ok(called) => called.map_err(|error| Error::Broker { action, error }),
            Err(_) => Err(Error::Silent { action, after }),
        }
    }

    /// Another state, unless the client is closed: that is the last one.
    fn set_state(&self, next: State) {
        self.state.send_if_modified(|state| {
            let is_open = !matches!(state, State::Closed);
            if is_open {
                *state = next;
            }
            is_open
        });
    }

    /// Closes it for good. The link, if there was one.
    pub(crate) fn close(&self) -> Option<Arc<Link>> {
        match self.state.send_replace(State::Closed) {
            State::Up(link) => Some(link),
            State::Down(_) | State::Closed => None,
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        matches!(&*self.state.borrow(), State::Closed)
    }

    /// Waits until there is a link.
    ///
    /// # Errors
    /// [`Error::Closed`]. While there is none, it goes on waiting.
    pub(crate) async fn link(&self) -> Result<Arc<Link>, Error> {
        let mut state = self.state.subscribe();
        loop {
            match &*state.borrow_and_update() {
                State::Up(link) => return Ok(Arc::clone(link)),
                State::Closed => return Err(Error::Closed),
                State::Down(_) => {}
            }
            state.changed().await.map_err(|_| Error::Closed)?;
        }
    }

    /// Waits until the client is closed.
    pub(crate) async fn closed(&self) {
        let mut state = self.state.subscribe();
        // It fails where the sender is gone, and that is ours.
        let _ = state.wait_for(|state| matches!(state, State::Closed)).await;
    }

    /// Why there was no link at the last try.
    pub(crate) fn cause(&self) -> Option<Cause> {
        match &*self.state.borrow() {
            State::Down(cause) => cause.clone(),
            State::Up(_) | State::Closed => None,
        }
    }
}

/// Keeps a link up, for ever.
pub(crate) async fn reconnect(shared: Arc<Shared>, first: Opened) {
    let mut next = Some(first);
    let mut pause = RECONNECT_PAUSES.0;
    loop {
        match next.take() {
            Some(opened) => {
                let began = Instant::now();
                let number = opened.link.number;
                let error = run(&shared, opened).await;
                shared.set_state(State::Down(None));
                shared.pending.end(number, error.as_ref());
                if began.elapsed() > RECONNECT_PAUSES.1 {
                    pause = RECONNECT_PAUSES.0;
                }
            }
            None => match shared.open().await {
                Ok(opened) => {
                    next = Some(opened);
                    continue;
                }
                Err(error) => {
                    let cause = match error {
                        Error::Connect(cause) => cause,
                        other => Arc::new(other),
                    };
                    shared.set_state(State::Down(Some(cause)));
                }
            },
        }
        // Many clients lose the same broker at once.
        sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
        pause = (pause * 2).min(RECONNECT_PAUSES.1);
    }
}

/// Publishes and consumes until the channel ends. Tells why, if the library knows.
async fn run(shared: &Shared, opened: Opened) -> Option<lapin::Error> {
    let Opened { link, channel, mut replies, mut to_publish } = opened;
    // Held until the end: without it the library closes the connection before it has told why the channel ended.
    shared.set_state(State::Up(Arc::clone(&link)));
    let pending = &shared.pending;
    let consuming = async {
        while let Some(reply) = replies.next().await {
            match reply {
                Ok(reply) => pending.answered(reply.properties.correlation_id().as_ref(), reply.data),
                Err(error) => return Some(error),
            }
        }
        None
    };
    tokio::pin!(consuming);
    let mut confirms = FuturesUnordered::new();
    let publishing = async {
        loop {
            tokio::select! {
                Some(outgoing) = to_publish.recv() => {
                    let (id, permit) = (outgoing.id, Arc::clone(&outgoing.permit));
                    match publish(&channel, pending, outgoing).await {
                        // By now nobody waits for it.
                        None => {}
                        Some(Ok(confirm)) => confirms.push(async move { (id, confirm.await, permit) }),
                        Some(Err(error)) => break error,
                    }
                }
                Some((id, confirmation, _permit)) = confirms.next() => {
                    if let Err(error) = settle(pending, id, confirmation) {
                        break error;
                    }
                }
                else => std::future::pending().await,
            }
        }
    };
    let error = tokio::select! {
        error = &mut consuming => return error,
        error = publishing => error,
    };
    if matches!(error.kind(), ErrorKind::ProtocolError(_)) {
        return Some(error);
    }
    // Nothing is published any more: whoever asks from here on waits for the next link.
    shared.set_state(State::Down(None));
    drop(to_publish);
    // "The channel is closed": the consumer is told why.
    timeout(REASON, consuming).await.ok().flatten().or(Some(error))
}

/// None: nobody waits for it any more.
async fn publish(
    channel: &Channel,
    pending: &Pending,
    outgoing: Outgoing,
) -> Option<lapin::Result<lapin::PublisherConfirm>> {
    let Outgoing { id, exchange, routing_key, properties, body, deadline, .. } = outgoing;
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() || !pending.publishes(id) {
        return None;
    }
    let expiration = ShortString::from(left.as_millis().max(1).to_string());
    let properties = properties
        .with_content_type("application/json".into())
        .with_reply_to(DIRECT_REPLY_TO.into())
        .with_correlation_id(ShortString::from(id.simple().to_string()))
        .with_expiration(expiration);
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    Some(channel.basic_publish(exchange, routing_key, options, &body, properties).await)
}

/// A returned message comes with whichever confirm is next, so it says itself whose it is.
fn settle(pending: &Pending, id: Uuid, confirmation: lapin::Result<Confirmation>) -> lapin::Result<()> {
    let (returned, outcome) = match confirmation? {
        Confirmation::Ack(returned) => {
            pending.confirmed(id);
            (returned, None)
        }
        Confirmation::Nack(returned) => (returned, Some(Outcome::Nacked)),
        Confirmation::NotRequested => (None, Some(Outcome::Nacked)),
    };
    if let Some(returned) = returned {
        let theirs = returned.properties.correlation_id().as_ref().map(ShortString::as_str);
        if let Some(theirs) = theirs.and_then(|id| Uuid::try_parse(id).ok()) {
            pending.tell(theirs, Outcome::Unroutable);
        }
    }
    if let Some(outcome) = outcome {
        pending.tell(id, outcome);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use lapin::message::{BasicReturnMessage, Delivery};

    use super::*;
    use crate::progress::{Progress, Published, Steps};

    fn returned(id: Uuid) -> BasicReturnMessage {
        let mut delivery = Delivery::mock(0, "tokenkeeper".into(), "token.report".into(), false, Vec::new());
        let id = ShortString::from(id.simple().to_string());
        delivery.properties = BasicProperties::default().with_correlation_id(id);
        BasicReturnMessage { delivery, reply_code: 312, reply_text: "NO_ROUTE".into() }
    }

    #[tokio::test]
    async fn a_returned_message_is_its_own_and_not_that_of_the_confirm_it_comes_with() {
        let pending = Pending::default();
        let progress = Progress::new();
        let mut lost = pending.enter(1, "tokenkeeper".into(), Steps::default());
        let routed = pending.enter(1, "tokenkeeper".into(), Steps::new(&progress));

        settle(&pending, routed.id, Ok(Confirmation::Ack(Some(returned(lost.id))))).unwrap();

        assert!(matches!(lost.outcome().await, Outcome::Unroutable));
        assert_eq!(progress.published(), Published::Yes);
        assert!(pending.publishes(routed.id), "it goes on waiting for its reply");
        // One that is nobody's does nothing.
        settle(&pending, routed.id, Ok(Confirmation::Ack(Some(returned(Uuid::new_v4()))))).unwrap();
        assert!(pending.publishes(routed.id));
    }

    #[tokio::test]
    async fn a_message_that_the_broker_does_not_keep_is_told() {
        let pending = Pending::default();
        let mut refused = pending.enter(1, "tokenkeeper".into(), Steps::default());
        settle(&pending, refused.id, Ok(Confirmation::Nack(None))).unwrap();
        assert!(matches!(refused.outcome().await, Outcome::Nacked));
    }

    #[tokio::test]
    async fn a_client_that_is_closed_stays_closed_whatever_its_connection_does() {
        let shared = Shared::new(Options::new("amqp://127.0.0.1/")).unwrap();
        assert!(shared.close().is_none());
        shared.set_state(State::Down(None));
        assert!(shared.is_closed());
        assert!(matches!(shared.link().await, Err(Error::Closed)));
    }
}
