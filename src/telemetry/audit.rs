//! The audit log: one JSON line for each token that is handed out, stored or reported, each refusal and each refresh.
//!
//! The lines are events with the target `audit`. Where there is no audit log, they cost next to nothing. No line holds a
//! secret, and what others wrote in it is escaped. A line is written when the worker has decided, before its reply is
//! published: a token whose reply never arrives counts as handed out.

mod chain;
mod chained;
mod file;
mod sink;
mod verify;

use std::fmt;

use metrics::{counter, describe_counter, describe_gauge, gauge};
use serde::Serializer;
use tokio::time::Instant;
use tracing::Event;
use tracing_serde::SerdeMapVisitor;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

pub use self::sink::AuditSink;
pub use self::verify::{Broken, Fault, LONGEST_LINE, TornLine, UnknownKey, Verifier, Why};
use super::label;
use super::seldom::Seldom;
use crate::contract::{ErrorCode, MessageKind};
use crate::domain::clock::Timestamp;

/// The target of audit events.
pub(super) const TARGET: &str = "audit";

/// Bytes, enough for most lines.
const TYPICAL_LEN: usize = 400;

const LOST: &str = "tokenkeeper_audit_lines_lost_total";
const SEQUENCE: &str = "tokenkeeper_audit_chain_sequence";

label! {
    /// Label `reason`.
    enum LostBecause {
        /// The lines came faster than they can be written.
        Full = "full",
        /// The file or standard output did not take them.
        Failed = "failed",
    }
}

/// Who asks, as the message says.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    pub kind: MessageKind,
    /// The AMQP user, which the broker checks. None: unknown.
    pub publisher: Option<&'a str>,
    /// The message's `correlation_id`, else its `message_id`.
    pub request_id: Option<&'a str>,
}

/// A refresh of one token.
#[derive(Debug, Clone, Copy)]
pub struct Refreshed<'a> {
    pub user: &'a str,
    pub host: &'a str,
    /// `required`, `opportunistic` or `reported`.
    pub cause: &'static str,
    /// Of the new pair; of the old one where the refresh failed.
    pub generation: i64,
}

/// How a token went to its requester.
#[derive(Debug, Clone, Copy)]
pub struct HandedOut {
    /// The word of the reply: whether the token was refreshed for this request.
    pub refresh: &'static str,
    /// The broker cannot read it.
    pub sealed: bool,
}

pub fn handed_out(
    asker: Asker<'_>,
    user: &str,
    host: &str,
    way: HandedOut,
    generation: i64,
    reserved_until: Timestamp,
) {
    let Asker { kind, publisher, request_id } = asker;
    tracing::info!(
        target: TARGET,
        event = "token_handed_out",
        outcome = way.refresh,
        kind = kind.routing_key(),
        publisher,
        user,
        host,
        sealed = way.sealed,
        generation,
        %reserved_until,
        request_id,
    );
}

/// `effect`: what the login did to the stored pair. `generation`: of the pair that is stored now. `sealed`: the broker could
/// not read the login.
pub fn stored(asker: Asker<'_>, user: &str, host: &str, effect: &'static str, generation: i64, sealed: bool) {
    let Asker { kind, publisher, request_id } = asker;
    let kind = kind.routing_key();
    tracing::info!(
        target: TARGET, event = "token_stored", outcome = effect, kind, publisher, user, host, generation, sealed, request_id
    );
}

/// `result` is the word of the reply.
pub fn reported(asker: Asker<'_>, user: &str, host: &str, result: &'static str) {
    let Asker { kind, publisher, request_id } = asker;
    let kind = kind.routing_key();
    tracing::info!(target: TARGET, event = "token_reported", outcome = result, kind, publisher, user, host, request_id);
}

/// `user` and `host` are None where the message does not say.
pub fn refused(asker: Asker<'_>, user: Option<&str>, host: Option<&str>, code: ErrorCode) {
    let Asker { kind, publisher, request_id } = asker;
    let (kind, outcome) = (kind.routing_key(), code.name());
    tracing::info!(target: TARGET, event = "refused", outcome, kind, publisher, user, host, request_id);
}

/// A new pair is stored, or parked: `outcome` says which.
pub fn refreshed(refresh: Refreshed<'_>, outcome: &'static str, reserved_until: Option<Timestamp>) {
    let Refreshed { user, host, cause, generation } = refresh;
    let reserved_until = reserved_until.map(tracing::field::display);
    tracing::info!(target: TARGET, event = "token_refreshed", outcome, cause, user, host, generation, reserved_until);
}

/// `code` says why.
pub fn not_refreshed(refresh: Refreshed<'_>, code: &'static str) {
    let Refreshed { user, host, cause, generation } = refresh;
    tracing::info!(target: TARGET, event = "refresh_failed", outcome = code, cause, user, host, generation);
}

/// Writes an audit event as a line of JSON.
pub(super) fn write_line(mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
    let mut fields = Vec::with_capacity(TYPICAL_LEN);
    write_fields(event, &mut fields).map_err(|_| fmt::Error)?;
    let fields = str::from_utf8(&fields).map_err(|_| fmt::Error)?;
    to.write_str("{\"timestamp\":\"")?;
    SystemTime.format_time(&mut to)?;
    // Every audit event has fields.
    writeln!(to, "\",{}", fields.trim_start_matches('{'))
}

fn write_fields(of: &Event<'_>, to: &mut Vec<u8>) -> serde_json::Result<()> {
    let mut serializer = serde_json::Serializer::new(to);
    let mut visitor = SerdeMapVisitor::new(serializer.serialize_map(None)?);
    of.record(&mut visitor);
    visitor.finish()
}

/// A line did not find room in the buffer.
fn line_lost() {
    static LINES: Seldom = Seldom::new();
    counter!(LOST, "reason" => LostBecause::Full.name()).increment(1);
    if let Some(kept_back) = LINES.lets_through(Instant::now()) {
        tracing::warn!(kept_back, "the audit log takes lines too slowly; a line is lost");
    }
}

/// A line was not written.
fn line_not_written(error: &std::io::Error) {
    counter!(LOST, "reason" => LostBecause::Failed.name()).increment(1);
    not_written(error);
}

/// What is still in memory is tried again with the next line.
fn not_written(error: &std::io::Error) {
    static LINES: Seldom = Seldom::new();
    if let Some(kept_back) = LINES.lets_through(Instant::now()) {
        tracing::error!(%error, kept_back, "cannot write the audit log; check audit.file and its disk");
    }
}

/// The file goes on growing.
fn not_renamed(error: &std::io::Error) {
    static LINES: Seldom = Seldom::new();
    if let Some(kept_back) = LINES.lets_through(Instant::now()) {
        tracing::warn!(%error, kept_back, "cannot rename the full audit log; it goes on growing");
    }
}

/// The last line that is written has this sequence number.
#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 lines")]
fn chain_is_at(sequence: u64) {
    gauge!(SEQUENCE).set(sequence as f64);
}

/// At a worker's start. A file that was cut off shows here, and in the metric: the number is lower than before.
fn chain_goes_on(sequence: u64) {
    chain_is_at(sequence);
    tracing::info!(sequence, "the chain of the audit log goes on");
}

pub(super) fn describe() {
    describe_gauge!(
        SEQUENCE,
        "The sequence number of the last line of the chained audit log; 0 without a chain."
    );
    gauge!(SEQUENCE).set(0.0);
    describe_counter!(LOST, "Lines of the audit log that were lost, by reason.");
    for reason in LostBecause::ALL {
        counter!(LOST, "reason" => reason.name()).absolute(0);
    }
}
