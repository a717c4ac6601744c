//! `workspace.start`: one token a distinct host, served concurrently.

use futures_util::future::join_all;

use super::token::Ask;
use super::{Handler, TimeFrame};
use crate::bulkhead::Queue;
use crate::message::{MessageKind, Status, WorkspaceStartReply, WorkspaceStartRequest};

impl Handler {
    /// Serves every host of a workspace start. One that fails does not hold the others up.
    pub(super) async fn start_workspace(
        &self,
        request: &WorkspaceStartRequest,
        time: TimeFrame,
        publisher: Option<&str>,
        queue: Queue,
    ) -> WorkspaceStartReply {
        let user_id = request.user_id.as_str();
        let lifetime = match request.requested_lifetime_secs {
            Some(lifetime) => lifetime.duration(),
            None => self.flags.workspace_start_lifetime(user_id).await,
        };
        let tokens = join_all(request.hosts().into_iter().map(|host| {
            self.token_reply(Ask {
                user_id,
                host: host.as_str(),
                lifetime,
                time,
                publisher,
                kind: MessageKind::WorkspaceStart,
                queue,
            })
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
        }
    }
}
