//! One function for each event: it writes the log line and updates the metric, so that neither is forgotten.
//!
//! Dashboards depend on the two `gitpod_scm_token_refresh_*` names and their labels. No function here takes a value
//! that may be a secret.

use std::fmt::Display;
use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use tokio::time::Instant;

use crate::contract::{ErrorCode, MessageKind};
use crate::domain::problem::Problem;

mod access;
mod admin;
pub mod audit;
mod broker;
mod database;
mod dead_letters;
mod events;
mod hosts;
mod housekeeping;
mod journal;
mod keys;
mod label;
pub mod logs;
mod messages;
mod panics;
mod parking;
pub mod recorder;
mod repeated;
mod replies;
mod requests;
mod rows;
mod seldom;
mod statements;
mod suspects;
mod told;

pub use self::access::{denied, unguarded};
pub use self::admin::{admin_crowded, admin_not_accepted};
pub use self::broker::*;
pub use self::database::*;
pub use self::dead_letters::{
    dead_letter_sealed, dead_letters_are, dead_letters_in_use, dead_letters_left_unsealed,
    dead_letters_not_sealed, dead_letters_sealed,
};
pub use self::events::{EventLoss, event_lost, event_not_published, event_published};
pub use self::hosts::{
    CircuitState, bulkhead_refused, circuit_changed, circuit_is, could_not_ask, host_known, host_refusing,
    local_causes_known, provider_is, providers_not_looked_at, refresh_not_begun, refusal_forgiven,
    refusal_not_judged,
};
pub use self::housekeeping::{
    ChoreOutcome, chore_done, housekeeping_done, housekeeping_failed, housekeeping_left_to_another,
};
pub use self::journal::*;
pub use self::keys::{
    format_waits, keys_dropped, keys_unusable, sealing_begins, sealing_waits, worker_not_kept,
};
pub(crate) use self::label::label;
pub use self::messages::{InFlight, message_refused, message_settled, put_off};
pub use self::panics::{Panicking, log_panics, panicked, service_ended};
pub use self::parking::*;
use self::repeated::Repeated;
pub use self::replies::{
    ReplyGivenUp, reply_connection_lost, reply_given_up, reply_tried_again, reply_unroutable,
};
pub use self::requests::{Opportunism, TokenResult, token_reported, token_requested};
pub use self::rows::row_unusable;
pub use self::statements::{GroupedStatement, group_split, grouped_statement};
pub use self::suspects::{SuspectMoved, message_not_moved, suspect_moved};

const BUILD_INFO: &str = "tokenkeeper_build_info";
const READY: &str = "tokenkeeper_ready";
/// In seconds, by host.
pub const REFRESH_LATENCY: &str = "gitpod_scm_token_refresh_latency_seconds";
const MESSAGES: &str = "tokenkeeper_messages_total";
/// In seconds from a delivery to its settlement, by message type.
pub const HANDLING: &str = "tokenkeeper_message_handling_seconds";
const IN_FLIGHT: &str = "tokenkeeper_messages_in_flight";
const DEAD_LETTERS: &str = "tokenkeeper_dead_letters_total";
const LEASE_WAITS: &str = "tokenkeeper_lease_waits_total";
const LEASE_WATCHES: &str = "tokenkeeper_lease_watches_total";
const LOST_CAS: &str = "tokenkeeper_lost_compare_and_sets_total";
const REFRESH_RETRIES: &str = "tokenkeeper_refresh_retries_total";
const REFRESH_FAILURES: &str = "tokenkeeper_refresh_failures_total";
const PUBLISHER_REFUSALS: &str = "tokenkeeper_publisher_limit_refusals_total";
const UNKNOWN_FIELDS: &str = "tokenkeeper_unknown_fields_total";
const FLAG_RELOADS: &str = "tokenkeeper_flag_reloads_total";

label! {
    /// Label `outcome`.
    pub enum MessageOutcome {
        Ok = "ok",
        Error = "error",
        /// Refused, and moved to the dead letters.
        DeadLettered = "dead_lettered",
        Requeued = "requeued",
        /// Failed, the publisher cannot be told, and the message waits for another try.
        PutOff = "put_off",
    }
}

label! {
    /// A guarded UPDATE: label `statement`.
    pub enum Statement {
        Reserve = "reserve",
        TakeLease = "take_lease",
        RenewLease = "renew_lease",
        StorePair = "store_pair",
        GiveUp = "give_up",
    }
}

