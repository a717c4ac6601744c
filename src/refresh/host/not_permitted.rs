//! Why the token endpoint is not called now, and the words for it.

use std::time::Duration;

use super::probes::NotNow;
use crate::domain::clock::Timestamp;
use crate::domain::provider::Provider;
use crate::refresh::{FailedFlight, Order};
use crate::store::FailureKind;

/// No call now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoEntry {
    /// The circuit is open.
    Open {
        /// When to ask again.
        retry_after: Duration,
    },
    /// The host has refused everybody since then, so it is the provider that is set up wrong.
    Refusing {
        /// When that began.
        since: Timestamp,
    },
    /// The host may be called, but not for this entry, or not so often.
    HeldBack {
        /// What holds it back.
        by: HeldBack,
        /// When to ask again.
        retry_after: Duration,
    },
}

/// What holds a single refresh back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldBack {
    /// Refreshes of this entry failed one after the other, or the provider asked for a pause.
    BackOff,
    /// This entry was refreshed too often within a minute.
    IdentityLimit,
    /// There were too many refreshes at this host within a second.
    HostLimit,
}

impl HeldBack {
    /// All of them.
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

impl From<NotNow> for NoEntry {
    fn from(NotNow(retry_after): NotNow) -> Self {
        Self::Open { retry_after }
    }
}

impl NoEntry {
    /// Why a flight that was not let through brings no new pair.
    pub(in crate::refresh) fn failed(self, order: &Order) -> FailedFlight {
        FailedFlight {
            kind: self.kind(),
            message: self.message(&order.provider),
            retry_after: self.retry_after(),
            certain: !order.entry.is_in_doubt(),
            deadline: order.deadline,
        }
    }

    /// What kind of failure it is.
    pub const fn kind(self) -> FailureKind {
        match self {
            Self::Open { .. } | Self::HeldBack { .. } => FailureKind::Unavailable,
            Self::Refusing { .. } => FailureKind::Misconfigured,
        }
    }

    /// When to ask again, where that is known.
    pub const fn retry_after(self) -> Option<Duration> {
        match self {
            Self::Open { retry_after } | Self::HeldBack { retry_after, .. } => Some(retry_after),
            Self::Refusing { .. } => None,
        }
    }

    /// What holds this single refresh back; none: the host as a whole is left alone.
    pub const fn held_back(self) -> Option<HeldBack> {
        match self {
            Self::HeldBack { by, .. } => Some(by),
            Self::Open { .. } | Self::Refusing { .. } => None,
        }
    }

    /// Whether nothing failed, and there were only too many refreshes.
    pub const fn is_over_limit(self) -> bool {
        matches!(self.held_back(), Some(HeldBack::IdentityLimit | HeldBack::HostLimit))
    }

    /// What it means, in words.
    pub fn message(self, provider: &Provider) -> String {
        let host = &provider.host;
        match self {
            Self::Open { .. } => {
                format!("{host} failed again and again, and is left alone for a while (its circuit is open)")
            }
            Self::Refusing { since } => format!(
                "{host} has refused the refresh token of everybody since {since}, so its settings must be wrong; \
                 correct client_secret or redirect_uri with `tokenkeeper provider apply`"
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
