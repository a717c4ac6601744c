//! Which calls may find out whether a host is back. `now` is an argument, and nothing here waits.
//!
//! Entries are of three sorts: proven, unproven, and failed before. A probe waits only for probes of its own sort and of the
//! better ones. So an entry that fails for a reason of its own delays nobody who would be served.

use std::time::Duration;

use tokio::time::Instant;

/// When to ask again while another probe is under way.
pub(super) const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// No call now. Ask again after this time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotNow(pub(super) Duration);

/// The entry that asks for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Caller {
    /// Row id of the entry.
    pub(super) entry: i64,
    /// Whether its pair came from a refresh with the provider's present settings.
    pub(super) proven: bool,
}

/// The sort of an entry that asks for a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Candidate {
    /// It was refreshed before, and has not failed since.
    Proven,
    /// It was never refreshed before, so its refresh token may be bad.
    Unproven,
    /// It has failed. Another failure says nothing new, a success does.
    Failed {
        /// From when it may try again.
        again_from: Instant,
    },
}

/// One call that finds out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Probe {
    pub(super) candidate: Candidate,
    number: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Probes {
    /// How many have begun.
    count: u64,
    proven: Schedule,
    unproven: Schedule,
    /// From when those that failed before may probe, one in each [`PROBE_INTERVAL`].
    failed_from: Instant,
}

/// When the entries of one sort may probe: one at a time, unless `shared`.
#[derive(Debug, Clone, Copy)]
struct Schedule {
    from: Instant,
    shared: bool,
    under_way: Option<u64>,
}

impl Schedule {
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
    /// No probes before `from`.
    pub(super) const fn new(from: Instant) -> Self {
        Self { count: 0, proven: Schedule::new(from), unproven: Schedule::new(from), failed_from: from }
    }

    /// Begins anew: no probes before `from`. Those under way are forgotten.
    pub(super) const fn restart(&mut self, from: Instant) {
        self.proven = Schedule::new(from);
        self.unproven = Schedule::new(from);
        self.failed_from = from;
    }

    /// Lets every proven entry call until one of them fails.
    pub(super) const fn admit_proven(&mut self, now: Instant) {
        self.proven = Schedule { shared: true, ..Schedule::new(now) };
    }

    /// Whether an entry of this sort may probe now.
    pub(super) fn check(&self, candidate: Candidate, now: Instant) -> Result<(), NotNow> {
        let proven = self.proven.under_way.is_some();
        let any = proven || self.unproven.under_way.is_some();
        let (from, taken) = match candidate {
            Candidate::Proven => (self.proven.from, proven),
            Candidate::Unproven => (self.unproven.from, any),
            // It has no schedule: a probe that hangs makes nobody wait.
            Candidate::Failed { again_from } => (again_from.max(self.failed_from), any),
        };
        if now < from {
            Err(NotNow(from - now))
        } else if taken {
            Err(NotNow(PROBE_INTERVAL))
        } else {
            Ok(())
        }
    }

    /// Begins a probe that [is allowed](Self::check). It is ended afterwards.
    pub(super) fn begin(&mut self, candidate: Candidate, now: Instant) -> Probe {
        self.count += 1;
        let number = self.count;
        match candidate {
            Candidate::Proven => self.proven.begin(number),
            Candidate::Unproven => self.unproven.begin(number),
            Candidate::Failed { .. } => self.failed_from = now + PROBE_INTERVAL,
        }
        Probe { candidate, number }
    }

    /// Ends a probe, which is over or was not made.
    pub(super) fn end(&mut self, probe: Probe) {
        self.proven.end(probe.number);
        self.unproven.end(probe.number);
    }

    /// Delays the entries of this sort, and of the worse ones, because a probe failed.
    pub(super) fn delay(&mut self, candidate: Candidate, until: Instant) {
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
    fn there_is_one_probe_at_a_time_of_each_sort_and_a_proven_one_waits_for_no_other_sort() {
        let now = Instant::now();
        let mut probes = Probes::new(now);
        let unproven = probes.begin(Candidate::Unproven, now);
        assert_eq!(probes.check(Candidate::Unproven, now), Err(NotNow(PROBE_INTERVAL)));
        assert_eq!(probes.check(FAILED(now), now), Err(NotNow(PROBE_INTERVAL)));
        assert_eq!(probes.check(Candidate::Proven, now), Ok(()));
        let proven = probes.begin(Candidate::Proven, now);
        probes.end(unproven);
        assert_eq!(probes.check(Candidate::Proven, now), Err(NotNow(PROBE_INTERVAL)));
        assert_eq!(probes.check(Candidate::Unproven, now), Err(NotNow(PROBE_INTERVAL)));
        probes.end(proven);
        assert_eq!(probes.check(Candidate::Proven, now), Ok(()));
        assert_eq!(probes.check(FAILED(now), now), Ok(()));
    }

    #[test]
    fn a_probe_that_failed_delays_its_own_sort_and_the_worse_ones_alone() {
        let now = Instant::now();
        let mut probes = Probes::new(now);
        probes.delay(FAILED(now), now + secs(10));
        assert_eq!(probes.check(Candidate::Unproven, now), Ok(()));
        probes.delay(Candidate::Unproven, now + secs(10));
        assert_eq!(probes.check(Candidate::Unproven, now), Err(NotNow(secs(10))));
        assert_eq!((probes.check(Candidate::Proven, now), probes.check(FAILED(now), now)), (Ok(()), Ok(())));
        probes.delay(Candidate::Proven, now + secs(20));
        for candidate in [Candidate::Proven, Candidate::Unproven, FAILED(now)] {
            assert_eq!(probes.check(candidate, now), Err(NotNow(secs(20))), "{candidate:?}");
        }
    }

    #[test]
    fn entries_that_failed_before_probe_at_intervals_so_that_one_that_hangs_makes_nobody_wait() {
        let now = Instant::now();
        let mut probes = Probes::new(now);
        probes.begin(FAILED(now), now);
        assert_eq!(probes.check(Candidate::Proven, now), Ok(()));
        assert_eq!(probes.check(Candidate::Unproven, now), Ok(()));
        assert_eq!(probes.check(FAILED(now), now), Err(NotNow(PROBE_INTERVAL)));
        assert_eq!(probes.check(FAILED(now), now + PROBE_INTERVAL), Ok(()));
        assert_eq!(probes.check(FAILED(now + secs(9)), now + secs(1)), Err(NotNow(secs(8))));
    }
}
