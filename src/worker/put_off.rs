//! PUT OFF: a message that failed for now, and whose publisher cannot be told.
//!
//! The broker would deliver a requeued message again at once. The message would reach the delivery limit before a database
//! has restarted. So it waits in a queue of its own, and the broker moves it back to the queue of its kind. The sealed origin
//! header counts the tries.

use super::settle::{Received, Settler};
use super::suspects::Origin;
use crate::broker::{MovedMessage, MovedTo, NotMoved};
use crate::contract::ErrorCode;
use crate::requests::TimeFrame;
use crate::telemetry;

impl Settler {
    /// Whether the same message may succeed later. A message past its own deadline cannot. Also true without a `retry_limit`:
    /// [`Settler::put_off`] then returns [`NotMoved`], and the broker delays the message.
    pub(super) fn may_be_put_off(&self, received: &Received, time: TimeFrame, code: ErrorCode) -> bool {
        code.is_retryable()
            && !(code == ErrorCode::DeadlineExceeded && time.is_of_message())
            && self.retry_limit.is_none_or(|limit| received.put_off < limit)
    }

    /// Publishes a message to the waiting queue. On success the caller acks the original.
    ///
    /// # Errors
    /// [`NotMoved`]: the message did not get there. The caller gives it back to the broker.
    pub(super) async fn put_off(&self, received: &Received, time: TimeFrame) -> Result<(), NotMoved> {
        if self.retry_limit.is_none() {
            return Err(NotMoved);
        }
        let origin = Origin {
            kind: received.kind,
            publisher: received.envelope.publisher.clone(),
            deadline_ms: time.is_of_message().then(|| time.deadline().as_millis()),
            put_off: received.put_off + 1,
        };
        let body = &received.body;
        let Some(sealed) = origin.seal(&self.keys, body) else { return Err(NotMoved) };
        let to = MovedTo::Again(received.kind);
        let moved = MovedMessage { to, properties: &received.delivery.properties, origin: &sealed };
        self.publisher.move_on(&moved, body).await?;
        telemetry::put_off(received.kind, origin.put_off);
        Ok(())
    }
}
