//! What can go wrong, told apart by what a caller does about it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::kind::MessageKind;
use crate::progress::Published;
use crate::wire::ErrorBody;
use crate::words::{ErrorCode, Warning, cut, plain};

/// An error of a connector, shared by all requests that wait for a connection.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// Why there is no answer, or no good one. None of them repeats a token.
///
/// # Of every request
/// - [`Refused`](Self::Refused): a worker refuses it.
/// - [`Invalid`](Self::Invalid): it breaks the contract, and was not sent.
/// - [`Connect`](Self::Connect), [`NoReply`](Self::NoReply): its time is over.
/// - [`Unroutable`](Self::Unroutable), [`Nacked`](Self::Nacked), [`Broker`](Self::Broker): the broker does not take it.
/// - [`Reply`](Self::Reply): what came is no answer to it.
/// - [`Options`](Self::Options): the name of the broker's user does not fit into a message.
/// - [`Closed`](Self::Closed): the client was closed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The options cannot work. The text does not repeat a password.
    #[error("{0}")]
    Options(String),
    /// The request breaks the contract, and was not sent.
    #[error("{0}")]
    Invalid(&'static str),
    /// No connection came about within the request's time.
    #[error("{0}")]
    Connect(Cause),
    /// The broker does not answer.
    #[error("cannot {action}: no answer within {} s", after.as_secs())]
    Silent {
        /// What was tried.
        action: &'static str,
        /// How long.
        after: Duration,
    },
    /// The broker refuses what was tried, most often for a missing permission.
    #[error("cannot {action}: {error}")]
    Broker {
        /// What was tried.
        action: &'static str,
        /// What it said.
        error: lapin::Error,
    },
    /// No queue takes the message: the prefix is wrong, or no worker has ever run there.
    #[error("no queue takes {kind} under the prefix `{prefix}`")]
    Unroutable {
        /// What was published.
        kind: MessageKind,
        /// Under which prefix.
        prefix: String,
    },
    /// The broker refuses to keep the message (`basic.nack`): its queue is full, or its node has no room.
    #[error("the broker refused (basic.nack) {kind}")]
    Nacked {
        /// What was published.
        kind: MessageKind,
    },
    /// No reply came in time: no worker runs, or all of them are held up.
    #[error("no reply to {kind} came within {after:?}")]
    NoReply {
        /// What was published.
        kind: MessageKind,
        /// The request's time.
        after: Duration,
        /// Whether the broker had it.
        published: Published,
    },
    /// The connection broke before the reply to a `token.store` or `token.report`. Requests for tokens are asked again instead.
    #[error("the connection broke before the reply to {kind}")]
    ConnectionLost {
        /// What was published.
        kind: MessageKind,
        /// Whether the broker had it. A worker handles what it had.
        published: Published,
    },
    /// A worker refuses the message.
    #[error("{0}")]
    Refused(Box<Refusal>),
    /// The reply cannot be used. Nothing of it was taken.
    #[error("{0}")]
    Reply(#[from] UnusableReply),
    /// Events may be missing: the connection was away. The stream goes on.
    #[error("the connection was away: events may be missing")]
    EventsMissed,
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
}

impl Error {
    /// Whether the same request may succeed later.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.retryable,
            Self::Connect(_)
            | Self::Silent { .. }
            | Self::Nacked { .. }
            | Self::NoReply { .. }
            | Self::ConnectionLost { .. }
            | Self::EventsMissed => true,
            Self::Options(_)
            | Self::Invalid(_)
            | Self::Broker { .. }
            | Self::Unroutable { .. }
            | Self::Reply(_)
            | Self::Closed => false,
        }
    }

    /// How long to wait before that, if a worker knows.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(refusal) => refusal.retry_after,
            _ => None,
        }
    }

    /// The code of a worker's refusal.
    pub fn code(&self) -> Option<&ErrorCode> {
        match self {
            Self::Refused(refusal) => Some(&refusal.code),
            _ => None,
        }
    }
}

/// The longest wait that is believed, in seconds: no request lasts longer than a day.
const LONGEST_WAIT_SECS: u64 = 86_400;

/// A worker's error, as it stands in its reply.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// For the program.
    pub code: ErrorCode,
    /// For a person, at most 500 characters. [`Display`](fmt::Display) escapes what is not printable.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// How long to wait before that, if it is known: a day at most.
    pub retry_after: Option<Duration>,
    /// With `reauthorization_required`: `refresh_token_refused` or `refresh_interrupted`. Of another word at most 500 characters,
    /// and what is not printable is escaped.
    pub reason: Option<String>,
    /// What the worker says about the message.
    pub warnings: Vec<Warning>,
}

impl Refusal {
    pub(crate) fn new(error: ErrorBody, warnings: Vec<Warning>) -> Self {
        let ErrorBody { code, mut message, retryable, retry_after_secs, reason } = error;
        cut(&mut message);
        Self {
            code,
            message,
            retryable,
            retry_after: retry_after_secs.filter(|secs| *secs <= LONGEST_WAIT_SECS).map(Duration::from_secs),
            reason: reason.map(|reason| plain(&reason).into_owned()),
            warnings,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, plain(&self.message))
    }
}

/// Why a reply cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnusableReply {
    /// It is longer than any reply of the contract.
    #[error("the reply is longer than any of the contract")]
    TooLong,
    /// It is not what the contract says: not JSON, another shape, an unknown `status`.
    #[error("the reply cannot be understood")]
    NotUnderstood,
    /// It is about another user, host or workspace than the request.
    #[error("the reply is about another user, host or workspace than the request")]
    OfSomebodyElse,
    /// A sealed token was asked for, and one in clear came, alone or beside a sealed one.
    #[error("the reply is not sealed: the worker is of an older version, and the broker has seen the token")]
    NotSealed,
    /// The box does not open.
    #[error("the sealed token does not open: somebody changed the reply on its way")]
    NotOpened,
    /// What is in the box is no token.
    #[error("what is sealed in the reply is not a JSON object")]
    NothingSealed,
    /// The box holds the token of another user or host.
    #[error("the sealed token is of another user or host: somebody changed the reply on its way")]
    SealedForSomebodyElse,
}
