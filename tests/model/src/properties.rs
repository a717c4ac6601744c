//! What must hold in every state, and what must happen in some.

use stateright::Property;

use crate::protocol::Protocol;
use crate::state::{Phase, State};

/// Invariant 1, where the lease is taken.
pub const LEASE_RESPECTS_RESERVATION: &str = "1: no opportunistic lease begins under a live reservation";
/// Invariant 1, where it hurts.
pub const RESERVED_TOKEN_LIVES: &str = "1: no opportunistic refresh kills a token that is reserved";
/// Invariant 2.
pub const ONE_HOLDER: &str = "2: never two workers call the provider under a live lease of one generation";
/// Invariant 3.
pub const REPLY_TRUE: &str =
    "3: a token in a reply is the stored generation, reserved until what the reply says";
/// Invariant 4.
pub const NEWEST_SAFE: &str =
    "4: the newest pair is stored, parked, in a worker's hands or lost inside a call";
/// Invariant 4, the other way round.
pub const NEWER_STAYS: &str = "4: a newer pair is never overwritten by an older one";
/// A dead token is known for what it is.
pub const DOUBT_KEPT: &str = "5: a stored pair whose successor was lost is in doubt or condemned";
/// And not handed out.
pub const DOUBT_HEEDED: &str = "5: a token in doubt is handed out under a live reservation alone";

/// Nor is its refresh token sent again as if nothing had been.
pub const SPENT_ONCE: &str = "5: a flight whose pair could not be read sends its refresh token no more";

/// What must never be.
pub const ALWAYS: [&str; 9] = [
    LEASE_RESPECTS_RESERVATION,
    RESERVED_TOKEN_LIVES,
    ONE_HOLDER,
    REPLY_TRUE,
    NEWEST_SAFE,
    NEWER_STAYS,
    DOUBT_KEPT,
    DOUBT_HEEDED,
    SPENT_ONCE,
];

pub(crate) fn all() -> Vec<Property<Protocol>> {
    vec![
        Property::always(LEASE_RESPECTS_RESERVATION, |_, state: &State| {
            !state.broken.lease_under_reservation
        }),
        Property::always(RESERVED_TOKEN_LIVES, |_, state: &State| !state.broken.reserved_token_killed),
        Property::always(ONE_HOLDER, |_, state: &State| holders_of_one_generation(state) <= 1),
        Property::always(REPLY_TRUE, |_, state: &State| !state.broken.reply_untrue),
        Property::always(NEWEST_SAFE, |_, state: &State| is_newest_safe(state)),
        Property::always(NEWER_STAYS, |_, state: &State| !state.broken.newer_overwritten),
        Property::always(DOUBT_KEPT, is_doubt_kept),
        Property::always(DOUBT_HEEDED, |_, state: &State| !state.broken.doubtful_handed_out),
        Property::always(SPENT_ONCE, |_, state: &State| !state.broken.spent_sent_again),
        Property::sometimes("a refreshed pair is stored", |_, state: &State| state.row.refreshed.is_some()),
        Property::sometimes("a wait for another worker's refresh ends", |_, state: &State| {
            let waits = |phase| matches!(phase, Phase::Load { waited: true });
            !state.row.has_live_lease() && state.workers.iter().any(|worker| waits(worker.phase))
        }),
        Property::sometimes("a parked pair is stored", |_, state: &State| {
            any(state, |phase| matches!(phase, Phase::AckParked { stored: true, .. }))
        }),
        Property::sometimes("a stale parked pair is dropped", |_, state: &State| {
            any(state, |phase| matches!(phase, Phase::AckParked { stored: false, .. }))
        }),
        Property::sometimes("a pair finds that the generation moved", |_, state: &State| {
            any(state, |phase| matches!(phase, Phase::LookAgain { parked: false, .. }))
        }),
        Property::sometimes("a refused refresh token is known to be dead", |_, state: &State| {
            state.row.failure.is_some_and(|failure| failure.interrupted)
        }),
        Property::sometimes("a token is reserved while a refresh of it runs", |_, state: &State| {
            state.row.has_live_lease() && state.row.reserved > 0
        }),
        Property::sometimes("a request is left to nobody", |_, state: &State| {
            state.queued == 0 && state.workers.iter().all(|worker| worker.phase == Phase::Idle)
        }),
    ]
}

fn any(state: &State, is: impl Fn(Phase) -> bool) -> bool {
    state.workers.iter().any(|worker| is(worker.phase))
}

/// The most workers that hold, by their own reckoning, a live lease of the same generation.
fn holders_of_one_generation(state: &State) -> usize {
    let led = |phase| match phase {
        Phase::Call { flight, .. } | Phase::Asked { flight, .. } if flight.left > 0 => {
            Some(flight.view.generation)
        }
        _ => None,
    };
    let mut leads: Vec<u8> = state.workers.iter().filter_map(|worker| led(worker.phase)).collect();
    leads.sort_unstable();
    leads.chunk_by(|one, other| one == other).map(<[u8]>::len).max().unwrap_or(0)
}

/// Whether a live worker, or the queue of parked pairs, has the newest pair.
fn is_newest_held(state: &State) -> bool {
    let newest = state.newest();
    any(
        state,
        |phase| matches!(phase, Phase::StorePair { held, .. } | Phase::LookAgain { held, .. } if held.pair == newest),
    ) || state.parked.iter().any(|parked| parked.held.pair == newest)
}

fn is_newest_safe(state: &State) -> bool {
    state.row.pair == state.newest() || state.newest_lost || is_newest_held(state)
}

fn is_doubt_kept(protocol: &Protocol, state: &State) -> bool {
    let refresh_token = state.refresh_token(protocol.tokens, state.row.pair);
    let condemned = state.row.failure.is_some_and(|failure| failure.fingerprint == refresh_token);
    !state.newest_lost || state.row.pair == state.newest() || state.row.attempt.is_some() || condemned
}
