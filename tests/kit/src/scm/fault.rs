//! What can go wrong at a token endpoint, and when it does.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

/// One way for a refresh request to fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This status with an empty JSON object.
    Status(u16),
    /// This status with a `Retry-After` header.
    RetryAfter {
        /// 503 or 429, mostly.
        status: u16,
        /// The header's value.
        seconds: u64,
    },
    /// 429 without a `Retry-After` header.
    TooManyRequests,
    /// No answer, for as long as the client waits.
    Hang,
    /// The request waits this long and is then served.
    Slow(Duration),
    /// The connection is closed before the SCM acted: the old pair lives.
    CloseBefore,
    /// The SCM acts and then closes the connection without an answer: the old pair is dead and nobody knows the
    /// new one.
    CloseAfter,
    /// The SCM acts, announces an answer, sends half of it and closes the connection.
    Truncated,
    /// The SCM acts, and something on the way makes of its answer what nobody can read: 200, with a pair in it.
    Unreadable,
    /// The SCM refuses the refresh token, in its own words.
    InvalidGrant,
    /// The SCM refuses the client, in its own words.
    InvalidClient,
    /// 200 with a login page, as from a proxy that wants a person to log in.
    Html,
    /// 200 with a JSON body of more than 64 KiB, its length not announced.
    Oversized,
    /// 302 to the login page.
    Redirect,
    /// Exactly this answer.
    Raw {
        /// HTTP status.
        status: u16,
        /// The `Content-Type` header.
        content_type: String,
        /// The body.
        body: String,
    },
}

/// Whom a fault hits.
#[derive(Clone, Copy, Debug)]
pub(super) enum Victim<'a> {
    Everybody,
    User(&'a str),
}

/// Which fault hits the next refresh request: what is planned for its user comes before what is planned for
/// everybody, and what is planned for a number of requests before what is planned for all.
#[derive(Default)]
pub(super) struct FaultPlan {
    everybody: Planned,
    users: HashMap<String, Planned>,
    now_and_then: Option<NowAndThen>,
}

/// Faults that hit some requests, at random.
struct NowAndThen {
    percent: u8,
    faults: Vec<Fault>,
    random: fastrand::Rng,
}

#[derive(Default)]
struct Planned {
    next: VecDeque<Fault>,
    always: Option<Fault>,
}

impl FaultPlan {
    pub(super) fn fail_next(&mut self, victim: Victim<'_>, count: usize, fault: Fault) {
        self.planned(victim).next.extend(std::iter::repeat_n(fault, count));
    }

    pub(super) fn fail_always(&mut self, victim: Victim<'_>, fault: Fault) {
        self.planned(victim).always = Some(fault);
    }

    /// So many of a hundred requests that nothing else is planned for fail, each like one of `faults`. The same
    /// seed leads to the same sequence.
    pub(super) fn fail_now_and_then(&mut self, percent: u8, faults: Vec<Fault>, seed: u64) {
        self.now_and_then = Some(NowAndThen { percent, faults, random: fastrand::Rng::with_seed(seed) });
    }

    pub(super) fn heal(&mut self) {
        *self = Self::default();
    }

    /// The fault for a request of `user`, used up if it was planned for a number of requests.
    pub(super) fn take(&mut self, user: Option<&str>) -> Option<Fault> {
        let of_user = user.and_then(|user| self.users.get_mut(user)).and_then(Planned::take);
        of_user.or_else(|| self.everybody.take()).or_else(|| self.now_and_then.as_mut()?.take())
    }

    fn planned(&mut self, victim: Victim<'_>) -> &mut Planned {
        match victim {
            Victim::Everybody => &mut self.everybody,
            Victim::User(user) => self.users.entry(user.to_owned()).or_default(),
        }
    }
}

impl NowAndThen {
    fn take(&mut self) -> Option<Fault> {
        let hit = self.random.u8(..100) < self.percent;
        hit.then(|| self.random.choice(&self.faults).cloned()).flatten()
    }
}

impl Planned {
    fn take(&mut self) -> Option<Fault> {
        self.next.pop_front().or_else(|| self.always.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_faults_come_first_and_counted_ones_before_lasting_ones() {
        let mut plan = FaultPlan::default();
        plan.fail_always(Victim::Everybody, Fault::Hang);
        plan.fail_next(Victim::Everybody, 1, Fault::Status(500));
        plan.fail_next(Victim::User("alice"), 2, Fault::Html);
        let hits: Vec<_> = ["bob", "alice", "bob", "alice", "alice"].map(|user| plan.take(Some(user))).into();
        let expected = [Fault::Status(500), Fault::Html, Fault::Hang, Fault::Html, Fault::Hang].map(Some);
        assert_eq!(hits, expected);
        plan.heal();
        assert_eq!(plan.take(Some("alice")), None);
    }

    #[test]
    fn a_share_of_the_requests_fails_and_the_same_one_with_the_same_seed() {
        let hits = |seed| {
            let mut plan = FaultPlan::default();
            plan.fail_now_and_then(20, vec![Fault::CloseBefore, Fault::Status(500)], seed);
            (0..1000).map(|_| plan.take(None)).collect::<Vec<_>>()
        };
        let failed = hits(7).iter().flatten().count();
        assert!((150..250).contains(&failed), "{failed} of 1000");
        assert!(hits(7).contains(&Some(Fault::CloseBefore)) && hits(7).contains(&Some(Fault::Status(500))));
        assert_eq!(hits(7), hits(7));
        assert_ne!(hits(7), hits(8));
    }
}
