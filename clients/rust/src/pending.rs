//! The requests that wait for a reply, by correlation id. What nobody waits for has no entry, so that no reply, wanted or not, is
//! kept.

use std::collections::HashMap;

use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::ShortString;
use lapin::{Error as AmqpError, ErrorKind};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::progress::{Published, Steps};

/// The longest reply that is read, in bytes: a workspace of 16 of the longest tokens, percent-encoded beside themselves and sealed,
/// has less than 3 MiB.
const LONGEST_REPLY: usize = 4 * 1024 * 1024;

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Somebody answered.
    Answered(Vec<u8>),
    /// The answer is longer than any reply.
    TooLong,
    /// No queue took it.
    Unroutable,
    /// The broker did not keep it.
    Nacked,
    /// The broker refused it, and closed the channel.
    Refused(AmqpError),
    /// The connection or the channel is gone.
    Lost,
}

/// A request in flight.
struct Entry {
    tell: oneshot::Sender<Outcome>,
    /// The number of the link that it goes over.
    link: u64,
    exchange: ShortString,
    steps: Steps,
}

#[derive(Default)]
pub(crate) struct Pending(Mutex<HashMap<Uuid, Entry>>);

impl Pending {
    /// Enters a request before it is published. It is forgotten when its [`PendingReply`] is dropped.
    pub(crate) fn enter(&self, link: u64, exchange: ShortString, steps: Steps) -> PendingReply<'_> {
        let id = Uuid::new_v4();
        let (tell, outcome) = oneshot::channel();
        steps.set(Published::No);
        self.0.lock().insert(id, Entry { tell, link, exchange, steps });
        PendingReply { pending: self, id, outcome }
    }

    /// Whether somebody still waits. From now on the request counts as sent.
    pub(crate) fn publishes(&self, id: Uuid) -> bool {
        let entries = self.0.lock();
        let entry = entries.get(&id);
        entry.inspect(|entry| entry.steps.set(Published::Perhaps)).is_some()
    }

    pub(crate) fn confirmed(&self, id: Uuid) {
        if let Some(entry) = self.0.lock().get(&id) {
            entry.steps.set(Published::Yes);
        }
    }

    /// A reply came. One that nobody waits for is dropped: it is a second one, comes too late, or is not ours.
    pub(crate) fn answered(&self, correlation_id: Option<&ShortString>, body: Vec<u8>) {
        let id = correlation_id.and_then(|id| Uuid::try_parse(id.as_str()).ok());
        let outcome = if body.len() > LONGEST_REPLY { Outcome::TooLong } else { Outcome::Answered(body) };
        if let Some(id) = id {
            self.tell(id, outcome);
        }
    }

    pub(crate) fn tell(&self, id: Uuid, outcome: Outcome) {
        let entry = self.0.lock().remove(&id);
        if let Some(entry) = entry {
            // Somebody who does not wait any more is not told.
            let _ = entry.tell.send(outcome);
        }
    }

    /// A link is gone. If that is because the broker refused what was published, those are told whom it can have meant, and all
    /// others that the link is lost.
    pub(crate) fn end(&self, link: u64, error: Option<&AmqpError>) {
        let refusal = error.and_then(Refusal::of);
        let gone: Vec<Entry> =
            self.0.lock().extract_if(|_, entry| entry.link == link).map(|(_, entry)| entry).collect();
        for Entry { tell, exchange, steps, .. } in gone {
            let is_meant = |refusal: &&Refusal<'_>| {
                steps.published() == Published::Perhaps && refusal.can_mean(exchange.as_str())
            };
            let outcome = match refusal.as_ref().filter(is_meant) {
                Some(Refusal { is_missing: true, .. }) => Outcome::Unroutable,
                Some(Refusal { error, .. }) => Outcome::Refused((*error).clone()),
                None => Outcome::Lost,
            };
            let _ = tell.send(outcome);
        }
    }

    /// The client is closed: all links are gone.
    pub(crate) fn end_all(&self) {
        for (_, Entry { tell, .. }) in self.0.lock().drain() {
            let _ = tell.send(Outcome::Lost);
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.lock().len()
    }
}

/// Why the broker closed the channel.
struct Refusal<'a> {
    error: &'a AmqpError,
    text: String,
    is_missing: bool,
}

impl<'a> Refusal<'a> {
    /// None: the connection broke, or was closed for another reason than what we published.
    fn of(error: &'a AmqpError) -> Option<Self> {
        let ErrorKind::ProtocolError(told) = error.kind() else { return None };
        let AMQPErrorKind::Soft(soft) = told.kind() else { return None };
        let is_missing = *soft == AMQPSoftError::NOTFOUND;
        Some(Self { error, text: told.get_message().to_string(), is_missing })
    }

