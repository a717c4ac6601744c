//! Why a token endpoint may not be called now, and how that is worded.

use std::time::Duration;

use super::probes::NotNow;
use crate::domain::clock::Timestamp;
use crate::domain::provider::Provider;
use crate::refresh::{FailedFlight, Order};
use crate::store::FailureKind;

/// The token endpoint may not be called now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotPermitted {
    CircuitOpen {
        retry_after: Duration,
    },
    /// The host has refused everybody since then, so the provider's settings must be wrong.
    HostRefusing {
        since: Timestamp,
    },
    /// The host may be called, but not for this entry, or not so often.
    HeldBack {
        by: HeldBack,
        retry_after: Duration,
    },
}

/// What holds a single refresh back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldBack {
    /// Several refreshes of this entry failed in a row, or the provider asked for a pause.
    BackOff,
    /// This entry was refreshed too often within a minute.
    IdentityLimit,
    /// There were too many refreshes at this host within a second.
    HostLimit,
}

impl HeldBack {
    pub const ALL: [Self; 3] = [Self::BackOff, Self::IdentityLimit, Self::HostLimit];

    /// The name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BackOff => "back_off",
            Self::IdentityLimit => "identity_limit",
            Self::HostLimit => "host_limit",
        }
    }
}

impl From<NotNow> for NotPermitted {
    fn from(NotNow(retry_after): NotNow) -> Self {
        Self::CircuitOpen { retry_after }
    }
}

impl NotPermitted {
    /// The failure of a flight that may not call.
    pub(in crate::refresh) fn failed(self, order: &Order) -> FailedFlight {
        FailedFlight {
            kind: self.kind(),
            message: self.message(&order.provider),
            retry_after: self.retry_after(),
            certain: !order.entry.is_in_doubt(),
            deadline: order.deadline,
        }
    }

    pub const fn kind(self) -> FailureKind {
        match self {
            Self::CircuitOpen { .. } | Self::HeldBack { .. } => FailureKind::Unavailable,
            Self::HostRefusing { .. } => FailureKind::Misconfigured,
        }
    }

    /// When to ask again, if that is known.
    pub const fn retry_after(self) -> Option<Duration> {
        match self {
            Self::CircuitOpen { retry_after } | Self::HeldBack { retry_after, .. } => Some(retry_after),
            Self::HostRefusing { .. } => None,
        }
    }

    /// What holds this single refresh back. None: nobody may call the host.
    pub const fn held_back(self) -> Option<HeldBack> {
        match self {
            Self::HeldBack { by, .. } => Some(by),
            Self::CircuitOpen { .. } | Self::HostRefusing { .. } => None,
        }
    }

    /// Whether nothing failed, and there were only too many refreshes.
    pub const fn is_over_limit(self) -> bool {
        matches!(self.held_back(), Some(HeldBack::IdentityLimit | HeldBack::HostLimit))
    }

    pub fn message(self, provider: &Provider) -> String {
        let host = &provider.host;
        match self {
            Self::CircuitOpen { .. } => {
                format!("{host} failed again and again, and is not called for a while (its circuit is open)")
            }
            Self::HostRefusing { since } => format!(
                "{host} has refused everybody since {since}, so its settings must be wrong; correct client_id, \
                 client_secret or redirect_uri with `tokenkeeper provider apply`"
            ),
            Self::HeldBack { by: HeldBack::BackOff, .. } => {
                format!(
                    "{host} gave this user's refreshes no answer, and is not asked for this user for a while"
                )
            }
            Self::HeldBack { by: HeldBack::IdentityLimit, .. } => {
                format!("this user's token at {host} was refreshed too often within a minute")
            }
            Self::HeldBack { by: HeldBack::HostLimit, .. } => {
                format!("there were too many refreshes at {host} within a second")
            }
        }
    }
}
