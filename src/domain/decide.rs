//! DECIDE: what a request does with a stored token (docs/contract.md, The decision).
//!
//! A pure function: no I/O, no async, no clock. Every row of the decision table is a line in a test.

use std::time::Duration;

use crate::domain::clock::Timestamp;
use crate::domain::provider::{Lifespan, Provider, RequiredWhileReserved};

/// What is known about the stored token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenState {
    /// None: never.
    pub expires_at: Option<Timestamp>,
    pub reserved_until: Option<Timestamp>,
    /// The lifetime that the provider granted. Known only for a pair that a refresh issued.
    pub granted_lifetime: Option<Duration>,
    pub refreshable: bool,
    /// The outcome of a refresh of this pair is unknown: the provider may have acted.
    pub in_doubt: bool,
    /// Somebody reported that the host rejects the access token.
    pub reported: bool,
}

/// What the provider and the flags say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// The provider has opportunistic refresh switched on, and the user's flag is on.
    pub opportunistic: bool,
    /// If set, an opportunistic refresh is due only when the token expires within this window.
    pub opportunistic_window: Option<Duration>,
    /// How long the old access token works after a refresh. If that ends, and the outcome of a refresh is unknown, the
    /// stored pair may be dead.
    pub old_token_grace: Lifespan,
    /// What a required refresh does while somebody holds the token. Always `Refresh` if a refresh does not revoke the old one.
    pub required_while_reserved: RequiredWhileReserved,
}

impl Policy {
    /// `opportunistic_flag`: the user's flag `opportunistic_token_refresh`.
    pub fn new(provider: &Provider, opportunistic_flag: bool) -> Self {
        Self {
            opportunistic: provider.opportunistic_refresh && opportunistic_flag,
            opportunistic_window: provider.opportunistic_refresh_window,
            old_token_grace: provider.old_token_grace,
            required_while_reserved: if provider.kills_old_token() {
                provider.required_while_reserved
            } else {
                RequiredWhileReserved::Refresh
            },
        }
    }

    /// See [`reservations_stand_from`].
    pub fn reservations_stand_from(&self, now: Timestamp) -> Timestamp {
        reservations_stand_from(self.old_token_grace, now)
    }

    const fn kills_old_token(&self) -> bool {
        matches!(self.old_token_grace, Lifespan::Ends(_))
    }
}

/// What a requester asks for. All of it is fixed when the request arrives: waiting does not change `until`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    pub received_at: Timestamp,
    /// How long the token must work, counted from `received_at`.
    pub lifetime: Duration,
    /// When the requester stops waiting.
    pub deadline: Timestamp,
}

impl Demand {
    /// Until when the token must work, and be reserved.
    pub fn until(&self) -> Timestamp {
        self.received_at.plus(self.lifetime)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Extend the reservation to `until` and hand out the stored token.
    Serve {
        /// An opportunistic refresh was due, but somebody holds the token.
        reserved: bool,
        notices: Vec<Notice>,
    },
    /// Refresh, then hand out the new token.
    Refresh(Cause),
    /// Somebody holds the token until then, and a refresh would revoke it. Decide again after that.
    WaitForReservation(Timestamp),
    TokenNotFound,
    /// The token does not live as long as requested, and there is no refresh token.
    NotRefreshable,
}

/// What a requester should know about a stored token that is handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// The provider issues tokens that live shorter than requested.
    LifetimeClamped,
    /// The token expires before the requested lifetime is over. Refreshing it now would revoke it while somebody uses it.
    LifetimeShort,
    /// Somebody reported that the host rejects the token.
    TokenReported,
}

/// Why a token is refreshed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The token is still valid for the request, and nobody holds it.
    Opportunistic,
    /// The token does not live as long as requested.
    Required,
    /// Somebody reported that the host rejects the token, and nobody holds it.
    Reported,
}

impl Cause {
    /// A reservation that ends after this date prevents the refresh, even if it is made while the refresh begins. None: no
    /// reservation does.
    pub fn unless_reserved_beyond(self, old_token_grace: Lifespan, now: Timestamp) -> Option<Timestamp> {
        match (self, old_token_grace) {
            (Self::Required, _) | (Self::Reported, Lifespan::Unlimited) => None,
            (Self::Opportunistic | Self::Reported, grace) => Some(reservations_stand_from(grace, now)),
        }
    }
}

