//! How long a new access token lives, if the answer does not say.

use std::time::Duration;

use crate::domain::decide::TokenState;
use crate::domain::provider::Lifespan;

/// The lifetime of an access token about which nothing is known.
const ASSUMED: Duration = Duration::from_hours(1);

/// How long an access token is good for, from when it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lifetime {
    /// Said by the answer, by the one before or by the kind of provider.
    Known(Duration),
    /// Nobody says.
    Assumed(Duration),
    /// It never expires, as the one before.
    Unlimited,
}

impl Lifetime {
    /// None: for ever.
    pub(super) const fn duration(self) -> Option<Duration> {
        match self {
            Self::Known(duration) | Self::Assumed(duration) => Some(duration),
            Self::Unlimited => None,
        }
    }
}

/// The lifetime in the answer, or that of the token before, or the kind's (`unstated`). It is unlimited only if the token before
/// never expired or the provider's settings say so, because an expired token must not be handed out.
pub(super) fn lifetime(told: Option<Duration>, before: &TokenState, unstated: Option<Lifespan>) -> Lifetime {
    if let Some(told) = told {
        // Some count milliseconds: a thousand times the lifetime before, give or take a tenth.
        let is_millis =
            before.granted_lifetime.is_some_and(|before| before * 900 <= told && told <= before * 1_100);
        return Lifetime::Known(if is_millis { told / 1_000 } else { told });
    }
    match before.granted_lifetime.map(Lifespan::Ends).or(unstated) {
        Some(Lifespan::Ends(known)) => Lifetime::Known(known),
        None if before.expires_at.is_some() => Lifetime::Assumed(ASSUMED),
        Some(Lifespan::Unlimited) | None => Lifetime::Unlimited,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::clock::Timestamp;

    #[test]
    fn what_the_answer_leaves_out_is_taken_from_the_pair_before_then_from_the_kind_then_assumed() {
        let secs = Duration::from_secs;
        let before = |granted_lifetime, expires: bool| TokenState {
            granted_lifetime,
            expires_at: expires.then(|| Timestamp::from_millis(1)),
            reserved_until: None,
            refreshable: true,
            in_doubt: false,
            reported: false,
        };
        let hour = Some(Lifespan::secs(3_600));
        for (told, granted, expires, unstated, expected) in [
            (Some(60), Some(7_200), true, hour, Lifetime::Known(secs(60))),
            (None, Some(7_200), true, hour, Lifetime::Known(secs(7_200))),
            (None, None, true, hour, Lifetime::Known(secs(3_600))),
            (None, None, true, Some(Lifespan::Unlimited), Lifetime::Unlimited),
            (None, None, true, None, Lifetime::Assumed(ASSUMED)),
            (None, None, false, None, Lifetime::Unlimited),
            (Some(7_199_000), Some(7_200), true, None, Lifetime::Known(secs(7_199))),
            (Some(5_184_000), Some(7_200), true, None, Lifetime::Known(secs(5_184_000))),
            (Some(7_200_000), None, true, None, Lifetime::Known(secs(7_200_000))),
        ] {
            let found = lifetime(told.map(secs), &before(granted.map(secs), expires), unstated);
            assert_eq!(found, expected, "{told:?} {granted:?} {expires} {unstated:?}");
        }
    }
}