/// What a worker works with.
#[derive(Debug, Clone, Copy)]
pub struct Ready<'a> {
    /// The kind, as the URL names it.
    pub database: &'a str,
    pub prefix: &'a str,
    /// How many queues it consumes, those of partitions included.
    pub queues: usize,
    /// Of each kind of message. 0: none.
    pub partitions: u16,
    /// The most `token.request` messages in hand.
    pub prefetch: u16,
    /// None: unknown.
    pub providers: Option<usize>,
    /// Workers of this database that live, this one included. None: unknown.
    pub workers: Option<usize>,
}

/// Once for each worker: it can do its job.
pub fn ready(ready: &Ready<'_>) {
    let Ready { database, prefix, queues, partitions, prefetch, providers, workers } = *ready;
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(
        version,
        database,
        prefix,
        queues,
        partitions,
        prefetch,
        providers,
        workers,
        "worker ready"
    );
}

/// As `/readyz` says it.
pub fn is_ready(ready: bool) {
    gauge!(READY).set(if ready { 1.0 } else { 0.0 });
}

pub fn refreshed(host: &str, took: Duration) {
    histogram!(REFRESH_LATENCY, "host" => host.to_owned()).record(took);
    tracing::info!(host, took_ms = millis(took), "token refreshed");
}

pub fn refresh_failed(host: &str, code: &'static str, detail: &str, took: Duration) {
    histogram!(REFRESH_LATENCY, "host" => host.to_owned()).record(took);
    counter!(REFRESH_FAILURES, "host" => host.to_owned(), "code" => code).increment(1);
    tracing::warn!(host, code, detail, took_ms = millis(took), "refresh failed");
}

/// A call to a token endpoint failed and will be retried.
pub fn refresh_retried(host: &str, error: &dyn std::error::Error, wait: Duration) {
    counter!(REFRESH_RETRIES, "host" => host.to_owned()).increment(1);
    tracing::info!(host, %error, wait_ms = millis(wait), "refresh failed; it will be retried");
}

/// A login stored a newer pair during the refresh.
pub fn refreshed_pair_superseded(host: &str) {
    lost_compare_and_set(Statement::StorePair);
    tracing::warn!(host, "refreshed pair dropped: a login stored a newer one during the refresh");
}

/// A request waits for a live lease, of a flight in this worker or in another one.
pub fn lease_waited(host: &str) {
    counter!(LEASE_WAITS, "host" => host.to_owned()).increment(1);
    tracing::debug!(host, "waiting for another worker's refresh");
}

/// Another worker holds the lease, so this one polls the row until the lease ends.
pub fn lease_watched(host: &str) {
    counter!(LEASE_WATCHES, "host" => host.to_owned()).increment(1);
}

pub fn lost_compare_and_set(statement: Statement) {
    counter!(LOST_CAS, "statement" => statement.name()).increment(1);
    tracing::debug!(statement = statement.name(), "a guarded UPDATE changed nothing: the row has changed");
}

pub fn lease_not_kept(error: &dyn Display) {
    static TOLD: Repeated = Repeated::new();
    if let Some(kept_back) = TOLD.lets_through(error, Instant::now()) {
        tracing::warn!(%error, kept_back, "cannot renew or release a refresh lease");
    }
}

/// The provider did not say how long its new token lives, and no setting does.
pub fn lifetime_assumed(host: &str, lifetime: Duration) {
    tracing::warn!(
        host,
        lifetime_secs = lifetime.as_secs(),
        "the provider did not say how long its token lives; a default is assumed"
    );
}

/// The provider still does not accept a token that it issued.
pub fn token_not_accepted(host: &str) {
    tracing::warn!(host, "the provider's validate_url does not accept a new token; it is handed out anyway");
}

/// The request is tried again or answered with an error.
pub fn store_failed(error: &dyn Display) {
    static TOLD: Repeated = Repeated::new();
    if let Some(kept_back) = TOLD.lets_through(error, Instant::now()) {
        tracing::error!(%error, kept_back, "a database statement failed");
    }
}

/// `reason` is a word and `detail` the sentence. `id` is the name that `tokenkeeper dead show` knows it by.
pub fn dead_lettered(kind: Option<MessageKind>, reason: &'static str, id: &str, detail: &str) {
    let kind = kind.map_or("unknown", MessageKind::routing_key);
    counter!(DEAD_LETTERS, "type" => kind, "reason" => reason).increment(1);
    tracing::warn!(id, reason, detail, "message moved to the dead letters");
}

