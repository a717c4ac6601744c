//! The kinds of message.

use std::fmt;

/// A kind of message, each with its routing key and queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// One token of one user.
    TokenRequest,
    /// The tokens that a workspace needs to clone its repositories.
    WorkspaceStart,
    /// A pair that a login flow obtained.
    TokenStore,
    /// A token that a host rejected.
    TokenReport,
}

impl MessageKind {
    /// The routing key, which is also the kind's name.
    pub const fn routing_key(self) -> &'static str {
        match self {
            Self::TokenRequest => "token.request",
            Self::WorkspaceStart => "workspace.start",
            Self::TokenStore => "token.store",
            Self::TokenReport => "token.report",
        }
    }

    /// Where a message goes to reach its user's partition, behind the prefix. Reports have no partitions.
    pub(crate) const fn partition_exchange(self) -> Option<&'static str> {
        match self {
            Self::TokenRequest => Some("token-requests"),
            Self::WorkspaceStart => Some("workspace-starts"),
            Self::TokenStore => Some("token-stores"),
            Self::TokenReport => None,
        }
    }

    /// The longest body, in bytes. A worker refuses a longer one.
    pub const fn longest_body(self) -> usize {
        match self {
            Self::TokenStore => 128 * 1024,
            Self::TokenRequest | Self::WorkspaceStart | Self::TokenReport => 64 * 1024,
        }
    }

    /// Whether nothing is lost by asking twice. A second `token.store` could win over a login that came between. A repeated
    /// `token.report` is harmless, but its answer would be `not_current`.
    pub(crate) const fn is_repeatable(self) -> bool {
        matches!(self, Self::TokenRequest | Self::WorkspaceStart)
    }
}

impl fmt::Display for MessageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.routing_key())
    }
}
