//! Whether a host refuses everybody, as the database says, and the probes that find out whether it still does.

use lru::LruCache;
use tokio::time::Instant;

use super::circuit::MOST_FAILING;
use super::not_permitted::NotPermitted;
use super::permit::Answer;
use super::probes::{Caller, Candidate, Probe, Probes};
use crate::domain::clock::Timestamp;

/// If our client is refused so many times in a row, the host refuses everybody.
const CLIENT_REFUSED: u32 = 3;

/// What one host refused.
#[derive(Debug)]
pub(super) struct Refusals {
    refusing: Option<RefusingHost>,
    /// The refusals of our client since anything else was answered.
    client: Option<ClientRefusals>,
    /// The settings that `client` counts for: when the provider was changed last.
    settings_of: Timestamp,
    /// Who was refused and has not been refreshed since, and from when each may be a probe.
    refused: LruCache<i64, Instant>,
}

#[derive(Debug, Clone, Copy)]
struct ClientRefusals {
    since: Timestamp,
    count: u32,
}

/// A host that refuses everybody is asked again now and then.
#[derive(Debug)]
struct RefusingHost {
    since: Timestamp,
    probes: Probes,
}

impl Default for Refusals {
    fn default() -> Self {
        let settings_of = Timestamp::from_millis(0);
        Self { refusing: None, client: None, settings_of, refused: LruCache::new(MOST_FAILING) }
    }
}

impl Refusals {
    /// Whether the host refuses everybody.
    pub(super) const fn are_of_everybody(&self) -> bool {
        self.refusing.is_some()
    }

    /// Since when our client is refused, if that is so often that the host must refuse everybody.
    pub(super) fn client_refused_since(&self) -> Option<Timestamp> {
        self.client.filter(|client| client.count >= CLIENT_REFUSED).map(|client| client.since)
    }

    /// Other settings have other refusals. `changed_at`: when the provider was changed last.
    pub(super) fn follow_settings(&mut self, changed_at: Timestamp) {
        if self.settings_of != changed_at {
            self.settings_of = changed_at;
            self.client = None;
        }
    }

    /// Takes over what the database says, and tells whether it is news. `next_probe`: when the first probe may come.
    pub(super) fn follow(&mut self, since: Option<Timestamp>, next_probe: Instant) -> bool {
        if self.refusing.as_ref().map(|refusing| refusing.since) == since {
            return false;
        }
        // Whoever found out that it is over, what was counted before is over too.
        self.client = self.client.filter(|_| since.is_some());
        self.refusing = since.map(|since| RefusingHost { since, probes: Probes::new(next_probe) });
        true
    }

