//! REFRESH, the provider's side: one POST to a token endpoint, and what its answer means.
//!
//! A refresh has three outcomes that matter to a token entry: a new pair, a refusal of *this* refresh token, and
//! everything else. Telling them apart is hard, because providers differ: some answer errors with status 200, some
//! rotate the pair and then lose the answer. [`RefreshError`] says what follows from each failure, and [`Acted`]
//! whether the old pair may be dead.
//!
//! In reading order: `client` sends the request and receives the answer. `connect` opens connections, `connection`
//! pools them and `budget` limits what is read. `address` says which addresses may be connected to. `local` separates failures of this machine from those of the host.
//! `body` and `pause` read the answer, `answer` interprets it, `issued` reads a new pair, and `detail` words the outcome
//! without secrets. `validate` checks whether the provider accepts a new token yet. `login` is how a user gets the first pair.

pub mod address;
mod answer;
mod body;
mod budget;
mod client;
mod connect;
mod connection;
mod detail;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod issued;
mod local;
pub mod login;
mod pause;
#[cfg(any(test, fuzzing))]
#[allow(clippy::expect_used, reason = "this is how a test fails")]
#[cfg_attr(fuzzing, allow(dead_code, reason = "the fuzzers need no endpoint"))]
mod testing;
mod validate;

use std::time::Duration;

pub use client::{ClientError, TokenClient};
pub use local::LocalCause;

use crate::domain::secret::SecretString;

/// A new pair, as the provider issued it (RFC 6749, section 5.1).
#[derive(Debug, Clone)]
pub struct IssuedPair {
    pub access_token: SecretString,
    /// `None`: the provider did not rotate the refresh token, and the old one stays valid.
    pub refresh_token: Option<SecretString>,
    /// From the time of the answer. `None`: the provider did not say, which does not mean "never". Some versions of
    /// GitLab leave it out, and some providers write zero.
    pub expires_in: Option<Duration>,
    /// `None`: the provider did not say, or the refresh token does not expire.
    pub refresh_token_expires_in: Option<Duration>,
    /// `None`: unchanged.
    pub scopes: Option<Vec<String>>,
}

/// Why there is no new pair. `detail` tells people what was asked, what came back and what to do. It holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefreshError {
    /// The provider refuses this refresh token (`invalid_grant` or a variant of it): the user must authorise again.
    #[error("the provider refuses the refresh token: {detail}")]
    Refused { detail: String },
    /// The provider refuses us, or the URL is no token endpoint: an operator must act. This says nothing about the
    /// user's refresh token.
    #[error("the provider is misconfigured: {detail}")]
    Misconfigured { client: ClientRefusal, detail: String },
    /// No usable answer for now. Worth another try.
    #[error("the provider is unavailable: {detail}")]
    Unavailable {
        /// Whether the provider may have rotated the pair nevertheless.
        acted: Acted,
        /// How long the provider asked us to wait, uncapped.
        retry_after: Option<Duration>,
        detail: String,
    },
    /// The provider reported success, but the answer has no pair: the old pair is most likely dead. Do not send the old
    /// refresh token again at once: a provider that detects reuse revokes the whole grant.
    #[error("the provider's answer cannot be read: {detail}")]
    Unreadable { detail: String },
    /// This machine could not send the request, so the provider did not act. Worth another try.
    #[error("{detail}")]
    Local { detail: String },
}

/// Whether a provider refused the client id or its secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientRefusal {
    No,
    /// The status is 401, and the answer does not say what is refused.
    Perhaps,
    /// It said so: `invalid_client` (RFC 6749, section 5.2) or a variant of it.
    Certain,
}

/// Whether a provider that gave no usable answer may have rotated the pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acted {
    /// The request was never sent, or the provider itself reported failure. The old pair is valid.
    No,
    /// The answer was lost, late or unreadable. The old pair may be dead.
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_of_an_issued_pair_shows_no_token() {
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
