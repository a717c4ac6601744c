//! What the hostile publisher does, all at once or one at a time.

use std::{fmt::Write as _, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Error, Result, anyhow};
use clap::ValueEnum;
use tokenkeeper_testkit::scm::SimulatedScm;
use tokio::{sync::watch, task::JoinSet};

use super::{
    admin, direct_reply_to, failing_users, flood,
    hosts::Place,
    long_reservation, own_queues, poison,
    publisher::{HostilePublisher, Outbox},
    refusing_queues, slow_hosts,
};
use crate::stage::User;

/// One thing that the hostile publisher does. Its rates stand in its own file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Attack {
    /// Replies for victims that are to go to the workers' own queues, tokens that are to lie in the dead letters.
    OwnQueues,
    /// Direct reply-tos that are malformed, or of a process that is not there.
    DirectReplyTo,
    /// Hundreds of replies to queues that refuse them.
    RefusingQueues,
    /// 600 requests that wait for one user's reservation.
    LongReservation,
    /// Messages that end the connection, or the process, of the worker that they come to.
    Poison,
    /// Users whose refreshes always fail, at hosts that serve everybody else.
    FailingUsers,
    /// Hosts that send endless 1xx answers, hang, or drip.
    SlowHosts,
    /// Hundreds of idle and slow connections to each admin endpoint.
    AdminConnections,
    /// Floods of valid requests, lifetimes of a second, pairs that are made up.
    Flood,
}

impl Attack {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::OwnQueues => "own-queues",
            Self::DirectReplyTo => "direct-reply-to",
            Self::RefusingQueues => "refusing-queues",
            Self::LongReservation => "long-reservation",
            Self::Poison => "poison",
            Self::FailingUsers => "failing-users",
            Self::SlowHosts => "slow-hosts",
            Self::AdminConnections => "admin-connections",
            Self::Flood => "flood",
        }
    }

    /// Goes on until something of its own breaks.
    async fn run(self, outbox: Outbox, target: Arc<Target>) -> Result<()> {
        match self {
            Self::OwnQueues => own_queues::run(outbox, target).await,
            Self::DirectReplyTo => direct_reply_to::run(outbox, target).await,
            Self::RefusingQueues => refusing_queues::run(outbox, target).await,
            Self::LongReservation => long_reservation::run(outbox, target).await,
            Self::Poison => poison::run(outbox, target).await,
            Self::FailingUsers => failing_users::run(outbox, target).await,
            Self::SlowHosts => slow_hosts::run(outbox, target).await,
            Self::AdminConnections => admin::run(target).await,
            Self::Flood => flood::run(outbox, target).await,
        }
    }
}

/// What there is to attack.
pub(super) struct Target {
    /// The contract's exchange, and the first part of the names of the workers' queues.
    pub(super) prefix: String,
    pub(super) scms: Vec<Arc<SimulatedScm>>,
    /// Honest users, whose tokens the hostile publisher may ask for as everybody may.
    pub(super) victims: Vec<User>,
    /// Where each worker's admin endpoint is now.
    pub(super) admin: Vec<watch::Receiver<SocketAddr>>,
    /// Whether the run is a short one.
    pub(super) scaled_down: bool,
}

impl Target {
    pub(super) fn scm(&self, place: Place) -> &SimulatedScm {
        &self.scms[place.index()]
    }

    /// How often something rare is done: seldom, or often enough for a short run.
    pub(super) fn every(&self, full_secs: u64, quick_secs: u64) -> Duration {
        Duration::from_secs(if self.scaled_down { quick_secs } else { full_secs })
    }
}

/// The attacks under way.
pub(super) struct Attacks {
    publisher: HostilePublisher,
    outboxes: Vec<Outbox>,
    running: JoinSet<Result<()>>,
}

impl Attacks {
    /// Begins these, each on a channel of its own.
    pub(super) async fn begin(attacks: &[Attack], url: &str, target: &Arc<Target>) -> Result<Self> {
        let publisher = HostilePublisher::connect(url).await?;
        let mut begun = Self { publisher, outboxes: Vec::new(), running: JoinSet::new() };
        for attack in attacks {
            let outbox = begun.publisher.outbox(attack.name(), &target.prefix).await?;
            begun.outboxes.push(outbox.clone());
            let attack = *attack;
            let running = attack.run(outbox, Arc::clone(target));
            begun.running.spawn(async move { running.await.context(attack.name()) });
        }
        Ok(begun)
    }

    /// Waits until one ends, which none should.
    pub(super) async fn failed(&mut self) -> Error {
        match self.running.join_next().await {
            Some(Ok(Err(error))) => error,
            Some(Err(panic)) => Error::new(panic),
            Some(Ok(Ok(()))) | None => anyhow!("it ended"),
        }
    }

    /// Ends them all, and tells how many messages each has sent.
    pub(super) fn end(self) -> String {
        drop(self.running);
        self.outboxes.iter().fold(String::new(), |mut text, outbox| {
            // A String takes everything.
            let _ = write!(
                text,
                "{}{} {}",
                if text.is_empty() { "" } else { ", " },
                outbox.attack(),
                outbox.sent()
            );
            text
        })
    }
}
