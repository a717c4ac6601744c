//! What a targeting rule said, user by user.

use std::num::NonZeroUsize;

use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};

/// Users that are remembered at most, a few hundred bytes each; the one who was not asked for the longest goes first.
const MOST_USERS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(9_999);

/// The answers of one rule. They live as long as the set of flags that the rule belongs to, so none outlives a reload.
pub(super) struct Remembered<T>(Mutex<LruCache<Box<str>, T>>);

impl<T: Copy> Remembered<T> {
    pub(super) fn nothing() -> Self {
        Self(Mutex::new(LruCache::new(MOST_USERS)))
    }

    pub(super) fn get(&self, user_id: &str) -> Option<T> {
        self.users().get(user_id).copied()
    }

    pub(super) fn put(&self, user_id: &str, answer: T) {
        self.users().put(user_id.into(), answer);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.users().len()
    }

    fn users(&self) -> MutexGuard<'_, LruCache<Box<str>, T>> {
        self.0.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_users_are_remembered_than_there_is_room_for() {
        let remembered = Remembered::nothing();
        for user in 0..MOST_USERS.get() {
            remembered.put(&format!("u-{user}"), user);
        }
        assert_eq!(remembered.get("u-0"), Some(0));
        remembered.put("one more", 7);
        assert_eq!(remembered.len(), MOST_USERS.get());
        assert_eq!(remembered.get("u-1"), None, "nobody asked for it for the longest");
        assert_eq!((remembered.get("u-0"), remembered.get("one more")), (Some(0), Some(7)));
    }
}
