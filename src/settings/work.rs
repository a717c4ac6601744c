//! How messages are worked on, and how tokens are refreshed.

use std::path::PathBuf;
use std::time::Duration;

use super::circuit::CircuitSettings;
use super::reader::Reader;
use super::tls;
use crate::contract::MessageKind;
use crate::private_file::FileRule;
use crate::tls::ClientTls;

/// How many messages a worker takes, and how long it works on each.
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// Unacked `token.request` messages at once.
    pub prefetch_token_requests: u16,
    /// Unacked `workspace.start` messages at once.
    pub prefetch_workspace_starts: u16,
    /// Unacked `token.store` messages at once.
    pub prefetch_token_stores: u16,
    /// Unacked `token.report` messages at once.
    pub prefetch_token_reports: u16,
    /// How long a stopping worker finishes its messages in hand.
    pub grace_period: Duration,
    /// The time of a `token.request` or `token.store` without `expiration`.
    pub request_budget: Duration,
    /// The time of a `workspace.start` without `expiration`.
    pub workspace_start_budget: Duration,
    /// Keeps refreshed pairs, encrypted, if a worker must stop while neither database nor broker takes them.
    pub spool_dir: PathBuf,
}

impl WorkerSettings {
    /// How many messages of this kind may be unacked at once.
    pub const fn prefetch(&self, kind: MessageKind) -> u16 {
        match kind {
            MessageKind::TokenRequest => self.prefetch_token_requests,
            MessageKind::WorkspaceStart => self.prefetch_workspace_starts,
            MessageKind::TokenStore => self.prefetch_token_stores,
            MessageKind::TokenReport => self.prefetch_token_reports,
        }
    }
}

/// How tokens are refreshed.
#[derive(Debug, Clone)]
pub struct RefreshSettings {
    /// How long a refresh lease lives without a heartbeat. Heartbeats come at a third of it. By default shorter than `wait`,
    /// so that a waiting request outlasts the lease of a dead worker.
    pub lease_ttl: Duration,
    /// How long a request waits for another worker's refresh.
    pub wait: Duration,
    /// Limit for connecting to a provider.
    pub connect_timeout: Duration,
    /// Limit for one call of a provider. May exceed `lease_ttl`: the heartbeat keeps the lease.
    pub total_timeout: Duration,
    /// Whom the links to providers trust beside the authorities of this machine, and the certificate they show to those who
    /// ask for one.
    pub tls: ClientTls,
    /// Pause before the first retry of a provider call.
    pub retry_initial: Duration,
    /// The longest pause between two retries, without jitter.
    pub retry_max: Duration,
    /// The longest `Retry-After` that a refresh waits for. A longer one ends the refresh.
    pub retry_after_cap: Duration,
    /// A longer `Retry-After` counts as this, for the entry, for the host, and in replies.
    pub retry_after_most: Duration,
    /// How many refreshes of one identity a worker begins in a minute. 0: no limit.
    pub identity_limit_per_minute: usize,
    /// How many refreshes at one host a worker begins in a second. 0: no limit.
    pub host_limit_per_second: usize,
    /// How long an opportunistic refresh is retried, although the old token is still valid.
    pub opportunistic_budget: Duration,
    /// When a host that fails is left alone.
    pub circuit: CircuitSettings,
}

impl WorkerSettings {
    pub(super) fn read(from: &mut Reader) -> Self {
        Self {
            prefetch_token_requests: from.integer("worker.prefetch_token_requests", 1..=65_535, 512),
            prefetch_workspace_starts: from.integer("worker.prefetch_workspace_starts", 1..=65_535, 64),
            prefetch_token_stores: from.integer("worker.prefetch_token_stores", 1..=65_535, 64),
            prefetch_token_reports: from.integer("worker.prefetch_token_reports", 1..=65_535, 16),
            grace_period: from.seconds("worker.grace_period_secs", 1..=3_600, 30),
            // RabbitMQ closes the channel over a delivery that is unacked for 30 minutes.
            request_budget: from.seconds("worker.request_budget_secs", 1..=600, 30),
            workspace_start_budget: from.seconds("worker.workspace_start_budget_secs", 1..=600, 60),
            spool_dir: from
                .path("worker.spool_dir")
                .unwrap_or_else(|| from.beside_the_file("tokenkeeper-spool")),
        }
    }
}

impl RefreshSettings {
    pub(super) fn read(from: &mut Reader, files: FileRule) -> Self {
        Self {
            // Heartbeats come at a third of it: below 3 s one slow query would lose the lease.
            lease_ttl: from.seconds("refresh.lease_ttl_secs", 1..=300, 8),
            wait: from.seconds("refresh.wait_secs", 1..=300, 10),
            connect_timeout: from.seconds("refresh.connect_timeout_secs", 1..=60, 5),
            total_timeout: from.seconds("refresh.total_timeout_secs", 1..=300, 15),
            tls: tls::providers(from, files),
            retry_initial: from.milliseconds("refresh.retry_initial_ms", 10..=60_000, 200),
            retry_max: from.milliseconds("refresh.retry_max_ms", 10..=60_000, 5_000),
            retry_after_cap: from.seconds("refresh.retry_after_cap_secs", 1..=600, 30),
            retry_after_most: from.seconds("refresh.retry_after_most_secs", 1..=3_600, 300),
            identity_limit_per_minute: from.integer("refresh.identity_limit_per_minute", 0..=60, 10),
            host_limit_per_second: from.integer("refresh.host_limit_per_second", 0..=10_000, 0),
            opportunistic_budget: from.seconds("refresh.opportunistic_budget_secs", 1..=300, 5),
            circuit: CircuitSettings::read(from),
        }
    }
}