    /// `NOT_FOUND - no exchange 'tokenkeeper' in vhost '/'`: another exchange's messages are not meant.
    fn can_mean(&self, exchange: &str) -> bool {
        !self.text.contains("exchange '") || self.text.contains(&format!("exchange '{exchange}'"))
    }
}

/// The place of a request among the pending ones.
pub(crate) struct PendingReply<'a> {
    pending: &'a Pending,
    pub(crate) id: Uuid,
    outcome: oneshot::Receiver<Outcome>,
}

impl PendingReply<'_> {
    pub(crate) async fn outcome(&mut self) -> Outcome {
        // The sender is dropped with an entry that this place removed, which is over then.
        (&mut self.outcome).await.unwrap_or(Outcome::Lost)
    }
}

impl Drop for PendingReply<'_> {
    fn drop(&mut self) {
        self.pending.0.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(reply: &PendingReply<'_>) -> ShortString {
        ShortString::from(reply.id.to_string())
    }

    #[tokio::test]
    async fn each_reply_finds_its_request_and_all_others_are_dropped() {
        let pending = Pending::default();
        let mut first = pending.enter(1, "x".into(), Steps::default());
        let mut second = pending.enter(1, "x".into(), Steps::default());
        pending.answered(Some(&"nobody's".into()), b"0".to_vec());
        pending.answered(Some(&Uuid::new_v4().to_string().into()), b"0".to_vec());
        pending.answered(None, b"0".to_vec());
        pending.answered(Some(&id(&second)), b"2".to_vec());
        pending.answered(Some(&id(&second)), b"another".to_vec());
        pending.answered(Some(&id(&first)), vec![b' '; LONGEST_REPLY + 1]);
        assert!(matches!(second.outcome().await, Outcome::Answered(body) if body == b"2"));
        assert!(matches!(first.outcome().await, Outcome::TooLong));
        assert_eq!(pending.len(), 0);
    }

    #[test]
    fn a_request_that_nobody_waits_for_leaves_nothing_behind() {
        let pending = Pending::default();
        let reply = pending.enter(1, "x".into(), Steps::default());
        let id = reply.id;
        assert!(pending.publishes(id));
        drop(reply);
        assert_eq!(pending.len(), 0);
        assert!(!pending.publishes(id), "it is not published any more");
    }

    #[tokio::test]
    async fn a_link_that_ends_takes_its_own_requests_alone() {
        let pending = Pending::default();
        let mut old = pending.enter(1, "x".into(), Steps::default());
        let _new = pending.enter(2, "x".into(), Steps::default());
        pending.end(1, None);
        assert!(matches!(old.outcome().await, Outcome::Lost));
        assert_eq!(pending.len(), 1);
    }

    #[tokio::test]
    async fn a_refusal_is_told_to_those_whom_the_broker_can_have_meant() {
        use lapin::protocol::AMQPError;
        let refusal = |code, text: &str| {
            AmqpError::from(ErrorKind::ProtocolError(AMQPError::from_id(code, text.into()).unwrap()))
        };
        for (code, text, expected) in [
            (404, "NOT_FOUND - no exchange 'tk' in vhost '/'", "Unroutable"),
            (404, "NOT_FOUND - no exchange 'tk.token-requests' in vhost '/'", "Lost"),
            (403, "ACCESS_REFUSED - access to exchange 'tk' in vhost '/' refused for user 'u'", "Refused"),
            (
                406,
                "PRECONDITION_FAILED - user_id property set to 'a' but authenticated user was 'b'",
                "Refused",
            ),
            (320, "CONNECTION_FORCED - broker forced connection closure", "Lost"),
        ] {
            let pending = Pending::default();
            let mut sent = pending.enter(1, "tk".into(), Steps::default());
            let mut confirmed = pending.enter(1, "tk".into(), Steps::default());
            let mut waiting = pending.enter(1, "tk".into(), Steps::default());
            pending.publishes(sent.id);
            pending.publishes(confirmed.id);
            pending.confirmed(confirmed.id);
            pending.end(1, Some(&refusal(code, text)));
            let outcome = format!("{:?}", sent.outcome().await);
            assert!(outcome.starts_with(expected), "{text}: {outcome}");
            assert!(matches!(confirmed.outcome().await, Outcome::Lost), "{text}");
            assert!(matches!(waiting.outcome().await, Outcome::Lost), "{text}");
        }
    }
}
