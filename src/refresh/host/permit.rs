//! A permit for one call of a token endpoint, and what its answer says about the host.

use std::time::Duration;

use tokio::time::Instant;

use super::circuit::{CallOutcome, CircuitPermit};
use super::probes::{Caller, NotNow, Probe};
use super::{HostState, note_phase};
use crate::contract::Event;
use crate::domain::clock::Timestamp;
use crate::oauth::{ClientRefusal, RefreshError};
use crate::telemetry::CircuitState;

/// The right to make one call. If it is dropped without a record, the call was not made.
#[derive(Debug)]
pub(in crate::refresh) struct CallPermit<'a> {
    host: &'a HostState,
    caller: Caller,
    /// None once the answer is recorded.
    granted: Option<Granted>,
}

/// What a permit stands for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Granted {
    pub(super) circuit: CircuitPermit,
    /// The probe of a host that refuses everybody.
    pub(super) probe: Option<Probe>,
    /// Set on a refresh's first call: when that refresh began.
    pub(super) begun: Option<Instant>,
}

/// What a token endpoint answered.
#[derive(Debug, Clone, Copy)]
pub(super) enum Answer {
    Pair,
    Refusal,
    /// The client id or its secret is refused.
    ClientRefused,
    Misconfigured,
    None {
        retry_after: Option<Duration>,
    },
}

/// A change of a circuit that upstream is told of.
enum Transition {
    Opened {
        retry_after: Duration,
    },
    /// The first pair since it opened. That a host answers is no recovery: it may refuse everybody.
    Recovered,
}

impl<'a> CallPermit<'a> {
    pub(super) const fn new(host: &'a HostState, caller: Caller, granted: Granted) -> Self {
        Self { host, caller, granted: Some(granted) }
    }

    /// Records the answer to the call that was made at `at`.
    pub(in crate::refresh) fn record<T>(
        mut self,
        answer: &Result<T, RefreshError>,
        now: Instant,
        at: Timestamp,
    ) {
        let said = match answer {
            Ok(_) => Answer::Pair,
            Err(RefreshError::Refused { .. }) => Answer::Refusal,
            Err(RefreshError::Misconfigured { client: ClientRefusal::Certain, .. }) => Answer::ClientRefused,
            Err(RefreshError::Misconfigured { .. }) => Answer::Misconfigured,
            Err(RefreshError::Unavailable { retry_after, .. }) => Answer::None { retry_after: *retry_after },
            Err(RefreshError::Unreadable { .. }) => Answer::None { retry_after: None },
            // This machine could not ask, so the host was not called.
            Err(RefreshError::Local { .. }) => return,
        };
        let Some(granted) = self.granted.take() else { return };
        let Some(transition) = self.host.record(self.caller, granted, said, now, at) else { return };
        let host = self.host.name.clone();
        self.host.shared.events.emit(match transition {
            Transition::Opened { retry_after } => Event::ProviderUnavailable {
                host,
                at,
                retry_after_secs: retry_after.as_secs().max(1),
                reason: answer.as_ref().err().map(ToString::to_string).unwrap_or_default(),
            },
            Transition::Recovered => Event::ProviderRecovered { host, at },
        });
    }
}

impl HostState {
    fn record(
        &self,
        caller: Caller,
        granted: Granted,
        answer: Answer,
        now: Instant,
        at: Timestamp,
    ) -> Option<Transition> {
        let calls = &mut *self.calls();
        calls.refusals.record(caller, granted.probe, answer, now + self.shared.circuit.open_for, at);
        let outcome = match answer {
            Answer::Pair | Answer::Refusal | Answer::ClientRefused | Answer::Misconfigured => {
                self.shared.entries.lock().answered(caller.entry);
                CallOutcome::Answered
            }
            Answer::None { retry_after: Some(wait) } if wait > self.shared.retry_after_cap => {
                CallOutcome::Pause(wait)
            }
            Answer::None { .. } => CallOutcome::Unavailable,
        };
        let before = calls.circuit.phase();
        calls.circuit.record(granted.circuit, outcome, now);
        let after = calls.circuit.phase();
        note_phase(&self.name, before, after);
        match (before, after) {
            (CircuitState::Closed, CircuitState::Open) => {
                // The wait of an entry that was never refreshed here.
                let unproven = Caller { entry: i64::MIN, proven: false };
                let retry_after = calls.circuit.check(unproven, now).err().map(|NotNow(wait)| wait);
                calls.is_told_unavailable = true;
                Some(Transition::Opened { retry_after: retry_after.unwrap_or_default() })
            }
            (_, CircuitState::Closed) if matches!(answer, Answer::Pair) => {
                let was_told = std::mem::take(&mut calls.is_told_unavailable);
                // Where it refused everybody, that it does no longer is told anyway.
                (was_told && !calls.refusals.are_of_everybody()).then_some(Transition::Recovered)
            }
            _ => None,
        }
    }
}

impl Drop for CallPermit<'_> {
    fn drop(&mut self) {
        let Some(Granted { circuit, probe, begun }) = self.granted.take() else { return };
        let calls = &mut *self.host.calls();
        calls.circuit.release(circuit);
        calls.refusals.release(probe);
        if let Some(begun) = begun {
            calls.begun.take_back(begun);
            self.host.shared.entries.lock().take_back(self.caller.entry, begun);
        }
    }
}
