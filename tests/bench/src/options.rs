//! The command line, and how big each scenario is.

use std::{path::PathBuf, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};
use tokenkeeper_testkit::database::Kind;

use crate::{echo, endpoint};

/// Measures tokenkeeper against a bare echo worker: the least that any worker on RabbitMQ must do.
///
/// Both are real processes under the same load, in alternating rounds; the ratio to echo is the median over neighbouring
/// rounds. Every reply is checked, and a wrong, missing or second one makes the run a failure. Nothing else may run on
/// the machine meanwhile. docs/benchmark.md says how to read the table.
#[derive(Parser)]
#[command(name = "scripts/bench.sh", args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    #[command(subcommand)]
    pub(crate) helper: Option<Helper>,
    /// Everything in miniature, in under a minute: sees that it works, measures nothing.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Which scenarios; all when none is named.
    #[arg(long, value_enum, value_name = "SCENARIO", value_delimiter = ',')]
    only: Vec<Scenario>,
    /// How many rounds each system is measured in [default: 5; 20 at a fixed rate].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// How long a round is, after its warm-up.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: Option<u32>,
    /// Which numbers of requests in flight, where a scenario has several; all when none is given.
    #[arg(long, value_name = "REQUESTS", value_delimiter = ',')]
    in_flight: Vec<usize>,
    /// Which databases; all when none is named.
    #[arg(long, value_enum, value_name = "DATABASE", value_delimiter = ',')]
    databases: Vec<Database>,
    /// The tokenkeeper that is measured; the one that was built beside this program when not given.
    #[arg(long, value_name = "PATH")]
    pub(crate) worker: Option<PathBuf>,
    /// Another tokenkeeper, measured in the same rounds under this name: before and after. May be given several times.
    #[arg(long, value_name = "NAME=PATH", value_parser = named_path)]
    pub(crate) also: Vec<(String, PathBuf)>,
    /// Ends with exit code 1 where a target is missed.
    #[arg(long, conflicts_with = "quick")]
    pub(crate) judge: bool,
    /// Where the results go as JSON, beside target/bench.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// What this program does for itself, in processes of their own.
#[derive(Subcommand)]
pub(crate) enum Helper {
    /// The echo worker.
    #[command(hide = true)]
    Echo(echo::Arguments),
    /// A token endpoint.
    #[command(hide = true)]
    Endpoint(endpoint::Arguments),
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Scenario {
    /// 1,000 users whose tokens are valid and reserved: 16, 128 and 512 requests in flight, on every database.
    Hot,
    /// The same at a fixed rate, half of what echo can do: how long requests take when nothing is at its limit.
    Paced,
    /// One request at a time: latency alone, on every database.
    Alone,
    /// One user only, 16 requests in flight: everybody wants the same row.
    OneUser,
    /// A table of a million entries, users by chance, against one of 1,000.
    Wide,
    /// Every token has expired: each request is a refresh at a token endpoint that takes 5 ms.
    Storm,
    /// Workspace starts that need tokens of three hosts.
    Workspace,
    /// Nine of ten requests are hot; the others need refreshes, slow ones among them, or are errors.
    Mixed,
    /// 1, 2 and 4 workers on one queue.
    Replicas,
    /// 4 workers on one queue, and on partitions by user: how often they wait for one another's refreshes.
    Partitions,
    /// One user's expired token, asked for by many at once over 4 workers: how often it is refreshed.
    Once,
    /// Memory over 100,000 requests, 512 in flight.
    Memory,
    /// The Rust client (`clients/rust`) in place of the load generator: 128 and 1,000 requests in flight, against echo and on
    /// PostgreSQL.
    Client,
    /// From the start of the process to `/readyz`, and the size of the program.
    Start,
}

impl Scenario {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Hot => "hot",
            Self::Paced => "paced",
            Self::Alone => "alone",
            Self::OneUser => "one-user",
            Self::Wide => "wide",
            Self::Storm => "storm",
            Self::Workspace => "workspace",
            Self::Mixed => "mixed",
            Self::Replicas => "replicas",
            Self::Partitions => "partitions",
            Self::Once => "once",
            Self::Memory => "memory",
            Self::Client => "client",
            Self::Start => "start",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Database {
    #[value(name = "postgresql", alias = "postgres")]
    Postgres,
    Sqlite,
    #[value(name = "mariadb")]
    MariaDb,
}

impl From<Database> for Kind {
    fn from(database: Database) -> Self {
        match database {
            Database::Postgres => Self::Postgres,
            Database::Sqlite => Self::Sqlite,
            Database::MariaDb => Self::MariaDb,
        }
    }
}

impl Options {
    /// The scenarios to measure, each once.
    pub(crate) fn chosen(&self) -> Vec<Scenario> {
        let all = Scenario::value_variants();
        all.iter().copied().filter(|one| self.only.is_empty() || self.only.contains(one)).collect()
    }

    /// The databases to measure on, PostgreSQL first.
    pub(crate) fn databases(&self) -> Vec<Kind> {
        let all = Database::value_variants();
        let chosen = |one: &Database| self.databases.is_empty() || self.databases.contains(one);
        all.iter().copied().filter(chosen).map(Kind::from).collect()
    }

    pub(crate) fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(self.scaled(5, 1))
    }

    /// The same at a fixed rate: a delay decides the p99 of the round that it falls into, and many rounds alone tell how
    /// often there is one.
    pub(crate) fn rounds_at_a_rate(&self) -> u32 {
        self.rounds.unwrap_or(self.scaled(20, 1))
    }

    /// How long a round is, without its warm-up.
    pub(crate) fn round(&self) -> Duration {
        let miniature = Duration::from_millis(300);
        self.seconds
            .map_or(self.scaled(Duration::from_secs(4), miniature), |secs| Duration::from_secs(secs.into()))
    }

    /// How long a worker is under load before it is measured.
    pub(crate) fn warm_up(&self) -> Duration {
        self.scaled(Duration::from_millis(1_500), Duration::from_millis(50))
    }

    /// How long a refresh takes at the host that is very slow.
    pub(crate) fn stall(&self) -> Duration {
        self.scaled(Duration::from_secs(5), Duration::from_secs(1))
    }

    /// How many users are hot.
    pub(crate) fn hot_users(&self) -> usize {
        self.scaled(1_000, 100)
    }

    /// How many requests are in flight, one after the other, where a scenario has several numbers.
    pub(crate) fn in_flight<'n>(&self, full: &'n [usize], quick: &'n [usize]) -> impl Iterator<Item = usize> {
        let chosen = |number: &usize| self.in_flight.is_empty() || self.in_flight.contains(number);
        self.scaled(full, quick).iter().copied().filter(chosen)
    }

    /// The full size, or that of `--quick`.
    pub(crate) fn scaled<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

fn named_path(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok((name.to_owned(), path.into())),
        _ => Err("must be NAME=PATH".to_owned()),
    }
}
