//! Keeping the connection up that everything beside replies is published over.

use std::convert::Infallible;
use std::sync::Arc;

use futures_util::StreamExt;
use lapin::Event;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::Wire;
use crate::broker::{BrokerError, Source, Troubles, take_leave, within};
use crate::retry::retry_until_cancelled;
use crate::settings::Broker;
use crate::telemetry::{self, Link};

/// A wire that is kept up: it connects, watches, connects again.
pub(super) struct Supervised {
    pub(super) settings: Arc<Broker>,
    pub(super) name: String,
    pub(super) up: watch::Sender<Option<Arc<Wire>>>,
    pub(super) suspicion: Arc<Notify>,
    pub(super) troubles: Troubles,
}

impl Supervised {
    pub(super) async fn keep_up(self, closed: CancellationToken) {
        let lost = |error: &BrokerError| {
            telemetry::broker_lost(Link::Publish);
            self.troubles.met(Source::Connection(Link::Publish), error)
        };
        let never_ends = retry_until_cancelled(&closed, lost, || self.serve());
        closed.run_until_cancelled(never_ends).await;
        let wire = self.up.send_replace(None);
        if let Some(wire) = wire {
            take_leave(&wire.connection).await;
        }
    }

    /// Serves over one connection until it breaks.
    async fn serve(&self) -> Result<Infallible, BrokerError> {
        let wire = Arc::new(Wire::open(&self.settings, &self.name).await?);
        telemetry::broker_connected(Link::Publish, self.settings.display_url());
        self.troubles.over(Source::Connection(Link::Publish));
        self.up.send_replace(Some(Arc::clone(&wire)));
        let reason = until_broken(&wire, &self.suspicion).await;
        self.up.send_replace(None);
        // The rest of it must not keep a connection open at the broker.
        let close = wire.connection.close(320, "made anew".into());
        drop(within(self.settings.operation_timeout, String::new, close).await);
        Err(reason)
    }
}

/// Waits until the connection or one of its channels is closed, and says why.
async fn until_broken(wire: &Wire, suspicion: &Notify) -> BrokerError {
    let mut events = Box::pin(wire.connection.events_listener());
    loop {
        if !wire.is_open() {
            return BrokerError::Closed;
        }
        tokio::select! {
            event = events.next() => match event {
                // An error of one channel. The check above finds a closed channel of ours, at the latest after a
                // failed publish. The channel of events reopens by itself.
                Some(Event::Error(error)) if error.is_amqp_soft_error() => {}
                Some(Event::Error(error)) => return BrokerError::Amqp { action: "publish".to_owned(), error },
                Some(Event::ConnectionBlocked(reason)) => telemetry::broker_blocked(Link::Publish, Some(&reason)),
                Some(Event::ConnectionUnblocked) => telemetry::broker_blocked(Link::Publish, None),
                Some(_) => {}
                None => return BrokerError::Closed,
            },
            () = suspicion.notified() => {}
        }
    }
}
