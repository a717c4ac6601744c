//! One function an event: its log line and its metric together, so that neither is forgotten.
//!
//! The two `gitpod_scm_token_refresh_*` names and their labels are an interface: dashboards use them. Nothing
//! here takes a value that could be a secret.

use std::fmt::Display;
use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::contract::MessageKind;

mod admin;
mod database;
mod dead_letters;
mod events;
mod hosts;
mod housekeeping;
pub mod logs;
mod messages;
mod panics;
mod parking;
mod partitions;
pub mod recorder;
mod replies;
mod requests;
mod seldom;
mod statements;
mod suspects;

pub use self::admin::{admin_crowded, admin_not_accepted};
pub use self::database::*;
pub use self::dead_letters::{
    dead_letter_sealed, dead_letters_in_use, dead_letters_left_unsealed, dead_letters_not_sealed,
    dead_letters_sealed,
};
pub use self::events::{EventLoss, event_lost, event_not_published, event_published};
pub use self::hosts::{
    CircuitState, bulkhead_refused, circuit_changed, circuit_known, could_not_ask, host_refusing,
    local_causes_known, refresh_not_begun, refusal_forgiven, refusal_not_judged,
};
pub use self::housekeeping::{
    ChoreOutcome, chore_done, housekeeping_done, housekeeping_failed, housekeeping_left_to_another,
};
pub use self::messages::{InFlight, message_settled, put_off};
pub use self::panics::{Panicking, panicked, service_ended};
pub use self::parking::*;
pub use self::partitions::{no_share, replicas_not_seen, share_changed, share_not_handed_over};
pub use self::replies::{
    ReplyGivenUp, reply_connection_lost, reply_given_up, reply_tried_again, reply_unroutable,
};
pub use self::requests::{Opportunism, TokenResult, token_reported, token_requested};
pub use self::statements::{GroupedStatement, group_split, grouped_statement};
pub use self::suspects::{SuspectMoved, message_not_moved, suspect_moved};

/// Seconds a refresh takes, by host.
pub const REFRESH_LATENCY: &str = "gitpod_scm_token_refresh_latency_seconds";
const MESSAGES: &str = "tokenkeeper_messages_total";
/// Seconds from a delivery to its settlement, by message type.
pub const HANDLING: &str = "tokenkeeper_message_handling_seconds";
const IN_FLIGHT: &str = "tokenkeeper_messages_in_flight";
const RECONNECTS: &str = "tokenkeeper_broker_reconnects_total";
const DEAD_LETTERS: &str = "tokenkeeper_dead_letters_total";
const LEASE_WAITS: &str = "tokenkeeper_lease_waits_total";
const LEASE_WATCHES: &str = "tokenkeeper_lease_watches_total";
const LOST_CAS: &str = "tokenkeeper_lost_compare_and_sets_total";
const REFRESH_RETRIES: &str = "tokenkeeper_refresh_retries_total";
const REFRESH_FAILURES: &str = "tokenkeeper_refresh_failures_total";
const PUBLISHER_REFUSALS: &str = "tokenkeeper_publisher_limit_refusals_total";
const FLAG_RELOADS: &str = "tokenkeeper_flag_reloads_total";

/// What became of a message: label `outcome`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageOutcome {
    /// Answered with `ok`.
    Ok,
    /// Answered with an error.
    Error,
    /// Refused, and laid into the dead letters.
    DeadLettered,
    /// Given back to the broker.
    Requeued,
    /// Failed with nobody to be told, and waits to be tried again.
    PutOff,
}

impl MessageOutcome {
    const ALL: [Self; 5] = [Self::Ok, Self::Error, Self::DeadLettered, Self::Requeued, Self::PutOff];

    /// The label's value.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::DeadLettered => "dead_lettered",
            Self::Requeued => "requeued",
            Self::PutOff => "put_off",
        }
    }
}

/// Which guarded UPDATE found the world moved: label `statement`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statement {
    /// Extending a reservation.
    Reserve,
    /// Taking a lease.
    TakeLease,
    /// Renewing a lease.
    RenewLease,
    /// Storing a refreshed pair.
    StorePair,
    /// Giving a lease back.
    GiveUp,
}

impl Statement {
    const ALL: [Self; 5] = [Self::Reserve, Self::TakeLease, Self::RenewLease, Self::StorePair, Self::GiveUp];

