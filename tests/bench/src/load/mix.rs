//! Requests of several kinds in fixed shares, spread evenly.

use super::ask::{Expected, Message, Part, Request, Users};
use crate::system::{BITBUCKETS, GITHUB, REFRESHING, STALLING, UNKNOWN};

/// The shares are of so many requests.
const OF: usize = 100;
/// The places of a hundred come in this order, so that each kind is spread over them. It has no factor in common with `OF`.
const STRIDE: usize = 37;
/// How many of a hundred need a refresh that takes 50 ms.
pub(crate) const REFRESHED: usize = 5;

/// Whom a mixed load asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mix {
    /// Users whose tokens of [`BITBUCKETS`] are held. They have none of [`GITHUB`].
    pub(crate) hot: Users,
    /// Users whose tokens of [`REFRESHING`] have expired, each for one request.
    pub(crate) refreshed: Users,
    /// Users whose tokens of [`STALLING`] have expired, each for one request.
    pub(crate) slow: Users,
}

impl Mix {
    pub(super) fn request(&self, number: usize) -> Request {
        let (hundred, place) = (number / OF, number * STRIDE % OF);
        let hot = self.hot.number(number);
        let (message, user, expected, part) = match place {
            0 => {
                let user = self.slow.number(hundred);
                (Message::Token(STALLING), user, Expected::RefreshedOrRefused, Part::Slow)
            }
            1..=REFRESHED => {
                let user = self.refreshed.number(hundred * REFRESHED + place - 1);
                (Message::Token(REFRESHING), user, Expected::Refreshed, Part::Untimed)
            }
            6 | 7 => (Message::Token(GITHUB), hot, Expected::Error("identity_not_found"), Part::Untimed),
            8 => (Message::Token(UNKNOWN), hot, Expected::Error("unknown_host"), Part::Untimed),
            9 => (Message::WithoutHost, hot, Expected::Error("invalid_request"), Part::Untimed),
            10..=14 => (Message::Workspace(BITBUCKETS), hot, Expected::Ok, Part::Untimed),
            _ => (Message::Token(BITBUCKETS[0]), hot, Expected::Ok, Part::Timed),
        };
        Request { message, user, expected, part }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const MIX: Mix = Mix {
        hot: Users::random(0, 1_000),
        refreshed: Users::in_turn(2_000, 500),
        slow: Users::in_turn(3_000, 100),
    };

    #[test]
    fn every_hundred_has_each_kind_in_its_share() {
        let hundred: Vec<_> = (300..400).map(|number| MIX.request(number)).collect();
        let share = |is: fn(&Request) -> bool| hundred.iter().filter(|request| is(request)).count();
        assert_eq!(share(|request| request.expected == Expected::Ok), 90);
        assert_eq!(share(|request| request.expected == Expected::Refreshed), 5);
        assert_eq!(share(|request| matches!(request.expected, Expected::Error(_))), 4);
        assert_eq!(share(|request| request.part == Part::Slow), 1);
        assert_eq!(share(|request| request.part == Part::Timed), 85);
    }

    #[test]
    fn nobody_is_refreshed_twice() {
        for host in [REFRESHING, STALLING] {
            let requests = (0..10_000).map(|number| MIX.request(number));
            let users: Vec<_> = requests
                .filter(|request| request.message == Message::Token(host))
                .map(|request| request.user)
                .collect();
            assert_eq!(users.iter().collect::<HashSet<_>>().len(), users.len());
        }
    }
}
