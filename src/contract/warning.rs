//! What a reply says beside its result.

use schemars::JsonSchema;
use serde::Serialize;

use super::unknown_field::UnknownField;
use crate::domain::decide::Notice;

/// What a requester should know about a token that was handed out, or about its message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Warning {
    /// The provider issues tokens that live shorter than requested.
    LifetimeClamped,
    /// The token expires before the requested lifetime is over, because refreshing it now would kill it under
    /// somebody who holds it.
    LifetimeShort,
    /// An opportunistic refresh failed; this is the still valid token.
    RefreshFailed,
    /// Somebody reported that the host rejects this token. It is refreshed as soon as nobody holds it.
    TokenReported,
    /// The token is reserved for longer than it lives, so `reserved_until` is `expires_at`. Only if no warning about the
    /// lifetime says so already.
    ReservationShortened,
    /// The contract does not know this field of the message: `unknown_field: token.refreshToken`.
    #[serde(untagged)]
    UnknownField(UnknownField),
}

impl From<Notice> for Warning {
    fn from(notice: Notice) -> Self {
        match notice {
            Notice::LifetimeClamped => Self::LifetimeClamped,
            Notice::LifetimeShort => Self::LifetimeShort,
            Notice::TokenReported => Self::TokenReported,
        }
    }
}
