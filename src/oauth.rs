//! REFRESH, the provider's side: one POST to a token endpoint, and what its answer means.
//!
//! A refresh has three ends that matter to a token entry: a new pair, a refusal of *this* refresh token, and
//! everything else. The hard part is to tell them apart over seven kinds of provider: some answer errors with
//! status 200, some rotate the pair and then lose the answer on the way. [`RefreshError`] keeps what follows
//! from each, and [`Acted`] whether the old pair may be gone.
//!
//! In reading order: `client` sends and receives, over what `connect` opens, `connection` keeps and `budget` bounds;
//! `local` tells this machine's failures from the host's; `body` and `pause` read what came, `answer` says what it means,
//! `issued` reads a new pair, `detail` words it for people without telling a secret. `validate` asks whether a new token is
//! known already.

mod answer;
mod body;
mod budget;
mod client;
mod connect;
mod connection;
mod detail;
mod issued;
mod local;
mod pause;
#[cfg(test)]
mod testing;
mod validate;

use std::time::Duration;

pub use client::{ClientError, TokenClient};
pub use local::LocalCause;

use crate::domain::secret::SecretString;

/// A new pair, as the provider issued it (RFC 6749, section 5.1).
#[derive(Debug, Clone)]
pub struct IssuedPair {
    /// The new access token.
    pub access_token: SecretString,
    /// The new refresh token; none: the provider did not rotate it, the old one stays good.
    pub refresh_token: Option<SecretString>,
    /// How long the access token lives, from the time of the answer. None: the provider did not say (GitLab has
    /// left it out; some write zero), which is not the same as "for ever"; the caller decides.
    pub expires_in: Option<Duration>,
    /// How long the refresh token lives; none: not told, or for ever.
    pub refresh_token_expires_in: Option<Duration>,
    /// What the access token may do; none: not told, so as before.
    pub scopes: Option<Vec<String>>,
}

/// Why there is no new pair. `detail` says what was asked, what came back and what to do; it holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefreshError {
    /// The provider refuses this refresh token (`invalid_grant` and its dialects): the user must authorise anew.
    #[error("the provider refuses the refresh token: {detail}")]
    Refused {
        /// For people.
        detail: String,
    },
    /// The provider refuses us, or is not a token endpoint: an operator must act. Says nothing about the user's
    /// refresh token.
    #[error("the provider is misconfigured: {detail}")]
    Misconfigured {
        /// Whether it does not know our client, or not by this secret.
        client_refused: bool,
        /// For people.
        detail: String,
    },
    /// No usable answer for now; worth another try.
    #[error("the provider is unavailable: {detail}")]
    Unavailable {
        /// Whether the provider may have rotated the pair all the same.
        acted: Acted,
        /// How long the provider asked us to stay away, uncapped.
        retry_after: Option<Duration>,
        /// For people.
        detail: String,
    },
    /// The provider said that it succeeded, and there is no pair in what came: the old one is most likely dead. To send
    /// its refresh token once more at once helps nobody, and a provider that looks out for spent ones revokes the grant.
    #[error("the provider's answer cannot be read: {detail}")]
    Unreadable {
        /// For people.
        detail: String,
    },
    /// This machine could not ask, so the provider did not act, and nothing is known about it. Worth another try.
    #[error("{detail}")]
    Local {
        /// For people.
        detail: String,
    },
}

/// Whether a provider that gave no usable answer may have rotated the pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acted {
    /// Certainly not: the request never left, or the provider itself said that it failed. The old pair is good.
    No,
    /// The answer was lost, late or unreadable: the old pair may be dead.
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_of_an_issued_pair_shows_no_token() {
        let pair = IssuedPair {
            access_token: "access-1".into(),
            refresh_token: Some("refresh-1".into()),
            expires_in: Some(Duration::from_secs(7200)),
            refresh_token_expires_in: None,
            scopes: None,
        };
        let shown = format!("{pair:?}");
        assert!(
            shown.contains("7200") && !shown.contains("access-1") && !shown.contains("refresh-1"),
            "{shown}"
        );
    }
}