/// A reservation prevents an opportunistic refresh if it ends after this date. A shorter reservation is safe: the old access
/// token still works for the grace. If the old token works for ever, a refresh breaks no reservation, but brings nothing
/// either: then every live reservation prevents it.
pub fn reservations_stand_from(old_token_grace: Lifespan, now: Timestamp) -> Timestamp {
    match old_token_grace {
        Lifespan::Ends(grace) => now.plus(grace),
        Lifespan::Unlimited => now,
    }
}

/// The rows of the table in docs/contract.md, from top to bottom.
pub fn decide(token: Option<&TokenState>, now: Timestamp, demand: &Demand, policy: &Policy) -> Decision {
    let Some(token) = token else { return Decision::TokenNotFound };
    let reserved = token.reserved_until.is_some_and(|until| until > policy.reservations_stand_from(now));
    // A report must not revoke a token that works for somebody else.
    if token.reported && !(reserved && policy.kills_old_token()) {
        return if token.refreshable { Decision::Refresh(Cause::Reported) } else { Decision::NotRefreshable };
    }
    if is_valid(token, now, demand) {
        let due = opportunistic_due(token, now, policy);
        // The pair may be dead: refresh it before it is handed out, unless somebody holds it.
        let doubtful = token.in_doubt && policy.kills_old_token();
        return if due && reserved {
            serve(token, demand, true)
        } else if (due || doubtful) && !reserved && token.refreshable {
            Decision::Refresh(Cause::Opportunistic)
        } else {
            serve(token, demand, false)
        };
    }
    if !token.refreshable {
        return Decision::NotRefreshable;
    }
    match token.reserved_until {
        Some(until) if reserved && is_alive(token, now) => {
            required_while_reserved(token, until, demand, policy)
        }
        _ => Decision::Refresh(Cause::Required),
    }
}

/// Whether the token can be handed out: valid at `until`, and not expired now. The latter matters to a request that waited
/// longer than the lifetime it asked for.
pub fn is_valid(token: &TokenState, now: Timestamp, demand: &Demand) -> bool {
    let until = demand.received_at.plus(decided_lifetime(token, demand));
    token.expires_at.is_none_or(|expires_at| expires_at >= until) && is_alive(token, now)
}

pub fn clamp_notice(granted_lifetime: Option<Duration>, demand: &Demand) -> Option<Notice> {
    granted_lifetime.is_some_and(|granted| demand.lifetime > granted).then_some(Notice::LifetimeClamped)
}

/// The lifetime to decide by. A request for more than the provider grants counts as a request for half of the grant.
/// Otherwise each such request would refresh.
fn decided_lifetime(token: &TokenState, demand: &Demand) -> Duration {
    match token.granted_lifetime {
        Some(granted) if demand.lifetime > granted => granted / 2,
        _ => demand.lifetime,
    }
}

fn is_alive(token: &TokenState, now: Timestamp) -> bool {
    token.expires_at.is_none_or(|expires_at| expires_at > now)
}

fn opportunistic_due(token: &TokenState, now: Timestamp, policy: &Policy) -> bool {
    policy.opportunistic
        && match (policy.opportunistic_window, token.expires_at) {
            (None, _) => true,
            (Some(window), Some(expires_at)) => expires_at <= now.plus(window),
            (Some(_), None) => false,
        }
}

fn serve(token: &TokenState, demand: &Demand, reserved: bool) -> Decision {
    Decision::Serve { reserved, notices: notices(token, demand).collect() }
}

fn notices(token: &TokenState, demand: &Demand) -> impl Iterator<Item = Notice> {
    let reported = token.reported.then_some(Notice::TokenReported);
    clamp_notice(token.granted_lifetime, demand).into_iter().chain(reported)
}

fn required_while_reserved(
    token: &TokenState,
    reserved_until: Timestamp,
    demand: &Demand,
    policy: &Policy,
) -> Decision {
    match policy.required_while_reserved {
        RequiredWhileReserved::Refresh => Decision::Refresh(Cause::Required),
        RequiredWhileReserved::Wait if reserved_until < demand.deadline => {
            Decision::WaitForReservation(reserved_until)
        }
        RequiredWhileReserved::Wait | RequiredWhileReserved::GrantRemaining => Decision::Serve {
            reserved: false,
            notices: notices(token, demand).chain([Notice::LifetimeShort]).collect(),
        },
    }
}

#[cfg(test)]
mod tests;
