//! Replies that reach nobody.

use metrics::{counter, describe_counter};
use tokio::time::Instant;

use super::seldom::Seldom;
use super::{Link, RECONNECTS, label};

const UNROUTABLE: &str = "tokenkeeper_unroutable_replies_total";
const GIVEN_UP: &str = "tokenkeeper_replies_given_up_total";

label! {
    /// Label `reason`. Such a reply also counts as unroutable.
    pub enum ReplyGivenUp {
        /// Its queue refuses it (`basic.nack`), and the request has expired or too many replies wait for that queue.
        Refused = "refused",
        Unconfirmed = "unconfirmed",
        /// The broker closed a channel or connection because of it, and did so again when it was sent alone.
        ClosesChannel = "closes_channel",
    }
}

pub fn reply_unroutable(reply_type: &str) {
    static LINES: Seldom = Seldom::new();
    counter!(UNROUTABLE).increment(1);
    if let Some(kept_back) = LINES.lets_through(Instant::now()) {
        tracing::info!(reply_type, kept_back, "reply unroutable: the requester's queue is gone");
    }
}

pub fn reply_given_up(reason: ReplyGivenUp, reply_type: &str) {
    static LINES: Seldom = Seldom::new();
    counter!(UNROUTABLE).increment(1);
    counter!(GIVEN_UP, "reason" => reason.name()).increment(1);
    if let Some(kept_back) = LINES.lets_through(Instant::now()) {
        tracing::warn!(
            reason = reason.name(),
            reply_type,
            kept_back,
            "reply dropped: the broker does not accept it"
        );
    }
}

pub fn reply_tried_again(error: &dyn std::fmt::Display) {
    static LINES: Seldom = Seldom::new();
    if let Some(kept_back) = LINES.lets_through(Instant::now()) {
        tracing::warn!(%error, kept_back, "publishing a reply failed; it will be retried");
    }
}

pub fn reply_connection_lost() {
    static LINES: Seldom = Seldom::new();
    counter!(RECONNECTS, "connection" => Link::Reply.name()).increment(1);
    if let Some(kept_back) = LINES.lets_through(Instant::now()) {
        tracing::warn!(kept_back, "the connection for direct reply-to replies was lost; reconnecting");
    }
}

pub(super) fn describe() {
    describe_counter!(UNROUTABLE, "Replies whose queue was gone, or that the broker did not accept.");
    describe_counter!(GIVEN_UP, "Replies that the broker did not accept, by reason.");
    counter!(UNROUTABLE).absolute(0);
    for reason in ReplyGivenUp::ALL {
        counter!(GIVEN_UP, "reason" => reason.name()).absolute(0);
    }
}
