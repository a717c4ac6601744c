//! The command line, and how big each scenario is.

use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::scenarios::Attack;

/// Breaks what tokenkeeper stands on, under load, and checks its promises from the outside.
#[derive(Parser)]
#[command(name = "scripts/chaos.sh")]
pub(crate) struct Options {
    /// Which scenarios; all when none is named.
    #[arg(value_enum)]
    pub(crate) scenarios: Vec<Scenario>,
    /// A small version of everything, in a few minutes.
    #[arg(long)]
    pub(crate) quick: bool,
    /// How many requests `storm` sends.
    #[arg(long, value_parser = clap::value_parser!(u32).range(100..))]
    pub(crate) requests: Option<u32>,
    /// How many users `storm` has.
    #[arg(long, value_parser = clap::value_parser!(u32).range(10..))]
    pub(crate) users: Option<u32>,
    /// Requests a second, in every scenario under load.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rate: Option<u32>,
    /// Rounds of `rolling`, `frozen` and `database`.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: Option<u32>,
    /// How long `soak` takes, and the hostile publisher of `hostile`.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) minutes: Option<u32>,
    /// In `hostile`: nothing but this; can be given several times.
    #[arg(long = "attack", value_enum, value_name = "NAME")]
    attacks: Vec<Attack>,
    /// In `storm` the provider also acts and then closes the connection, which costs users their tokens.
    #[arg(long)]
    pub(crate) close_after: bool,
    /// Repeats the choices of a run: which user asks when, and which call fails.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Keeps the logs of workers and servers also where everything held.
    #[arg(long)]
    pub(crate) keep: bool,
}

/// What can be done to tokenkeeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// Workers killed, broker, connections and database broken, a provider that fails, all under load.
    Storm,
    /// Workers told to stop and replaced, one after the other, under load.
    Rolling,
    /// A worker frozen in the middle of a refresh, and thawed when another one has taken over.
    Frozen,
    /// The database away between the provider's answer and the store.
    Database,
    /// A host that hangs for ever, beside one that works.
    Bulkhead,
    /// The broker stopped, restarted, starved; queues deleted, connections cut.
    Broker,
    /// A node of a RabbitMQ cluster killed, frozen, without the others; its leaders moved.
    BrokerNode,
    /// The database away under load.
    DatabaseAway,
    /// The database read-only at the same address, under load.
    Readonly,
    /// The database's address leads to a standby, under load.
    Standby,
    /// A Galera node that takes no queries, under load.
    Galera,
    /// A backup restored under load.
    Restore,
    /// A publisher who means harm beside one who does not.
    Hostile,
    /// Steady load, and what it costs.
    Soak,
}

impl Scenario {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Storm => "storm",
            Self::Rolling => "rolling",
            Self::Frozen => "frozen",
            Self::Database => "database",
            Self::Bulkhead => "bulkhead",
            Self::Broker => "broker",
            Self::BrokerNode => "broker-node",
            Self::DatabaseAway => "database-away",
            Self::Readonly => "readonly",
            Self::Standby => "standby",
            Self::Galera => "galera",
            Self::Restore => "restore",
            Self::Hostile => "hostile",
            Self::Soak => "soak",
        }
    }
}

impl Options {
    /// The scenarios to play, each once.
    pub(crate) fn chosen(&self) -> Vec<Scenario> {
        let all = Scenario::value_variants();
        all.iter().copied().filter(|one| self.scenarios.is_empty() || self.scenarios.contains(one)).collect()
    }

    /// What the hostile publisher does.
    pub(crate) fn attacks(&self) -> Vec<Attack> {
        let all = Attack::value_variants();
        all.iter().copied().filter(|one| self.attacks.is_empty() || self.attacks.contains(one)).collect()
    }

    pub(crate) fn storm_requests(&self) -> usize {
        self.requests.map_or_else(|| self.scaled(20_000, 1_500), |count| count as usize)
    }

    pub(crate) fn storm_users(&self) -> usize {
        self.users.map_or_else(|| self.scaled(500, 300), |count| count as usize)
    }

    /// Requests a second.
    pub(crate) fn rate(&self) -> u32 {
        self.rate.unwrap_or(if self.quick { 100 } else { 150 })
    }

    /// How often something is repeated.
    pub(crate) fn rounds(&self, full: u32, quick: u32) -> u32 {
        self.rounds.unwrap_or(if self.quick { quick } else { full })
    }

    /// How long something is away that is away for 20 s.
    pub(crate) fn outage(&self) -> Duration {
        Duration::from_secs(if self.quick { 4 } else { 20 })
    }

    pub(crate) fn soak(&self) -> Duration {
        let minutes = self.minutes.map(|minutes| Duration::from_secs(60) * minutes);
        minutes.unwrap_or(Duration::from_secs(if self.quick { 10 } else { 600 }))
    }

    /// The full size, or that of `--quick`.
    pub(crate) fn scaled<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}