    /// Whether this one may call, as a probe if the host refuses everybody.
    pub(super) fn check(&self, caller: Caller, now: Instant) -> Result<(), NotPermitted> {
        match &self.refusing {
            Some(RefusingHost { since, probes }) if probes.check(self.candidate(caller), now).is_err() => {
                Err(NotPermitted::HostRefusing { since: *since })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Begins a probe if the host refuses everybody. This one [may call](Self::check).
    pub(super) fn begin(&mut self, caller: Caller, now: Instant) -> Option<Probe> {
        let candidate = self.candidate(caller);
        self.refusing.as_mut().map(|refusing| refusing.probes.begin(candidate, now))
    }

    /// Records what a call at `at` says about whether the host refuses everybody. `again_from`: when the next probe may come if
    /// this call was one and failed.
    pub(super) fn record(
        &mut self,
        caller: Caller,
        probe: Option<Probe>,
        answer: Answer,
        again_from: Instant,
        at: Timestamp,
    ) {
        match answer {
            Answer::Pair => drop(self.refused.pop(&caller.entry)),
            Answer::Refusal => drop(self.refused.push(caller.entry, again_from)),
            Answer::ClientRefused | Answer::Misconfigured | Answer::None { .. } => {}
        }
        match answer {
            Answer::ClientRefused => {
                self.client.get_or_insert(ClientRefusals { since: at, count: 0 }).count += 1;
            }
            Answer::Pair | Answer::Refusal | Answer::Misconfigured => self.client = None,
            Answer::None { .. } => {}
        }
        self.release(probe);
        if let (Some(refusing), Some(probe)) = (&mut self.refusing, probe) {
            match answer {
                Answer::Pair => {}
                Answer::Refusal | Answer::ClientRefused | Answer::Misconfigured | Answer::None { .. } => {
                    refusing.probes.delay(probe.candidate, again_from);
                }
            }
        }
    }

    /// The call of this probe is over, or was not made.
    pub(super) fn release(&mut self, probe: Option<Probe>) {
        if let (Some(refusing), Some(probe)) = (&mut self.refusing, probe) {
            refusing.probes.end(probe);
        }
    }

    fn candidate(&self, caller: Caller) -> Candidate {
        match self.refused.peek(&caller.entry) {
            Some(again_from) => Candidate::Failed { again_from: *again_from },
            None if caller.proven => Candidate::Proven,
            None => Candidate::Unproven,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PROVEN: fn(i64) -> Caller = |entry| Caller { entry, proven: true };
    const SINCE: Timestamp = Timestamp::from_millis(7);
    const REFUSING: Result<(), NotPermitted> = Err(NotPermitted::HostRefusing { since: SINCE });

    #[test]
    fn a_host_that_refuses_everybody_is_probed_by_one_at_a_time_and_by_everybody_once_it_does_not() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        let later = now + Duration::from_secs(10);
        assert_eq!(refusals.check(PROVEN(1), now), Ok(()));
        assert!(refusals.follow(Some(SINCE), later) && !refusals.follow(Some(SINCE), now), "news only once");
        assert_eq!(refusals.check(PROVEN(1), now), REFUSING, "the first probe is not due");
        assert_eq!(refusals.check(PROVEN(1), later), Ok(()));
        let probe = refusals.begin(PROVEN(1), later);
        assert_eq!(refusals.check(PROVEN(2), later), REFUSING, "one at a time");
        refusals.record(PROVEN(1), probe, Answer::Refusal, later + Duration::from_secs(10), SINCE);
        assert_eq!(refusals.check(PROVEN(2), later + Duration::from_secs(9)), REFUSING, "it was refused");
        assert_eq!(refusals.check(PROVEN(2), later + Duration::from_secs(10)), Ok(()));
        assert!(refusals.follow(None, later));
        assert_eq!(refusals.check(PROVEN(2), later), Ok(()));
    }

    #[test]
    fn a_client_that_is_refused_three_times_in_a_row_under_the_same_settings_is_refused_for_everybody() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        let at = Timestamp::from_millis;
        let mut answered = |answer, millis| {
            refusals.record(PROVEN(1), None, answer, now, at(millis));
            refusals.client_refused_since()
        };
        assert_eq!([1, 2].map(|millis| answered(Answer::ClientRefused, millis)), [None; 2]);
        answered(Answer::None { retry_after: None }, 3);
        assert_eq!(answered(Answer::ClientRefused, 4), Some(at(1)));
        for other in [Answer::Pair, Answer::Refusal, Answer::Misconfigured] {
            assert_eq!(answered(other, 5), None);
            assert_eq!([6, 7].map(|millis| answered(Answer::ClientRefused, millis)), [None; 2]);
        }
        refusals.follow_settings(at(8));
        refusals.record(PROVEN(1), None, Answer::ClientRefused, now, at(9));
        assert_eq!(refusals.client_refused_since(), None, "other settings begin anew");
    }

    #[test]
    fn a_probe_that_was_not_made_makes_room_for_another() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        refusals.follow(Some(SINCE), now);
        let probe = refusals.begin(PROVEN(1), now);
        refusals.release(probe);
        assert_eq!(refusals.check(PROVEN(2), now), Ok(()));
    }
}
