//! What became of a request.

use crate::contract::{
    Echo, ErrorBody, ErrorCode, ErrorReply, MessageKind, Reply, ReportReply, Status, StoreReply, TokenReply,
    UnknownFields, Warning, WorkspaceStartReply,
};
use crate::telemetry::audit::{self, Asker};

/// What is to be done about a message that was handled.
#[derive(Debug)]
pub enum Outcome {
    /// Send the reply, if there is somewhere to send it, then ack.
    Answered(Reply),
    /// Send the reply, if there is somewhere to send it, copy the message to the dead letters, then ack.
    Invalid {
        reply: Reply,
        /// Which field is wrong. Repeats nothing the publisher sent.
        reason: String,
    },
    /// Copy the message to the dead letters, then ack. There is no reply: it could do harm where it goes, or come back.
    Unanswerable {
        code: ErrorCode,
        /// Why. Repeats nothing the publisher sent.
        reason: String,
    },
}

impl Outcome {
    /// The message breaks the contract, for this reason.
    pub fn invalid(kind: MessageKind, echo: Echo, reason: String) -> Self {
        let error = ErrorBody::new(ErrorCode::InvalidRequest, reason.clone());
        Self::Invalid { reply: error_reply(kind, echo, error), reason }
    }

    /// A message that breaks the contract and gets no reply.
    pub(super) const fn unanswerable(reason: String) -> Self {
        Self::Unanswerable { code: ErrorCode::InvalidRequest, reason }
    }

    /// An error about a whole message.
    pub fn error(kind: MessageKind, echo: Echo, error: ErrorBody) -> Self {
        Self::Answered(error_reply(kind, echo, error))
    }

    pub(super) const fn token(reply: TokenReply) -> Self {
        Self::Answered(Reply::Token(reply))
    }

    pub(super) const fn workspace_start(reply: WorkspaceStartReply) -> Self {
        Self::Answered(Reply::WorkspaceStart(reply))
    }

    pub(super) const fn store(reply: StoreReply) -> Self {
        Self::Answered(Reply::Store(reply))
    }

    pub(super) const fn report(reply: ReportReply) -> Self {
        Self::Answered(Reply::Report(reply))
    }

    pub const fn reply(&self) -> Option<&Reply> {
        match self {
            Self::Answered(reply) | Self::Invalid { reply, .. } => Some(reply),
            Self::Unanswerable { .. } => None,
        }
    }

    /// Names the fields of the message that the contract does not know, so that a misspelled one is noticed.
    pub fn warn_of(&mut self, unknown: UnknownFields) {
        match self {
            Self::Answered(reply) | Self::Invalid { reply, .. } => {
                reply.warnings_mut().extend(unknown.into_iter().map(Warning::UnknownField));
            }
            Self::Unanswerable { .. } => {}
        }
    }

    /// Tells the audit log of a message that is refused as a whole.
    pub(super) fn audit(&self, asker: Asker<'_>) {
        let Some(code) = self.error_code() else { return };
        let (user, host) = match self.reply() {
            Some(
                Reply::Token(TokenReply::Error(reply))
                | Reply::Store(StoreReply::Error(reply))
                | Reply::Report(ReportReply::Error(reply)),
            ) => (reply.user_id.as_deref(), reply.host.as_deref()),
            Some(Reply::WorkspaceStart(reply)) => (reply.user_id.as_deref(), None),
            Some(Reply::Token(_) | Reply::Store(_) | Reply::Report(_)) | None => (None, None),
        };
        audit::refused(asker, user, host, code);
    }

    /// The first error in it; none: all went well.
    pub fn error_code(&self) -> Option<ErrorCode> {
        match self {
            Self::Answered(reply) | Self::Invalid { reply, .. } => reply.error_code(),
            Self::Unanswerable { code, .. } => Some(*code),
        }
    }
}

fn error_reply(kind: MessageKind, echo: Echo, error: ErrorBody) -> Reply {
    match kind {
        MessageKind::TokenRequest => Reply::Token(TokenReply::Error(ErrorReply::new(echo, error))),
        MessageKind::TokenStore => Reply::Store(StoreReply::Error(ErrorReply::new(echo, error))),
        MessageKind::TokenReport => Reply::Report(ReportReply::Error(ErrorReply::new(echo, error))),
        MessageKind::WorkspaceStart => Reply::WorkspaceStart(WorkspaceStartReply {
            status: Status::Error,
            workspace_id: echo.workspace_id,
            user_id: echo.user_id,
            tokens: Vec::new(),
            error: Some(error),
            warnings: Vec::new(),
        }),
    }
}
