//! The protocol as the checker sees it: where it begins, what can happen, what must hold.

use stateright::{Model, Property};

use crate::properties;
use crate::provider::RefreshTokens;
use crate::rules::Rules;
use crate::state::{Broken, Holder, Issued, Name, Phase, Request, Row, State, WORKERS, Worker};
use crate::step::{Action, Answer, Scene, Step, tick};

/// What is checked: the rules, against this kind of provider, within these bounds.
#[derive(Debug, Clone, Copy)]
pub struct Protocol {
    /// What the statements are guarded by.
    pub rules: Rules,
    /// What the provider does with refresh tokens.
    pub tokens: RefreshTokens,
    /// The provider acts on a request the moment it is sent: nobody is frozen in between for longer than a lease.
    pub acts_at_once: bool,
    /// How many requests there are.
    pub requests: u8,
    /// How many faults may happen, anywhere.
    pub faults: u8,
    /// How many calls of the provider may be begun.
    pub calls: u8,
    /// Whether the user may log in once.
    pub login: bool,
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let worker = |name| Worker { phase: Phase::Idle, request: Request::NONE, name: Name(name) };
        vec![State {
            row: Row {
                generation: 0,
                pair: 0,
                reserved: 0,
                lease: None,
                attempt: None,
                failure: None,
                refreshed: None,
            },
            issued: vec![Issued { parent: None, login: 0 }],
            workers: [worker('A'), worker('B'), worker('C')],
            parked: Vec::new(),
            queued: self.requests,
            faults: self.faults,
            calls: self.calls,
            login: self.login,
            newest_lost: false,
            broken: Broken::default(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.push(Action::Tick);
        if state.login {
            actions.push(Action::Login);
        }
        for (at, worker) in (0..).zip(&state.workers) {
            let steps = self.steps(worker.phase);
            let allowed = steps.into_iter().filter(|step| state.faults > 0 || !step.is_fault());
            actions.extend(allowed.map(|step| Action::Worker(at, step)));
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Tick => tick(&mut next),
            Action::Login => {
                next.login = false;
                let pair = next.log_in();
                next.row.put_login(pair);
            }
            Action::Worker(at, step) => {
                next.faults -= u8::from(step.is_fault());
                Scene { rules: &self.rules, tokens: self.tokens, state: &mut next, at }.play(step)?;
            }
        }
        settle(&mut next);
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}

impl Protocol {
    /// What a worker may do next.
    fn steps(&self, phase: Phase) -> Vec<Step> {
        let mut steps = match phase {
            Phase::Idle => vec![
                Step::Take { until: 1, too_short: false },
                Step::Take { until: 2, too_short: true },
                Step::TakeParked,
            ],
            Phase::Load { .. } => {
                vec![
                    Step::Claim,
                    Step::ClaimLost,
                    Step::ServeKnown { stale: false },
                    Step::ServeKnown { stale: true },
                    Step::Load { refresh: true },
                    Step::Load { refresh: false },
                    Step::LastLook,
                ]
            }
            Phase::Reserve { .. } => vec![Step::Reserve, Step::ReserveLost],
            Phase::TakeLease { .. } => vec![Step::TakeLease, Step::TakeLeaseLost],
            Phase::Call { .. } => {
                let mut steps = vec![Step::RenewLease, Step::Stop, Step::GiveUp, Step::GiveUpFails];
                if self.acts_at_once {
                    steps.extend(Answer::ALL.map(Step::CallProvider));
                } else {
                    steps.push(Step::Ask);
                }
                steps
            }
            Phase::Asked { .. } => [Step::RenewLease].into_iter().chain(Answer::ALL.map(Step::Act)).collect(),
            Phase::Refused { .. } => vec![Step::GiveUp, Step::GiveUpFails],
            Phase::StorePair { .. } => vec![Step::StorePair, Step::StorePairLost, Step::Park],
            Phase::LookAgain { .. } => vec![Step::LookAgain, Step::Park],
            Phase::AckParked { .. } => vec![Step::AckParked],
        };
        steps.push(Step::Crash);
        steps
    }
}

/// Forgets the names of flights that are over, and puts the workers in order.
fn settle(state: &mut State) {
    let mut order: [u8; WORKERS] = [0, 1, 2];
    order.sort_by_key(|at| state.workers[usize::from(*at)]);
    if let Some(lease) = &mut state.row.lease
        && let Holder::Worker(at) = lease.holder
    {
        let place = (0..).zip(order).find(|(_, from)| *from == at).map(|(place, _)| place);
        lease.holder = match place {
            Some(place) if state.workers[usize::from(at)].phase.is_flight() => Holder::Worker(place),
            _ => Holder::Nobody,
        };
    }
    state.workers = order.map(|at| state.workers[usize::from(at)]);
}