/// A message has fields that the contract does not know. Their names are in the reply alone.
pub fn unknown_fields(kind: MessageKind) {
    counter!(UNKNOWN_FIELDS, "type" => kind.routing_key()).increment(1);
}

/// `publisher` is `None` if it is unknown. `is_told` limits the rate of log lines.
pub fn publisher_refused(kind: MessageKind, publisher: Option<&str>, is_told: bool) {
    counter!(PUBLISHER_REFUSALS, "type" => kind.routing_key()).increment(1);
    if is_told {
        tracing::warn!(publisher, "this publisher asks too often; its messages are refused");
    }
}

/// A reply could not be published.
pub fn message_requeued(reason: &dyn Display) {
    tracing::warn!(%reason, "message returned to the queue");
}

/// A dead letter or a parked pair could not be published.
pub fn publish_failed(error: &dyn Display, wait: Duration) {
    tracing::warn!(%error, wait_ms = millis(wait), "publishing failed; it will be retried");
}

/// Acknowledgements did not reach the broker.
pub fn acks_lost(messages: usize) {
    tracing::info!(
        messages,
        "acknowledgements did not reach the broker; it will deliver these messages again"
    );
}

/// A link crosses a network in plain text, as an operator wants it.
pub fn link_exposed(problem: &Problem) {
    tracing::warn!("{problem}");
}

pub fn flags_reloaded(is_in_force: bool) {
    let outcome = if is_in_force { "ok" } else { "error" };
    counter!(FLAG_RELOADS, "outcome" => outcome).increment(1);
}

/// Describes every metric, and sets those with known labels to zero, so that a rate over them has a start.
pub fn describe() {
    describe_gauge!(BUILD_INFO, "Always 1: the label says which version runs.");
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    describe_gauge!(READY, "1 if the worker can do its job, as /readyz says it.");
    is_ready(false);
    describe_histogram!(REFRESH_LATENCY, Unit::Seconds, "Time a refresh takes, retries included.");
    describe_counter!(MESSAGES, "Messages settled, by type and outcome.");
    describe_histogram!(HANDLING, Unit::Seconds, "Time from a delivery to its settlement.");
    describe_gauge!(IN_FLIGHT, "Messages in hand.");
    describe_counter!(DEAD_LETTERS, "Messages that workers moved to the dead letters, by reason.");
    describe_counter!(LEASE_WAITS, "Waits for a refresh in progress.");
    describe_counter!(
        LEASE_WATCHES,
        "Times another worker's refresh was polled for, for one or more waiting requests."
    );
    describe_counter!(LOST_CAS, "Guarded UPDATEs that changed nothing because the row had changed.");
    describe_counter!(REFRESH_RETRIES, "Calls to token endpoints that were retried.");
    describe_counter!(REFRESH_FAILURES, "Failed refreshes, by code.");
    describe_counter!(PUBLISHER_REFUSALS, "Messages refused because their publisher asks too often.");
    describe_counter!(UNKNOWN_FIELDS, "Messages with fields that the contract does not know.");
    describe_counter!(FLAG_RELOADS, "Times a changed flag file was read.");
    for kind in MessageKind::ALL {
        let label = kind.routing_key();
        counter!(PUBLISHER_REFUSALS, "type" => label).absolute(0);
        counter!(UNKNOWN_FIELDS, "type" => label).absolute(0);
        gauge!(IN_FLIGHT, "type" => label).set(0.0);
        counter!(DEAD_LETTERS, "type" => label, "reason" => ErrorCode::InvalidRequest.name()).absolute(0);
        for outcome in MessageOutcome::ALL {
            counter!(MESSAGES, "type" => label, "outcome" => outcome.name()).absolute(0);
        }
    }
    for statement in Statement::ALL {
        counter!(LOST_CAS, "statement" => statement.name()).absolute(0);
    }
    for outcome in ["ok", "error"] {
        counter!(FLAG_RELOADS, "outcome" => outcome).absolute(0);
    }
    access::describe();
    admin::describe();
    audit::describe();
    broker::describe();
    events::describe();
    hosts::describe();
    journal::describe();
    parking::describe();
    database::describe();
    dead_letters::describe();
    housekeeping::describe();
    panics::describe();
    replies::describe();
    requests::describe();
    rows::describe();
    statements::describe();
    suspects::describe();
}

/// For log lines: [`Duration::as_millis`] is a `u128`, which JSON output writes as a string.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
