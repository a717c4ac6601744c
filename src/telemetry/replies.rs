//! Replies that do not reach anybody.

use metrics::{counter, describe_counter};
use tokio::time::Instant;

use super::seldom::Seldom;
use super::{Link, RECONNECTS};

const UNROUTABLE: &str = "tokenkeeper_unroutable_replies_total";
const GIVEN_UP: &str = "tokenkeeper_replies_given_up_total";

/// Why a reply was given up: label `reason`. It counts as unroutable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyGivenUp {
    /// Its queue refuses it (`basic.nack`), and the request's time is over or too many wait for that queue.
    Refused,
    /// No confirm came for it in that time.
    Unconfirmed,
    /// The broker closed a channel or a connection over it, and once more when it was tried alone.
    ClosesChannel,
}

impl ReplyGivenUp {
    const ALL: [Self; 3] = [Self::Refused, Self::Unconfirmed, Self::ClosesChannel];

    const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unconfirmed => "unconfirmed",
            Self::ClosesChannel => "closes_channel",
        }
    }
}

/// The broker could not route a reply: the requester is gone.
pub fn reply_unroutable(reply_type: &str) {
    static LINES: Seldom = Seldom::new();
    counter!(UNROUTABLE).increment(1);
    if let Some(kept_back) = LINES.lets_through(Instant::now()) {
        tracing::info!(reply_type, kept_back, "nobody waits for this reply any more");
    }
}

/// The broker does not take a reply.
pub fn reply_given_up(reason: ReplyGivenUp, reply_type: &str) {
    static LINES: Seldom = Seldom::new();
    counter!(UNROUTABLE).increment(1);
    counter!(GIVEN_UP, "reason" => reason.name()).increment(1);
    if let Some(kept_back) = LINES.lets_through(Instant::now()) {
        tracing::warn!(
            reason = reason.name(),
            reply_type,
            kept_back,
            "the broker does not take this reply: given up"
        );
    }
}

/// A reply could not be published and is tried again.
pub fn reply_tried_again(error: &dyn std::fmt::Display) {
    static LINES: Seldom = Seldom::new();
    if let Some(kept_back) = LINES.lets_through(Instant::now()) {
        tracing::warn!(%error, kept_back, "a reply is tried again");
    }
}

/// A connection for replies is made anew.
pub fn reply_connection_lost() {
    static LINES: Seldom = Seldom::new();
    counter!(RECONNECTS, "connection" => Link::Reply.name()).increment(1);
    if let Some(kept_back) = LINES.lets_through(Instant::now()) {
        tracing::warn!(kept_back, "the connection for replies to a direct reply-to broke: it is made anew");
    }
}

pub(super) fn describe() {
    describe_counter!(
        UNROUTABLE,
        "Replies that nobody waited for any more, or that the broker did not take."
    );
    describe_counter!(GIVEN_UP, "Replies that the broker did not take, by reason.");
    counter!(UNROUTABLE).absolute(0);
    for reason in ReplyGivenUp::ALL {
        counter!(GIVEN_UP, "reason" => reason.name()).absolute(0);
    }
}
