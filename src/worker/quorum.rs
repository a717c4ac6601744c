//! Looks at the queues for as long as the worker consumes, so that one without a quorum is told of.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use lapin::Connection;
use tokio::time::sleep;

use crate::app::admin::Health;
use crate::broker::{BrokerError, Feed, Names, Source, Troubles, connect, quorum, take_leave};
use crate::settings::Broker;

/// One look is eight small calls.
const EVERY: Duration = Duration::from_secs(5);

pub(super) struct Quorums {
    pub(super) settings: Arc<Broker>,
    /// Names the connection at the broker.
    pub(super) name: String,
    pub(super) health: Arc<Health>,
    pub(super) troubles: Troubles,
}

impl Quorums {
    pub(super) async fn keep_looking(self) -> Infallible {
        loop {
            // Why there is none is told by those who need one.
            if self.consumes()
                && let Ok(connection) = connect(&self.settings, &self.name).await
            {
                if let error @ BrokerError::NoQuorum { .. } = self.look_over(&connection).await {
                    self.troubles.met(Source::Quorum, &error);
                }
                take_leave(&connection).await;
            }
            sleep(EVERY).await;
        }
    }

    fn consumes(&self) -> bool {
        Feed::ALL.into_iter().any(|feed| self.health.consumes(feed))
    }

    /// Looks over one connection until it is of no use any more, or nothing is consumed.
    async fn look_over(&self, connection: &Connection) -> BrokerError {
        let mut before: Vec<Feed> = Vec::new();
        loop {
            let looked =
                quorum::without_leader(connection, &self.settings, |feed| self.health.consumes(feed)).await;
            let without = match looked {
                Ok(without) => without,
                Err(error) => return error,
            };
            // Once, a leader may just be elected, or the consumer just be there.
            match without.iter().find(|feed| before.contains(feed)) {
                Some(feed) => {
                    let queue = Names::new(&self.settings.prefix).queue(*feed);
                    self.troubles.met(Source::Quorum, &BrokerError::NoQuorum { queue });
                }
                None => self.troubles.over(Source::Quorum),
            }
            before = without;
            sleep(EVERY).await;
            if !self.consumes() {
                return BrokerError::Closed;
            }
        }
    }
}
