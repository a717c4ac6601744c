//! Which messages are taken at all: what can be said before anything is looked up.

use super::{Outcome, TimeFrame, refusal};
use crate::contract::{
    Echo, Envelope, ErrorBody, ErrorCode, InvalidRequest, LifetimeSecs, MessageKind, Request,
};
use crate::limits::publisher::{PublisherLimit, TooOften};
use crate::settings::{Access, Asked, Denied};
use crate::telemetry;

/// What decides it. The stand-in for upstream's tests (`tokenkeeper fake`) goes by the same.
#[derive(Clone, Copy)]
pub struct Admission<'a> {
    pub access: &'a Access,
    /// How often a publisher may ask. None: there is no limit.
    pub publisher_limit: Option<&'a PublisherLimit>,
}

impl Admission<'_> {
    /// The request, or why the message is refused as a whole.
    #[expect(clippy::result_large_err, reason = "a refusal is the outcome of its message as any other")]
    pub fn accept(
        &self,
        kind: MessageKind,
        request: Result<Request, InvalidRequest>,
        envelope: &Envelope,
        time: TimeFrame,
    ) -> Result<Request, Outcome> {
        // A message counts also if it is refused for another reason.
        let publisher = envelope.publisher.as_deref();
        let too_often = self.count(publisher).err();
        if let Some(unanswerable) = envelope.unanswerable {
            return Err(Outcome::unanswerable(unanswerable.to_string()));
        }
        // Before anything that is answered: a reply there is what the publisher may not have.
        if envelope.reply_to.as_ref().is_some_and(|queue| !self.access.admits_reply_to(publisher, queue)) {
            let denied = self.denied(publisher, Denied::ReplyQueue);
            return Err(Outcome::Unanswerable { code: ErrorCode::Forbidden, reason: denied.to_string() });
        }
        let request = request.map_err(|invalid| {
            if invalid.is_request {
                Outcome::invalid(kind, *invalid.echo, invalid.reason)
            } else {
                Outcome::unanswerable(invalid.reason)
            }
        })?;
        if let Some(reason) = envelope.unusable {
            return Err(Outcome::invalid(kind, Echo::of(&request), reason.to_owned()));
        }
        if kind.needs_reply_to() && envelope.reply_to.is_none() {
            let reason = "property reply_to: is missing; it names the queue of the reply".to_owned();
            return Err(Outcome::invalid(kind, Echo::of(&request), reason));
        }
        let asked = Asked {
            publisher,
            message: kind,
            user_id: request.user_id(),
            lifetime: request.requested_lifetime().map(LifetimeSecs::duration),
        };
        if let Err(denied) = self.access.admits(&asked) {
            let denied = self.denied(publisher, denied);
            return Err(Outcome::error(kind, Echo::of(&request), refusal::forbidden(denied)));
        }
        // A `token.store` without `reply_to` is stored all the same. Nobody would hear of the refusal, and the login would be lost.
        if let Some(too_often) = too_often
            && envelope.reply_to.is_some()
        {
            telemetry::publisher_refused(kind, publisher, too_often.is_logged);
            return Err(Outcome::error(kind, Echo::of(&request), refusal::too_often(too_often)));
        }
        if time.is_over() {
            let error =
                ErrorBody::new(ErrorCode::DeadlineExceeded, "the request is older than the time it has");
            return Err(Outcome::error(kind, Echo::of(&request), error));
        }
        if let Some(setting) = self.access.must_seal(envelope.publisher.as_deref(), kind)
            && let Some(field) = request.missing_seal()
        {
            return Err(Outcome::error(kind, Echo::of(&request), refusal::not_sealed(field, setting)));
        }
        Ok(request)
    }

    /// Under a policy all publishers that it does not name count as one: a user of the broker that may set any `user_id` can
    /// make up as many as it likes.
    fn count(&self, publisher: Option<&str>) -> Result<(), TooOften> {
        let Some(limit) = self.publisher_limit else { return Ok(()) };
        limit.count(if self.access.is_open() { publisher } else { self.access.listed(publisher) })
    }

    /// Counts a denial. Only names that the settings hold become labels of the metric.
    pub(super) fn denied(&self, publisher: Option<&str>, denied: Denied) -> Denied {
        telemetry::denied(self.access.listed(publisher), publisher.is_some(), denied.name());
        denied
    }
}
