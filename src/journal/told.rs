//! What the journal told since this process reads it, bounded.

use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroUsize;

use lru::LruCache;

use crate::domain::clock::Timestamp;
use crate::domain::secret::fingerprint;
use crate::store::JournalledPair;

/// Users whose last record is remembered, some hundred bytes each. Those who were refreshed last stay.
const MOST_USERS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(99_999);

/// The last record about a user at a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Last {
    pub(super) at: Timestamp,
    pub(super) generation: i64,
    pub(super) offset: u64,
}

#[derive(Debug)]
pub(super) struct Told {
    /// The seed is random, so that nobody can choose users with equal hashes.
    hash: RandomState,
    users: LruCache<u64, Last>,
    /// Hashes of the fingerprints of spent refresh tokens, and of whose they were.
    spent: LruCache<u64, ()>,
}

impl Told {
    pub(super) fn nothing() -> Self {
        Self {
            hash: RandomState::new(),
            // Grows as it is filled.
            users: LruCache::unbounded(),
            spent: LruCache::unbounded(),
        }
    }

    pub(super) fn note(&mut self, host: &str, stored: &JournalledPair, offset: u64) {
        let user = self.hash.hash_one((host, stored.user_id.as_str()));
        let last = Last { at: stored.at, generation: stored.generation, offset };
        // A record that was appended late may stand behind a newer one.
        if self.users.get(&user).is_none_or(|before| before.at <= last.at) {
            self.users.put(user, last);
        }
        // Whoever logs in says that this refresh token works.
        if let Some(token) = &stored.pair.refresh_token {
            self.spent.pop(&self.hash.hash_one((host, stored.user_id.as_str(), fingerprint(token).as_str())));
        }
        if let Some(spent) = &stored.spent {
            self.spent.put(self.hash.hash_one((host, stored.user_id.as_str(), spent.as_str())), ());
        }
        while self.users.len() > MOST_USERS.get() {
            self.users.pop_lru();
        }
        while self.spent.len() > MOST_USERS.get() {
            self.spent.pop_lru();
        }
    }

    pub(super) fn last(&self, host: &str, user_id: &str) -> Option<Last> {
        self.users.peek(&self.hash.hash_one((host, user_id))).copied()
    }

    /// By this user at this host: nobody promises that others have other tokens.
    pub(super) fn is_spent(&self, host: &str, user_id: &str, fingerprint: &str) -> bool {
        self.spent.contains(&self.hash.hash_one((host, user_id, fingerprint)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{NewPair, PairSource};

    fn stored(user: &str, at: i64, spent: Option<&str>) -> JournalledPair {
        JournalledPair {
            user_id: user.to_owned(),
            at: Timestamp::from_millis(at),
            generation: at,
            spent: spent.map(str::to_owned),
            account: None,
            pair: NewPair {
                access_token: "a".into(),
                refresh_token: None,
                username: None,
                scopes: Vec::new(),
                expires_at: None,
                refresh_token_expires_at: None,
                source: PairSource::Login,
            },
        }
    }

    #[test]
    fn the_latest_record_of_a_user_counts_whatever_order_they_stand_in() {
        let mut told = Told::nothing();
        told.note("h", &stored("jdoe", 2, Some("one")), 10);
        told.note("h", &stored("jdoe", 1, Some("two")), 11);
        let last = told.last("h", "jdoe").unwrap();
        assert_eq!((last.at.as_millis(), last.offset), (2, 10));
        let is_spent = |user, token| told.is_spent("h", user, token);
        assert!(is_spent("jdoe", "one") && is_spent("jdoe", "two"), "of both the refresh token was spent");
        assert!(!is_spent("other", "one") && !told.is_spent("other", "jdoe", "one"));
        assert!(told.last("other", "jdoe").is_none() && told.last("h", "other").is_none());
        assert!(!is_spent("jdoe", "three"));
        let mut again = stored("jdoe", 3, None);
        again.pair.refresh_token = Some("token".into());
        let spent = fingerprint(&"token".into());
        told.note("h", &stored("jdoe", 2, Some(&spent)), 12);
        told.note("h", &again, 13);
        assert!(!told.is_spent("h", "jdoe", &spent), "somebody logged in with it again");
    }

    #[test]
    fn no_more_than_the_limit_is_remembered() {
        let mut told = Told::nothing();
        for user in 0..=MOST_USERS.get() {
            told.note("h", &stored(&user.to_string(), 1, Some(&user.to_string())), 0);
        }
        assert_eq!((told.users.len(), told.spent.len()), (MOST_USERS.get(), MOST_USERS.get()));
        assert!(told.last("h", "0").is_none() && told.last("h", &MOST_USERS.to_string()).is_some());
    }
}
