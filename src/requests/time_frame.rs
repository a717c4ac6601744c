//! How long a requester waits.

use std::time::Duration;

use tokio::time::Instant;

use crate::contract::{Envelope, MessageKind};
use crate::domain::clock::Timestamp;
use crate::settings::WorkerSettings;

/// The most time that a request can ask for. The broker closes a channel if a message is not acked for half an hour.
const LONGEST_BUDGET: Duration = Duration::from_secs(600);

/// How long the reply to a request whose time is over may take. A broker that syncs its disk needs some seconds at times.
pub const LATE_REPLY: Duration = Duration::from_secs(5);

/// AMQP's `timestamp` counts whole seconds, so a message may be younger than it says by up to this.
const REST_OF_THE_SECOND: Duration = Duration::from_millis(999);

/// How much time a request has, where its `expiration` does not say.
#[derive(Debug, Clone, Copy)]
pub struct Budgets {
    /// `token.request`, `token.store` and `token.report`.
    pub request: Duration,
    pub workspace_start: Duration,
}

impl From<&WorkerSettings> for Budgets {
    fn from(settings: &WorkerSettings) -> Self {
        Self { request: settings.request_budget, workspace_start: settings.workspace_start_budget }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct TimeFrame {
    pub(super) received_at: Timestamp,
    pub(super) deadline: Timestamp,
    pub(super) give_up_at: Instant,
    is_of_message: bool,
}

impl TimeFrame {
    /// When its requester stops waiting.
    pub const fn give_up_at(&self) -> Instant {
        self.give_up_at
    }

    /// The same, by the clock that workers share.
    pub const fn deadline(&self) -> Timestamp {
        self.deadline
    }

    /// Whether the message itself says when its time ends. Otherwise a later try has as much time again.
    pub const fn is_of_message(&self) -> bool {
        self.is_of_message
    }

    /// Whether its requester has stopped waiting.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.give_up_at
    }

    /// When the request came, and when its requester stops waiting. That is the `deadline` from before the message was put off,
    /// if there is one. Otherwise the time counts from the message's `timestamp`, because the message may have waited in the
    /// queue. Without one, `expiration` counts from when the message `arrived` in this worker, and a budget from now.
    pub fn of(
        kind: MessageKind,
        envelope: &Envelope,
        arrived: Instant,
        deadline: Option<Timestamp>,
        received_at: Timestamp,
        budgets: Budgets,
    ) -> Self {
        let budget = match kind {
            MessageKind::TokenRequest | MessageKind::TokenStore | MessageKind::TokenReport => budgets.request,
            MessageKind::WorkspaceStart => budgets.workspace_start,
        };
        let budget = envelope.time_to_live.map_or(budget, |time_to_live| time_to_live.min(LONGEST_BUDGET));
        // Frameworks set `timestamp` unasked, and a login stays good while it waits. Only the publisher's own `expiration`
        // ages it.
        let ages = kind != MessageKind::TokenStore || envelope.time_to_live.is_some();
        // A publisher whose clock is ahead does not get more time.
        let published_at = envelope.published_at.filter(|_| ages).map(|at| at.plus(REST_OF_THE_SECOND));
        let came_at = match envelope.time_to_live {
            Some(_) => received_at.minus(arrived.elapsed()),
            None => received_at,
        };
        let counted_from = published_at.map_or(came_at, |at| at.min(came_at));
        let is_of_message = deadline.is_some() || envelope.time_to_live.is_some() || published_at.is_some();
        let deadline = deadline.unwrap_or_else(|| counted_from.plus(budget));
        let give_up_at = Instant::now() + deadline.since(received_at);
        Self { received_at, deadline, give_up_at, is_of_message }
    }
}
