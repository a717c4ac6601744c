//! What can happen next, and what comes of it.

mod flight;
mod request;
mod tick;

pub(crate) use self::tick::tick;
use crate::provider::RefreshTokens;
use crate::rules::Rules;
use crate::state::{Holder, Phase, Request, State, Worker};
use crate::statements::Guarded;

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Time passes: for whoever holds a lease and is not scheduled before the next one, this is being frozen.
    Tick,
    /// The user logs in: `Store::put_login`.
    Login,
    /// A worker takes its next step.
    Worker(u8, Step),
}

/// A step of one worker. Those named `…Lost` and `…Fails` are faults, as is all of `Answer` but the first two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Takes a request that needs the token for this many ticks.
    Take {
        /// How long.
        until: u8,
        /// Longer than the stored token lives.
        too_short: bool,
    },
    /// `Store::claim`: reserves while it loads, then the reply.
    Claim,
    /// It took effect, and nobody heard.
    ClaimLost,
    /// `Store::reserve_known`: serves a pair that was loaded for an earlier request.
    ServeKnown {
        /// It is not the current one any more.
        stale: bool,
    },
    /// `Store::claim` where it reserves nothing, then decides.
    Load {
        /// Refresh rather than serve, where both are allowed.
        refresh: bool,
    },
    /// Waited too long: loads once more, serves what is there or answers `refresh_timeout`.
    LastLook,
    /// `Store::reserve`, then the reply.
    Reserve,
    /// It took effect, and nobody heard.
    ReserveLost,
    /// `Store::take_lease`.
    TakeLease,
    /// It took effect, and nobody heard.
    TakeLeaseLost,
    /// The heartbeat: `Store::renew_lease`.
    RenewLease,
    /// Checks its lease and calls the provider, which acts at once.
    CallProvider(Answer),
    /// Checks its lease and sends the request; the provider acts at some later time.
    Ask,
    /// The provider gets to a request that was sent.
    Act(Answer),
    /// Its lease is over by its own reckoning: decides again.
    Stop,
    /// `Store::give_up`.
    GiveUp,
    /// The database does not take it.
    GiveUpFails,
    /// `Store::store_pair`.
    StorePair,
    /// It took effect, and nobody heard: it is tried again.
    StorePairLost,
    /// Which pair took the place of the one that was loaded?
    LookAgain,
    /// SIGTERM while the database does not take a pair.
    Park,
    /// A parked pair is delivered.
    TakeParked,
    /// It is settled.
    AckParked,
    /// SIGKILL. The broker delivers again what it had in hand.
    Crash,
}

/// What comes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The pair, or the refusal, that the provider has for this refresh token.
    Heard,
    /// It is certain that the provider did not act.
    NotActed,
    /// It acted, and the answer was lost.
    Lost,
    /// It acted, and the answer came but could not be read.
    Unreadable,
    /// It did not act, and nobody can know.
    Unknown,
}

impl Answer {
    pub(crate) const ALL: [Self; 5] =
        [Self::Heard, Self::NotActed, Self::Lost, Self::Unreadable, Self::Unknown];

    const fn is_fault(self) -> bool {
        !matches!(self, Self::Heard)
    }
}

impl Step {
    /// Whether it uses up one of the faults that are allowed.
    pub(crate) const fn is_fault(self) -> bool {
        match self {
            Self::CallProvider(answer) | Self::Act(answer) => answer.is_fault(),
            Self::ClaimLost
            | Self::ReserveLost
            | Self::TakeLeaseLost
            | Self::GiveUpFails
            | Self::StorePairLost
            | Self::Park
            | Self::Crash => true,
            _ => false,
        }
    }
}

impl Phase {
    /// Whether the worker is in a flight, under the name it took its lease by.
    pub(crate) const fn is_flight(self) -> bool {
        match self {
            Self::Call { .. } | Self::Asked { .. } | Self::Refused { .. } => true,
            Self::StorePair { parked, .. } | Self::LookAgain { parked, .. } => !parked,
            Self::Idle
            | Self::Load { .. }
            | Self::Reserve { .. }
            | Self::TakeLease { .. }
            | Self::AckParked { .. } => false,
        }
    }
}

const AGAIN: Phase = Phase::Load { waited: false };

/// One worker's step under way: the state it changes.
pub(crate) struct Scene<'a> {
    pub(crate) rules: &'a Rules,
    pub(crate) tokens: RefreshTokens,
    pub(crate) state: &'a mut State,
    pub(crate) at: u8,
}

