//! Whether a worker could do its job at this broker: that it may publish, declare or find, and consume.
//!
//! A worker proves the first two each time it connects, and the third by consuming. [`check`] does it without a worker.

use std::pin::pin;

use futures_util::future::ready;
use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, ErrorKind, Event};

use super::topology::{compare, short, text};
use super::{BrokerError, Feed, Login, Names, connect, take_leave, within};
use crate::domain::problem::Problem;
use crate::settings::{Broker, Topology};

/// Proves that the broker lets this user publish replies, dead letters and messages that wait.
///
/// Nothing is delivered: the broker checks the permission when a message is published, and in a transaction delivers it at the
/// commit. These transactions are rolled back.
///
/// # Errors
/// [`BrokerError`]: mostly a missing permission, as [`super::Diagnosis::Forbidden`].
pub async fn may_publish(connection: &Connection, settings: &Broker) -> Result<(), BrokerError> {
    let names = Names::new(&settings.prefix);
    let mut exchanges = vec![String::new(), names.dead_letters()];
    // With `none` the others need not be there.
    if settings.topology != Topology::None {
        exchanges.extend((!settings.retry_delay.is_zero()).then(|| names.again()));
    }
    for exchange in exchanges {
        match may_publish_to(connection, settings, &exchange).await {
            // An alarm stops whoever publishes. `/readyz` says so.
            Err(BrokerError::Timeout { .. }) if connection.status().blocked() => return Ok(()),
            proven => proven?,
        }
    }
    Ok(())
}

async fn may_publish_to(
    connection: &Connection,
    settings: &Broker,
    exchange: &str,
) -> Result<(), BrokerError> {
    let limit = settings.operation_timeout;
    let channel =
        within(limit, || "open a channel for a check".to_owned(), connection.create_channel()).await?;
    within(limit, || "begin a transaction".to_owned(), channel.tx_select()).await?;
    let events = connection.events_listener();
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
    let publish =
        channel.basic_publish(short(exchange)?, "permission-check".into(), options, b"", properties);
    let tried = async {
        publish.await?;
        match channel.tx_rollback().await {
            // The broker was faster: it has closed the channel over the publish already, and only the event says why.
            Err(closed) if matches!(closed.kind(), ErrorKind::InvalidChannelState(..)) => {
                let refusal = events.filter_map(|event| ready(refusal(event)));
                Err(pin!(refusal).next().await.unwrap_or(closed))
            }
            tried => tried,
        }
    };
    within(limit, || format!("publish to exchange {}", shown(exchange)), tried).await?;
    within(limit, || "close a channel".to_owned(), channel.close(200, "may publish".into())).await
}

/// Why the broker closed a channel.
fn refusal(event: Event) -> Option<lapin::Error> {
    match event {
        Event::Error(error) if error.is_amqp_soft_error() => Some(error),
        _ => None,
    }
}

/// As permissions call it.
fn shown(exchange: &str) -> &str {
    if exchange.is_empty() { "amq.default" } else { exchange }
}

/// What [`check`] found.
#[derive(Debug, Default)]
pub struct Checked {
    /// Empty: nothing was found.
    pub problems: Vec<Problem>,
    /// The broker's reason why nobody may publish at the moment: a memory or disk alarm.
    pub blocked: Option<String>,
}

/// Looks for whatever would keep a worker with these settings from its job, and changes nothing: nothing is declared, delivered
/// or taken. With `broker.topology = "declare"` a queue that is not there yet is no problem.
pub async fn check(settings: &Broker) -> Checked {
    let login = Login::of(settings);
    let (mut problems, mut blocked) = (Vec::new(), None);
    let mut note = |proven: Result<(), BrokerError>| {
        if let Err(error) = proven {
            let problem = error.problem(&login);
            if !problems.contains(&problem) {
                problems.push(problem);
            }
        }
    };
    match connect(settings, "tokenkeeper checks").await {
        Err(error) => note(Err(error)),
        Ok(connection) => {
            let events = connection.events_listener();
            note(compare(&connection, settings).await);
            note(forgiven_if_missing(settings, may_publish(&connection, settings).await));
            if connection.status().blocked() {
                // It says so to whoever publishes, and hears nothing more over this connection.
                let reason = events.filter_map(|event| ready(reason_of_block(event)));
                blocked = Some(pin!(reason).next().now_or_never().flatten().unwrap_or_default());
            } else {
                for feed in Feed::ALL {
                    note(forgiven_if_missing(settings, may_consume(&connection, settings, feed).await));
                }
            }
            take_leave(&connection).await;
        }
    }
    Checked { problems, blocked }
}

fn reason_of_block(event: Event) -> Option<String> {
    match event {
        Event::ConnectionBlocked(reason) => Some(reason),
        _ => None,
    }
}

/// What a worker declares need not be there before it.
fn forgiven_if_missing(settings: &Broker, proven: Result<(), BrokerError>) -> Result<(), BrokerError> {
    match proven {
        Err(error)
            if settings.topology == Topology::Declare
                && error.soft_error() == Some(&AMQPSoftError::NOTFOUND) =>
        {
            Ok(())
        }
        proven => proven,
    }
}

/// A queue that a worker consumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueState {
    pub name: String,
    /// Messages that are ready.
    pub messages: u32,
    pub consumers: u32,
}

/// The queues that are there, of those that a worker consumes.
///
/// # Errors
/// [`BrokerError`]: the broker does not let us look.
pub async fn queues(settings: &Broker) -> Result<Vec<QueueState>, BrokerError> {
    let connection = connect(settings, "tokenkeeper checks").await?;
    let names = Names::new(&settings.prefix);
    let mut queues = Vec::new();
    for feed in Feed::ALL.into_iter().chain(Feed::partitions(settings.partitions)) {
        match state(&connection, settings, names.queue(feed)).await {
            Ok(queue) => queues.push(queue),
            Err(error) if error.soft_error() == Some(&AMQPSoftError::NOTFOUND) => {}
            Err(error) => return Err(error),
        }
    }
    take_leave(&connection).await;
    Ok(queues)
}

async fn state(connection: &Connection, settings: &Broker, name: String) -> Result<QueueState, BrokerError> {
    let limit = settings.operation_timeout;
    // One for each queue: the broker closes it if there is no such queue.
    let channel =
        within(limit, || "open a channel for a check".to_owned(), connection.create_channel()).await?;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let look = channel.queue_declare(short(&name)?, passive, FieldTable::default());
    let queue = within(limit, || format!("look at queue {name}"), look).await?;
    within(limit, || "close a channel".to_owned(), channel.close(200, "looked".into())).await?;
    Ok(QueueState { name, messages: queue.message_count(), consumers: queue.consumer_count() })
}

/// Consumes with an argument that the broker refuses: it looks at the permission first. So nothing is delivered.
async fn may_consume(connection: &Connection, settings: &Broker, feed: Feed) -> Result<(), BrokerError> {
    let limit = settings.operation_timeout;
    let queue = Names::new(&settings.prefix).queue(feed);
    let channel =
        within(limit, || "open a channel for a check".to_owned(), connection.create_channel()).await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-priority".into(), text("none"));
    let consume = channel.basic_consume(short(&queue)?, "".into(), BasicConsumeOptions::default(), arguments);
    match within(limit, || format!("consume queue {queue}"), consume).await {
        Err(error) if error.soft_error() == Some(&AMQPSoftError::PRECONDITIONFAILED) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => {
            within(limit, || "close a channel".to_owned(), channel.close(200, "may consume".into())).await
        }
    }
}
