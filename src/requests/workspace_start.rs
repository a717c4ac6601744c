//! `workspace.start`: one token for each distinct host, served concurrently.

use futures_util::future::join_all;

use super::token::Ask;
use super::{Handler, TimeFrame};
use crate::contract::{
    CloneUrlError, Echo, ErrorBody, ErrorCode, ErrorReply, Status, TokenReply, Wanted, WorkspaceStartReply,
    WorkspaceStartRequest,
};
use crate::limits::bulkhead::Queue;
use crate::telemetry::audit::{self, Asker};

impl Handler {
    /// Serves every host of a workspace start. One that fails does not hold the others up.
    pub(super) async fn start_workspace(
        &self,
        request: &WorkspaceStartRequest,
        time: TimeFrame,
        asker: Asker<'_>,
        queue: Queue,
    ) -> WorkspaceStartReply {
        let user_id = request.user_id.as_str();
        let lifetime = if let Some(lifetime) = request.requested_lifetime_secs {
            lifetime.duration()
        } else {
            let lifetime = self.flags.workspace_start_lifetime(user_id).await;
            self.access.within_limit(asker.publisher, lifetime)
        };
        let seal_to = request.reply_public_key.as_ref();
        let ask = |host| Ask { user_id, host, lifetime, seal_to, time, asker, queue };
        let tokens = join_all(request.wanted().into_iter().map(async |wanted| match wanted {
            Wanted::TokenFor(host) => self.token_reply(ask(host.as_str())).await,
            Wanted::Unreadable(place) => {
                audit::refused(asker, Some(user_id), None, ErrorCode::InvalidRequest);
                no_clone_url(user_id, place)
            }
        }))
        .await;
        WorkspaceStartReply {
            status: if tokens.iter().all(|reply| reply.error_code().is_none()) {
                Status::Ok
            } else {
                Status::Error
            },
            workspace_id: Some(request.workspace_id.to_string()),
            user_id: Some(user_id.to_owned()),
            tokens,
            error: None,
            warnings: Vec::new(),
        }
    }
}

/// The element of a repository that has no clone URL.
pub fn no_clone_url(user_id: &str, place: usize) -> TokenReply {
    let error = ErrorBody::new(ErrorCode::InvalidRequest, format!("repositories[{place}]: {CloneUrlError}"));
    let echo = Echo { user_id: Some(user_id.to_owned()), ..Echo::default() };
    TokenReply::Error(ErrorReply::new(echo, error))
}
