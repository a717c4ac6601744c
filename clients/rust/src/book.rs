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
pub(crate) enum Fate {
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
    tell: oneshot::Sender<Fate>,
    /// The number of the line that it goes over.
    line: u64,
    exchange: ShortString,
    steps: Steps,
}

#[derive(Default)]
pub(crate) struct Book(Mutex<HashMap<Uuid, Entry>>);

impl Book {
    /// Enters a request before it is published. It leaves the book when its slip is dropped.
    pub(crate) fn enter(&self, line: u64, exchange: ShortString, steps: Steps) -> Slip<'_> {
        let id = Uuid::new_v4();
        let (tell, fate) = oneshot::channel();
        steps.set(Published::No);
        self.0.lock().insert(id, Entry { tell, line, exchange, steps });
        Slip { book: self, id, fate }
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
        let fate = if body.len() > LONGEST_REPLY { Fate::TooLong } else { Fate::Answered(body) };
        if let Some(id) = id {
            self.tell(id, fate);
        }
    }

    pub(crate) fn tell(&self, id: Uuid, fate: Fate) {
        let entry = self.0.lock().remove(&id);
        if let Some(entry) = entry {
            // Somebody who does not wait any more is not told.
            let _ = entry.tell.send(fate);
        }
    }

    /// A line is gone. If that is because the broker refused what was published, those are told whom it can have meant, and all
    /// others that the line is lost.
    pub(crate) fn end(&self, line: u64, error: Option<&AmqpError>) {
        let refusal = error.and_then(Refusal::of);
        let gone: Vec<Entry> =
            self.0.lock().extract_if(|_, entry| entry.line == line).map(|(_, entry)| entry).collect();
        for Entry { tell, exchange, steps, .. } in gone {
            let is_meant = |refusal: &&Refusal<'_>| {
                steps.published() == Published::Perhaps && refusal.can_mean(exchange.as_str())
            };
            let fate = match refusal.as_ref().filter(is_meant) {
                Some(Refusal { is_missing: true, .. }) => Fate::Unroutable,
                Some(Refusal { error, .. }) => Fate::Refused((*error).clone()),
                None => Fate::Lost,
            };
            let _ = tell.send(fate);
        }
    }

    /// The client is closed: all lines are gone.
    pub(crate) fn end_all(&self) {
        for (_, Entry { tell, .. }) in self.0.lock().drain() {
            let _ = tell.send(Fate::Lost);
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

/// A place in the book.
pub(crate) struct Slip<'a> {
    book: &'a Book,
    pub(crate) id: Uuid,
    fate: oneshot::Receiver<Fate>,
}

impl Slip<'_> {
    pub(crate) async fn fate(&mut self) -> Fate {
        // The sender is dropped with an entry that this slip removed, which is over then.
        (&mut self.fate).await.unwrap_or(Fate::Lost)
    }
}

impl Drop for Slip<'_> {
    fn drop(&mut self) {
        self.book.0.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(slip: &Slip<'_>) -> ShortString {
        ShortString::from(slip.id.to_string())
    }

    #[tokio::test]
    async fn each_reply_finds_its_request_and_all_others_are_dropped() {
        let book = Book::default();
        let mut first = book.enter(1, "x".into(), Steps::default());
        let mut second = book.enter(1, "x".into(), Steps::default());
        book.answered(Some(&"nobody's".into()), b"0".to_vec());
        book.answered(Some(&Uuid::new_v4().to_string().into()), b"0".to_vec());
        book.answered(None, b"0".to_vec());
        book.answered(Some(&id(&second)), b"2".to_vec());
        book.answered(Some(&id(&second)), b"another".to_vec());
        book.answered(Some(&id(&first)), vec![b' '; LONGEST_REPLY + 1]);
        assert!(matches!(second.fate().await, Fate::Answered(body) if body == b"2"));
        assert!(matches!(first.fate().await, Fate::TooLong));
        assert_eq!(book.len(), 0);
    }

    #[test]
    fn a_request_that_nobody_waits_for_leaves_nothing_behind() {
        let book = Book::default();
        let slip = book.enter(1, "x".into(), Steps::default());
        let id = slip.id;
        assert!(book.publishes(id));
        drop(slip);
        assert_eq!(book.len(), 0);
        assert!(!book.publishes(id), "it is not published any more");
    }

    #[tokio::test]
    async fn a_line_that_ends_takes_its_own_requests_alone() {
        let book = Book::default();
        let mut old = book.enter(1, "x".into(), Steps::default());
        let _new = book.enter(2, "x".into(), Steps::default());
        book.end(1, None);
        assert!(matches!(old.fate().await, Fate::Lost));
        assert_eq!(book.len(), 1);
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
            let book = Book::default();
            let mut sent = book.enter(1, "tk".into(), Steps::default());
            let mut confirmed = book.enter(1, "tk".into(), Steps::default());
            let mut waiting = book.enter(1, "tk".into(), Steps::default());
            book.publishes(sent.id);
            book.publishes(confirmed.id);
            book.confirmed(confirmed.id);
            book.end(1, Some(&refusal(code, text)));
            let fate = format!("{:?}", sent.fate().await);
            assert!(fate.starts_with(expected), "{text}: {fate}");
            assert!(matches!(confirmed.fate().await, Fate::Lost), "{text}");
            assert!(matches!(waiting.fate().await, Fate::Lost), "{text}");
        }
    }
}
