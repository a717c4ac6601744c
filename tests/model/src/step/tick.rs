//! Time passes.

use crate::state::{Parked, Phase, Request, State, Worker};

/// A tick: everything that is counted in time left.
pub(crate) fn tick(state: &mut State) {
    let less = |left: &mut u8| *left = left.saturating_sub(1);
    less(&mut state.row.reserved);
    if let Some(lease) = &mut state.row.lease {
        less(&mut lease.left);
    }
    for Parked { held, .. } in &mut state.parked {
        less(&mut held.until);
    }
    for worker in &mut state.workers {
        less(&mut worker.request.until);
        match &mut worker.phase {
            Phase::Call { flight, .. } | Phase::Asked { flight, .. } | Phase::Refused { flight } => {
                less(&mut flight.left);
            }
            Phase::StorePair { held, left, .. } => {
                less(&mut held.until);
                less(left);
            }
            Phase::LookAgain { held, .. } | Phase::AckParked { held, .. } => less(&mut held.until),
            // Nobody waits any more.
            Phase::Load { .. } | Phase::Reserve { .. } if worker.request.until == 0 => {
                *worker = Worker { phase: Phase::Idle, request: Request::NONE, name: worker.name };
            }
            Phase::Idle | Phase::Load { .. } | Phase::Reserve { .. } | Phase::TakeLease { .. } => {}
        }
    }
}
