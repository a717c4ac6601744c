//! Every request with its times and its answers.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use chrono::DateTime;
use lapin::message::Delivery;
use serde_json::Value;
use tokio::sync::watch;

use super::Changes;

/// What a request asks for.
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) user: Arc<str>,
    pub(crate) host: Arc<str>,
    pub(crate) lifetime_secs: u64,
    pub(crate) by: By,
}

/// The kind of message.
#[derive(Clone)]
pub(crate) enum By {
    TokenRequest,
    /// With one repository, so that there is one token in the reply.
    WorkspaceStart,
    /// With this body. It asks for no lifetime.
    TokenStore(Arc<str>),
}

/// Names a request; its correlation id.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RequestId(usize);

impl RequestId {
    pub(super) fn parse(text: &str) -> Option<Self> {
        text.strip_prefix("request-")?.parse().ok().map(Self)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request-{}", self.0)
    }
}

/// A request, with everything that came of it. Times are epoch milliseconds.
#[derive(Clone)]
pub(crate) struct Sent {
    pub(crate) id: RequestId,
    pub(crate) ask: Ask,
    pub(crate) asked_at_ms: i64,
    /// When the broker had taken it.
    pub(crate) confirmed_at_ms: Option<i64>,
    /// In the order in which they came; more than one where a worker ended between reply and ack.
    pub(crate) answers: Vec<Answer>,
}

impl Sent {
    /// From being sent to the first answer, in milliseconds.
    pub(crate) fn took_ms(&self) -> Option<i64> {
        self.answers.first().map(|answer| answer.at_ms - self.asked_at_ms)
    }
}

/// One reply.
#[derive(Clone)]
pub(crate) struct Answer {
    pub(crate) at_ms: i64,
    pub(crate) what: Answered,
}

/// What a reply says.
#[derive(Clone)]
pub(crate) enum Answered {
    Granted(Granted),
    /// A `token.store` was done.
    Stored,
    Failed(Failed),
}

/// A token.
#[derive(Clone)]
pub(crate) struct Granted {
    pub(crate) token: String,
    /// `None` where the reply does not say.
    pub(crate) reserved_until_ms: Option<i64>,
    pub(crate) expires_at_ms: Option<i64>,
    /// `none`, `reserved`, `opportunistic` or `required`.
    pub(crate) refresh: String,
}

/// An error.
#[derive(Clone)]
pub(crate) struct Failed {
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) retryable: bool,
}

impl Answered {
    fn read(body: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        // A workspace's only element has what the reply to a token.request has.
        let body = body["tokens"].get(0).unwrap_or(body);
        if body["status"] == "ok" && body["token"].is_null() {
            Self::Stored
        } else if body["status"] == "ok" {
            let token = &body["token"];
            Self::Granted(Granted {
                token: text(&token["value"]),
                reserved_until_ms: epoch_ms(&token["reserved_until"]),
                expires_at_ms: epoch_ms(&token["expires_at"]),
                refresh: text(&body["refresh"]),
            })
        } else {
            let error = &body["error"];
            Self::Failed(Failed {
                code: text(&error["code"]),
                message: text(&error["message"]),
                retryable: error["retryable"] == true,
            })
        }
    }
}

fn epoch_ms(value: &Value) -> Option<i64> {
    DateTime::parse_from_rfc3339(value.as_str()?).ok().map(|time| time.timestamp_millis())
}

/// What was sent and what came.
pub(crate) struct Book {
    clock: Box<dyn Fn() -> i64 + Send + Sync>,
    record: Mutex<Record>,
    answers: watch::Sender<u64>,
}

#[derive(Default)]
struct Record {
    requests: Vec<Sent>,
    answered: usize,
    confirmed: usize,
}

/// How far it has come.
#[derive(Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) sent: usize,
    pub(crate) answered: usize,
}

impl Book {
    pub(super) fn new(clock: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self { clock: Box::new(clock), record: Mutex::default(), answers: watch::Sender::default() }
    }

    pub(super) fn enter(&self, ask: Ask) -> RequestId {
        let asked_at_ms = (self.clock)();
        let mut record = self.record();
        let id = RequestId(record.requests.len());
        record.requests.push(Sent { id, ask, asked_at_ms, confirmed_at_ms: None, answers: Vec::new() });
        id
    }

    pub(super) fn confirmed(&self, id: RequestId) {
        let now = (self.clock)();
        let mut record = self.record();
        if let Some(sent) = record.requests.get_mut(id.0)
            && sent.confirmed_at_ms.is_none()
        {
            sent.confirmed_at_ms = Some(now);
            record.confirmed += 1;
        }
    }

    pub(super) fn answered(&self, delivery: &Delivery) {
        let at_ms = (self.clock)();
        let id = delivery.properties.correlation_id().as_ref().and_then(|id| RequestId::parse(id.as_str()));
        let body = serde_json::from_slice(&delivery.data).unwrap_or_default();
        let mut record = self.record();
        let Some(sent) = id.and_then(|id| record.requests.get_mut(id.0)) else { return };
        // A reply that the broker delivers again because our ack was lost counts twice; nothing depends on it.
        sent.answers.push(Answer { at_ms, what: Answered::read(&body) });
        if sent.answers.len() == 1 {
            record.answered += 1;
        }
        drop(record);
        self.answers.send_modify(|count| *count += 1);
    }

    /// How many were sent and answered so far.
    pub(crate) fn counts(&self) -> Counts {
        let record = self.record();
        Counts { sent: record.requests.len(), answered: record.answered }
    }

    pub(super) fn unanswered(&self) -> usize {
        let Counts { sent, answered } = self.counts();
        sent - answered
    }

    /// One request as it is now.
    pub(crate) fn request(&self, id: RequestId) -> Sent {
        self.record().requests[id.0].clone()
    }

    /// All requests as they are now.
    pub(crate) fn requests(&self) -> Vec<Sent> {
        self.record().requests.clone()
    }

    pub(super) fn first_answer(&self, id: RequestId) -> Option<Answer> {
        self.record().requests.get(id.0)?.answers.first().cloned()
    }

    pub(super) fn all_answered(&self) -> bool {
        self.unanswered() == 0
    }

    pub(super) fn changes(&self) -> Changes {
        self.answers.subscribe()
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
