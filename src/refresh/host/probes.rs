//! Who may find out whether a host is back: one whose refreshes went well before, rather than one that fails for
//! itself. `now` comes in as a value, nothing here waits.
//!
//! Those who ask are of three sorts, and each waits for its own sort and for the better ones alone. So whoever fails
//! for a reason of their own delays nobody who would be served.

use std::time::Duration;

use tokio::time::Instant;

/// When to ask again while somebody else's probe is under way.
pub(super) const PROBE_PATIENCE: Duration = Duration::from_secs(1);

/// No call now; ask again after this time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotNow(pub(super) Duration);

/// Whose refresh asks to be let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Caller {
    /// Row id of the entry.
    pub(super) entry: i64,
    /// Whether its pair came from a refresh with the provider's present settings.
    pub(super) proven: bool,
}

/// What is known of a caller where a host fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Candidate {
    /// Refreshed before, and has not failed since.
    Proven,
    /// Never refreshed before: what it sends may be bad.
    Unproven,
    /// Has failed, which says all that it can say: only its success is news.
    Failed {
        /// From when it may try again.
        again_from: Instant,
    },
}

/// One call that is to find out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Probe {
    pub(super) candidate: Candidate,
    number: u64,
}

/// The probes of one host.
#[derive(Debug, Clone)]
pub(super) struct Probes {
    /// How many there were.
    count: u64,
    proven: Turn,
    unproven: Turn,
    /// From when those who have failed may try, one in [`PROBE_PATIENCE`].
    failed_from: Instant,
}

/// One at a time, unless it is shared.
#[derive(Debug, Clone, Copy)]
struct Turn {
    from: Instant,
    shared: bool,
    under_way: Option<u64>,
}

impl Turn {
    const fn new(from: Instant) -> Self {
        Self { from, shared: false, under_way: None }
    }

    const fn begin(&mut self, number: u64) {
        if !self.shared {
            self.under_way = Some(number);
        }
    }

    fn end(&mut self, number: u64) {
        if self.under_way == Some(number) {
            self.under_way = None;
        }
    }
}

impl Probes {
    /// Nobody may before `from`.
    pub(super) const fn new(from: Instant) -> Self {
        Self { count: 0, proven: Turn::new(from), unproven: Turn::new(from), failed_from: from }
    }

    /// Begins anew: nobody may before `from`. Whoever is under way is forgotten.
    pub(super) const fn restart(&mut self, from: Instant) {
        self.proven = Turn::new(from);
        self.unproven = Turn::new(from);
        self.failed_from = from;
    }

    /// Nothing is held against those with a good past: until one of them fails they are let through, as many as come.
    pub(super) const fn let_proven_through(&mut self, now: Instant) {
        self.proven = Turn { shared: true, ..Turn::new(now) };
    }

    /// Whether this one could be let through now.
    pub(super) fn look(&self, candidate: Candidate, now: Instant) -> Result<(), NotNow> {
        let proven = self.proven.under_way.is_some();
        let any = proven || self.unproven.under_way.is_some();
        let (from, taken) = match candidate {
            Candidate::Proven => (self.proven.from, proven),
            Candidate::Unproven => (self.unproven.from, any),
            // Not one of the turns: it may hang for as long as it likes, and keeps nobody waiting.
            Candidate::Failed { again_from } => (again_from.max(self.failed_from), any),
        };
        if now < from {
            Err(NotNow(from - now))
        } else if taken {
            Err(NotNow(PROBE_PATIENCE))
        } else {
            Ok(())
        }
    }

    /// Lets this one through, which [could be](Self::look). Each one is ended afterwards.
    pub(super) fn begin(&mut self, candidate: Candidate, now: Instant) -> Probe {
        self.count += 1;
        let number = self.count;
        match candidate {
            Candidate::Proven => self.proven.begin(number),
            Candidate::Unproven => self.unproven.begin(number),
            Candidate::Failed { .. } => self.failed_from = now + PROBE_PATIENCE,
        }
        Probe { candidate, number }
    }

    /// Takes note that a probe is over, or was not made.
    pub(super) fn end(&mut self, probe: Probe) {
        self.proven.end(probe.number);
        self.unproven.end(probe.number);
    }

    /// Takes note that a probe failed: those of its sort, and of the worse ones, wait until then.
    pub(super) fn hold_back(&mut self, candidate: Candidate, until: Instant) {
        match candidate {
            Candidate::Proven => {
                self.proven.from = self.proven.from.max(until);
                self.unproven.from = self.unproven.from.max(until);
                self.failed_from = self.failed_from.max(until);
            }
            Candidate::Unproven => self.unproven.from = self.unproven.from.max(until),
            Candidate::Failed { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Probes {
        pub(in crate::refresh::host) const fn serves_proven(&self) -> bool {
            self.proven.shared
        }
    }

    const FAILED: fn(Instant) -> Candidate = |again_from| Candidate::Failed { again_from };

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn one_at_a_time_of_each_sort_and_one_with_a_good_past_waits_for_no_other_sort() {
        let now = Instant::now();
        let mut probes = Probes::new(now);
        let unproven = probes.begin(Candidate::Unproven, now);
        assert_eq!(probes.look(Candidate::Unproven, now), Err(NotNow(PROBE_PATIENCE)));
        assert_eq!(probes.look(FAILED(now), now), Err(NotNow(PROBE_PATIENCE)));
        assert_eq!(probes.look(Candidate::Proven, now), Ok(()));
        let proven = probes.begin(Candidate::Proven, now);
        probes.end(unproven);
        assert_eq!(probes.look(Candidate::Proven, now), Err(NotNow(PROBE_PATIENCE)));
        assert_eq!(probes.look(Candidate::Unproven, now), Err(NotNow(PROBE_PATIENCE)));
        probes.end(proven);
        assert_eq!(probes.look(Candidate::Proven, now), Ok(()));
        assert_eq!(probes.look(FAILED(now), now), Ok(()));
    }

    #[test]
    fn a_probe_that_failed_delays_its_own_sort_and_the_worse_ones_alone() {
        let now = Instant::now();
        let mut probes = Probes::new(now);
        probes.hold_back(FAILED(now), now + secs(10));
        assert_eq!(probes.look(Candidate::Unproven, now), Ok(()));
        probes.hold_back(Candidate::Unproven, now + secs(10));
        assert_eq!(probes.look(Candidate::Unproven, now), Err(NotNow(secs(10))));
        assert_eq!((probes.look(Candidate::Proven, now), probes.look(FAILED(now), now)), (Ok(()), Ok(())));
        probes.hold_back(Candidate::Proven, now + secs(20));
        for candidate in [Candidate::Proven, Candidate::Unproven, FAILED(now)] {
            assert_eq!(probes.look(candidate, now), Err(NotNow(secs(20))), "{candidate:?}");
        }
    }

    #[test]
    fn those_who_have_failed_take_turns_by_time_so_that_one_who_hangs_keeps_nobody_waiting() {
        let now = Instant::now();
        let mut probes = Probes::new(now);
        probes.begin(FAILED(now), now);
        assert_eq!(probes.look(Candidate::Proven, now), Ok(()));
        assert_eq!(probes.look(Candidate::Unproven, now), Ok(()));
        assert_eq!(probes.look(FAILED(now), now), Err(NotNow(PROBE_PATIENCE)));
        assert_eq!(probes.look(FAILED(now), now + PROBE_PATIENCE), Ok(()));
        assert_eq!(probes.look(FAILED(now + secs(9)), now + secs(1)), Err(NotNow(secs(8))));
    }
}
