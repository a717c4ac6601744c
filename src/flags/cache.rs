//! A targeting rule's answers, by user.

use std::num::NonZeroUsize;

use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};

/// A few hundred bytes each. The user who was asked for least recently is dropped first.
const MAX_USERS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(9_999);

/// The cache belongs to one `FlagSet`, so no answer outlives a reload.
pub(super) struct Cache<T>(Mutex<LruCache<Box<str>, T>>);

impl<T: Copy> Cache<T> {
    pub(super) fn empty() -> Self {
        Self(Mutex::new(LruCache::new(MAX_USERS)))
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
    fn a_full_cache_drops_the_least_recently_used_user() {
        let cache = Cache::empty();
        for user in 0..MAX_USERS.get() {
            cache.put(&format!("u-{user}"), user);
        }
        assert_eq!(cache.get("u-0"), Some(0));
        cache.put("one more", 7);
        assert_eq!(cache.len(), MAX_USERS.get());
        assert_eq!(cache.get("u-1"), None, "it is the least recently used");
        assert_eq!((cache.get("u-0"), cache.get("one more")), (Some(0), Some(7)));
    }
}
