//! A letter in a list: enough to decide about it, and nothing secret.

use serde::Serialize;
use tokenkeeper::broker::dead_letters::{Destination, Letter};
use tokenkeeper::contract::{Echo, MessageKind, Request, Wanted, decode};
use tokenkeeper::domain::clock::Timestamp;

#[derive(Debug, Serialize)]
pub(super) struct Summary {
    pub(super) id: String,
    /// When it became a dead letter.
    pub(super) at: Option<Timestamp>,
    pub(super) reason: String,
    pub(super) detail: Option<String>,
    /// The kind of message, or the queue that it came from.
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) user_id: Option<String>,
    /// For a valid `workspace.start`: the hosts of its repositories.
    pub(super) hosts: Vec<String>,
    pub(super) workspace_id: Option<String>,
    pub(super) publisher: Option<String>,
    pub(super) replays: u64,
    pub(super) bytes: usize,
}

impl Summary {
    /// `body` is `None` if it cannot be unsealed.
    pub(super) fn of(letter: &Letter, body: Option<&[u8]>) -> Self {
        let body = body.unwrap_or_default();
        let echo = Echo::read(body);
        Self {
            id: letter.id(),
            at: letter.died_at(),
            reason: letter.reason(),
            detail: letter.detail(),
            kind: origin(letter),
            user_id: echo.user_id,
            hosts: echo.host.map_or_else(|| hosts_of_start(body), |host| vec![host]),
            workspace_id: echo.workspace_id,
            publisher: letter.publisher(),
            replays: letter.replay_count(),
            bytes: letter.body().len(),
        }
    }

    pub(super) fn hosts(&self) -> Option<String> {
        (!self.hosts.is_empty()).then(|| self.hosts.join(" "))
    }
}

/// The kind of message, or the queue that it came from. None: nothing in the letter tells.
pub(super) fn origin(letter: &Letter) -> Option<String> {
    letter.destination().map(|destination| match destination {
        Destination::Kind(kind) => kind.to_string(),
        Destination::Queue(queue) => queue.clone(),
    })
}

fn hosts_of_start(body: &[u8]) -> Vec<String> {
    match decode(MessageKind::WorkspaceStart, body) {
        Ok(Request::WorkspaceStart(start)) => {
            let hosts = start.wanted().into_iter().filter_map(|wanted| match wanted {
                Wanted::TokenFor(host) => Some(host.to_string()),
                Wanted::Unreadable(_) => None,
            });
            hosts.collect()
        }
        Ok(Request::Token(_) | Request::Store(_) | Request::SealedStore(_) | Request::Report(_)) | Err(_) => {
            Vec::new()
        }
    }
}