impl Scene<'_> {
    fn me(&mut self) -> &mut Worker {
        &mut self.state.workers[usize::from(self.at)]
    }

    const fn holder(&self) -> Holder {
        Holder::Worker(self.at)
    }

    fn go(&mut self, phase: Phase) {
        self.me().phase = phase;
    }

    /// The request is answered.
    fn answered(&mut self) {
        *self.me() = Worker { phase: Phase::Idle, request: Request::NONE, ..*self.me() };
    }

    /// Takes the step; none where it cannot be taken now.
    pub(crate) fn play(&mut self, step: Step) -> Option<()> {
        let Worker { phase, request, .. } = *self.me();
        match (step, phase) {
            (Step::Take { until, too_short }, Phase::Idle) => self.take(until, too_short),
            (Step::Claim, Phase::Load { .. }) => self.claim(request, true),
            (Step::ClaimLost, Phase::Load { .. }) => self.claim(request, false),
            (Step::ServeKnown { stale }, Phase::Load { .. }) => self.serve_known(request, stale),
            (Step::Load { refresh }, Phase::Load { .. }) => self.load(request, refresh),
            (Step::LastLook, Phase::Load { waited: true }) => {
                self.last_look(request);
                Some(())
            }
            (Step::Reserve, Phase::Reserve { view, last }) => {
                self.reserve(view, request, last);
                Some(())
            }
            (Step::ReserveLost, Phase::Reserve { view, .. }) => {
                let done = self.state.row.reserve(self.rules, view, request.until);
                self.go(AGAIN);
                (done == Guarded::Done).then_some(())
            }
            (Step::TakeLease, Phase::TakeLease { view, cause, doubt }) => {
                self.take_lease(view, cause, doubt);
                Some(())
            }
            (Step::TakeLeaseLost, Phase::TakeLease { view, cause, doubt }) => {
                let done = self.state.row.take_lease(self.rules, view, cause, doubt, Holder::Nobody);
                self.go(AGAIN);
                (done == Guarded::Done).then_some(())
            }
            (Step::RenewLease, _) => self.renew(phase),
            (Step::CallProvider(answer), Phase::Call { flight, .. }) => {
                let asked = self.ask(flight)?;
                self.act(flight, asked, answer)
            }
            (Step::Ask, Phase::Call { flight, .. }) => {
                let asked = self.ask(flight)?;
                self.go(Phase::Asked { flight, asked });
                Some(())
            }
            (Step::Act(answer), Phase::Asked { flight, asked }) => self.act(flight, asked, answer),
            (Step::Stop, Phase::Call { flight, .. }) => {
                self.go(AGAIN);
                (self.rules.call_under_live_lease && flight.left == 0).then_some(())
            }
            (Step::GiveUp, Phase::Call { flight, tried: true }) => {
                self.give_up(flight, false);
                Some(())
            }
            (Step::GiveUp, Phase::Refused { flight }) => {
                self.give_up(flight, true);
                Some(())
            }
            (Step::GiveUpFails, Phase::Call { tried: true, .. } | Phase::Refused { .. }) => {
                self.answered();
                Some(())
            }
            (Step::StorePair, Phase::StorePair { held, parked, .. }) => {
                let phase = match self.store(held, parked) {
                    Guarded::Moved => Phase::LookAgain { held, parked },
                    Guarded::Done if parked => Phase::AckParked { held, stored: true },
                    Guarded::Done => {
                        self.reply(held.generation + 1, held.pair, held.until);
                        self.answered();
                        return Some(());
                    }
                };
                self.go(phase);
                Some(())
            }
            (Step::StorePairLost, Phase::StorePair { held, parked, .. }) => {
                (self.store(held, parked) == Guarded::Done).then_some(())
            }
            (Step::LookAgain, Phase::LookAgain { held, parked }) => {
                self.look_again(held, parked);
                Some(())
            }
            (
                Step::Park,
                Phase::StorePair { held, parked: false, .. } | Phase::LookAgain { held, parked: false },
            ) => {
                self.park(held);
                Some(())
            }
            (Step::TakeParked, Phase::Idle) => {
                let next = self.state.parked.iter_mut().find(|parked| !parked.delivered)?;
                next.delivered = true;
                let held = next.held;
                self.go(Phase::StorePair { held, left: 0, parked: true });
                Some(())
            }
            (Step::AckParked, Phase::AckParked { held, .. }) => {
                self.state.parked.retain(|parked| parked.held.pair != held.pair);
                self.go(Phase::Idle);
                Some(())
            }
            (Step::Crash, _) => self.crash(phase),
            _ => None,
        }
    }
}