    const fn name(self) -> &'static str {
        match self {
            Self::Reserve => "reserve",
            Self::TakeLease => "take_lease",
            Self::RenewLease => "renew_lease",
            Self::StorePair => "store_pair",
            Self::GiveUp => "give_up",
        }
    }
}

/// A connection to the broker: label `connection`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Deliveries, replies and acks.
    Consume,
    /// The same for messages that may end what works on them, a few at a time.
    Suspects,
    /// The same, one at a time.
    Isolated,
    /// Replies that only the broker can judge.
    Reply,
    /// Dead letters, parked pairs and events.
    Publish,
}

impl Link {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Consume, Self::Suspects, Self::Isolated, Self::Reply, Self::Publish];

    /// The label's value.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Consume => "consume",
            Self::Suspects => "suspects",
            Self::Isolated => "isolated",
            Self::Reply => "reply",
            Self::Publish => "publish",
        }
    }
}

/// A provider issued a new pair, and it is stored.
pub fn refreshed(host: &str, took: Duration) {
    histogram!(REFRESH_LATENCY, "host" => host.to_owned()).record(took);
    tracing::info!(host, took_ms = millis(took), "token refreshed");
}

/// A refresh was given up.
pub fn refresh_failed(host: &str, code: &'static str, message: &str, took: Duration) {
    histogram!(REFRESH_LATENCY, "host" => host.to_owned()).record(took);
    counter!(REFRESH_FAILURES, "host" => host.to_owned(), "code" => code).increment(1);
    tracing::warn!(host, code, message, took_ms = millis(took), "refresh failed");
}

/// A call of a token endpoint failed and is tried again.
pub fn refresh_retried(host: &str, error: &dyn std::error::Error, wait: Duration) {
    counter!(REFRESH_RETRIES, "host" => host.to_owned()).increment(1);
    tracing::info!(host, %error, wait_ms = millis(wait), "refresh is tried again");
}

/// A refreshed pair came back to an entry that has a newer one: a login won over the refresh.
pub fn refreshed_pair_superseded(host: &str) {
    lost_compare_and_set(Statement::StorePair);
    tracing::warn!(host, "a newer pair was stored while this one was refreshed; this one is dropped");
}

/// A request met a live lease and waits for whoever has it: for a flight of this worker, or another worker's.
pub fn lease_waited(host: &str) {
    counter!(LEASE_WAITS, "host" => host.to_owned()).increment(1);
    tracing::debug!(host, "waiting for another worker's refresh");
}

/// No flight of this worker's has that lease, so from now on the row is looked at until it is gone.
pub fn lease_watched(host: &str) {
    counter!(LEASE_WATCHES, "host" => host.to_owned()).increment(1);
}

/// A guarded UPDATE changed nothing.
pub fn lost_compare_and_set(statement: Statement) {
    counter!(LOST_CAS, "statement" => statement.name()).increment(1);
    tracing::debug!(statement = statement.name(), "the row has moved");
}

/// A lease could not be renewed or given back because the database failed.
pub fn lease_not_kept(error: &dyn Display) {
    tracing::warn!(%error, "cannot keep a refresh lease");
}

/// A provider did not say how long its new token is good for, and nothing else is known of it.
pub fn lifetime_assumed(host: &str, lifetime: Duration) {
    tracing::warn!(
        host,
        lifetime_secs = lifetime.as_secs(),
        "the provider tells no lifetime of its token: assumed"
    );
}

/// A provider does not accept a token that it issued a while ago.
pub fn token_not_accepted(host: &str) {
    tracing::warn!(host, "the provider's validate_url does not accept a new token: handed out all the same");
}

/// The database failed a request, which is tried again or answered with `internal`.
pub fn store_failed(error: &dyn Display) {
    tracing::error!(%error, "the database failed a request");
}

/// A message was laid into the dead letters.
pub fn dead_lettered(kind: MessageKind, reason: &str) {
    counter!(DEAD_LETTERS, "type" => kind.routing_key()).increment(1);
    tracing::warn!(reason, "message laid into the dead letters");
}

/// A publisher asks too often, and a message of theirs is refused, which is told now and then. None: the publisher is not known.
pub fn publisher_refused(kind: MessageKind, publisher: Option<&str>, is_told: bool) {
    counter!(PUBLISHER_REFUSALS, "type" => kind.routing_key()).increment(1);
    if is_told {
        tracing::warn!(publisher, "this publisher asks too often; its messages are refused");
    }
}

/// A reply could not be published; the message goes back to the queue.
pub fn message_requeued(reason: &dyn Display) {
    tracing::warn!(%reason, "message given back to the broker");
}

/// A dead letter or a parked pair could not be published and is tried again.
pub fn publish_failed(error: &dyn Display, wait: Duration) {
    tracing::warn!(%error, wait_ms = millis(wait), "publishing is tried again");
}

/// Acknowledgements did not reach the broker; it will deliver these messages again.
pub fn acks_lost(messages: usize) {
    tracing::info!(messages, "the acknowledgement came too late; the broker delivers again");
}

/// A connection to the broker is up.
pub fn broker_connected(link: Link, broker: &str) {
    tracing::info!(connection = link.name(), broker, "connected to the broker");
}

/// A connection to the broker, or what runs on it, broke; it is made anew.
pub fn broker_lost(link: Link, error: &dyn Display, wait: Duration) {
    counter!(RECONNECTS, "connection" => link.name()).increment(1);
    tracing::warn!(connection = link.name(), %error, wait_ms = millis(wait), "connecting to the broker again");
}

/// A consumer was cancelled or its channel closed; it subscribes again.
pub fn consumer_lost(link: Link, feed: &dyn Display, error: &dyn Display, wait: Duration) {
    counter!(RECONNECTS, "connection" => link.name()).increment(1);
    tracing::warn!(queue = %feed, %error, wait_ms = millis(wait), "subscribing again");
}

/// The broker blocked or unblocked a connection (memory or disk alarm).
pub fn broker_blocked(link: Link, reason: Option<&str>) {
    if let Some(reason) = reason {
        tracing::warn!(connection = link.name(), reason, "the broker blocks this connection");
    } else {
        tracing::info!(connection = link.name(), "the broker lets this connection publish again");
    }
}

/// The flag file was read again.
pub fn flags_reloaded(is_in_force: bool) {
    let outcome = if is_in_force { "ok" } else { "error" };
    counter!(FLAG_RELOADS, "outcome" => outcome).increment(1);
}

/// Describes every metric and shows the ones whose labels are known at zero, so that a rate over them has a
/// beginning.
pub fn describe() {
    describe_histogram!(REFRESH_LATENCY, Unit::Seconds, "Time a refresh takes, retries included.");
    describe_counter!(MESSAGES, "Messages settled, by type and outcome.");
    describe_histogram!(HANDLING, Unit::Seconds, "Time from a delivery to its settlement.");
    describe_gauge!(IN_FLIGHT, "Messages in hand.");
    describe_counter!(RECONNECTS, "Times a broker connection, channel or consumer was made anew.");
    describe_counter!(DEAD_LETTERS, "Messages laid into the dead letters.");
    describe_counter!(LEASE_WAITS, "Waits for a refresh that was under way.");
    describe_counter!(
        LEASE_WATCHES,
        "Times another worker's refresh was watched, for one waiting request or many."
    );
    describe_counter!(LOST_CAS, "Guarded UPDATEs that found the row moved.");
    describe_counter!(REFRESH_RETRIES, "Calls of token endpoints that were tried again.");
    describe_counter!(REFRESH_FAILURES, "Refreshes given up, by code.");
    describe_counter!(PUBLISHER_REFUSALS, "Messages refused because their publisher asks too often.");
    describe_counter!(FLAG_RELOADS, "Times a changed flag file was read.");
    for kind in MessageKind::ALL {
        let label = kind.routing_key();
        counter!(PUBLISHER_REFUSALS, "type" => label).absolute(0);
        gauge!(IN_FLIGHT, "type" => label).set(0.0);
        counter!(DEAD_LETTERS, "type" => label).absolute(0);
        for outcome in MessageOutcome::ALL {
            counter!(MESSAGES, "type" => label, "outcome" => outcome.name()).absolute(0);
        }
    }
    for link in Link::ALL {
        counter!(RECONNECTS, "connection" => link.name()).absolute(0);
    }
    for statement in Statement::ALL {
        counter!(LOST_CAS, "statement" => statement.name()).absolute(0);
    }
    for outcome in ["ok", "error"] {
        counter!(FLAG_RELOADS, "outcome" => outcome).absolute(0);
    }
    admin::describe();
    events::describe();
    hosts::describe();
    parking::describe();
    database::describe();
    dead_letters::describe();
    housekeeping::describe();
    panics::describe();
    partitions::describe();
    replies::describe();
    requests::describe();
    statements::describe();
    suspects::describe();
}

/// For a log line: JSON has no number as wide as [`Duration::as_millis`], and would get a text.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
