//! KNOWN: a cache of entries that were loaded more than once lately, and that somebody holds.
//!
//! The next request for such an entry takes one guarded UPDATE by its key, and loads nothing. The age of the copy does not
//! matter, because the guard covers everything that was decided on.
//!
//! The first request for a user does not fill the cache. Among a million users few come again in time, and to keep and evict
//! an entry costs as much as to read it.

use std::hash::{BuildHasher, RandomState};
use std::mem;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};

use super::reserve::Reservation;
use super::{Entry, Guarded, Store, StoreError};
use crate::domain::clock::Timestamp;
use crate::domain::decide::TokenState;

/// Capacity in entries of about a kilobyte. The least recently used one is evicted.
const MOST_ENTRIES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4_095);

/// How many users are remembered after their first request, eight bytes each.
const MOST_MET: u64 = 8_192;

/// The reservation of an entry that must not be used any more: it ended at the epoch.
const FORGOTTEN: i64 = 0;

/// A loaded entry, and its reservation since then.
#[derive(Debug)]
pub struct KnownEntry {
    pub entry: Arc<Entry>,
    /// The known reservation, in ms since the epoch. It grows with every request, while the rest of the entry stays.
    reserved_until: AtomicI64,
}

/// The cache. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Known {
    /// Hashes a user and a provider to a mark. The seed is random, so that nobody can choose users with equal marks.
    marks: RandomState,
    memory: Arc<Mutex<Memory>>,
}

#[derive(Debug)]
struct Memory {
    /// By mark. Of two entries with the same mark the later one is kept.
    entries: LruCache<u64, Arc<KnownEntry>>,
    /// The marks of users after their first request, each at its remainder. Zero: empty.
    met: Box<[u64]>,
}

impl Store {
    /// The cached entry of a user at a provider, if somebody still holds it. Decide on it, and reserve it with
    /// [`Store::reserve_known`] before its token is handed out.
    pub fn known(&self, user_id: &str, provider_id: i64, now: Timestamp) -> Option<Arc<KnownEntry>> {
        let known = self.known.get(user_id, provider_id)?;
        (known.reserved_until() > now).then_some(known)
    }

    /// Reserves an entry that was [known](Store::known) up to `until`, which must not be before what it is known to be
    /// reserved to.
    ///
    /// [`Guarded::Moved`]: it may not be what it was, or is reserved for longer, and is not known any more.
    ///
    /// # Errors
    /// [`StoreError`], shared with those whose reservations were in the same statement.
    pub async fn reserve_known(
        &self,
        known: &KnownEntry,
        until: Timestamp,
        now: Timestamp,
    ) -> Result<Guarded, Arc<StoreError>> {
        let reservation = Reservation::while_held(&known.entry, until, now);
        let reserved = self.reservations.submit(&self.grouped, &self.db, reservation).await?;
        match reserved {
            Guarded::Done => {
                known.reserved_until.fetch_max(until.as_millis(), Ordering::Relaxed);
            }
            Guarded::Moved => known.forget(),
        }
        Ok(reserved)
    }
}

impl Store {
    /// Forgets every cached entry: the database went back.
    pub fn forget_known(&self) {
        self.known.memory().entries.clear();
    }
}

impl KnownEntry {
    /// Until when it is reserved, as far as is known.
    pub fn reserved_until(&self) -> Timestamp {
        Timestamp::from_millis(self.reserved_until.load(Ordering::Relaxed))
    }

    /// It must not be used any more: the next request loads the row.
    pub fn forget(&self) {
        self.reserved_until.store(FORGOTTEN, Ordering::Relaxed);
    }

    /// What to decide on.
    pub fn state(&self) -> TokenState {
        TokenState { reserved_until: Some(self.reserved_until()), ..self.entry.state }
    }
}

impl Known {
    pub(super) fn nothing() -> Self {
        let memory = Memory { entries: LruCache::new(MOST_ENTRIES), met: (0..MOST_MET).map(|_| 0).collect() };
        Self { marks: RandomState::new(), memory: Arc::new(Mutex::new(memory)) }
    }

    /// Caches an entry, if the next request can probably be served from it.
    pub(super) fn learn(&self, entry: &Arc<Entry>, now: Timestamp) {
        if !entry.is_ordinary() {
            return;
        }
        let Some(reserved_until) = entry.state.reserved_until.filter(|until| *until > now) else { return };
        let mark = self.mark(&entry.user_id, entry.provider_id);
        let mut memory = self.memory();
        if !memory.meet(mark) {
            return;
        }
        let known = KnownEntry {
            entry: Arc::clone(entry),
            reserved_until: AtomicI64::new(reserved_until.as_millis()),
        };
        memory.entries.put(mark, Arc::new(known));
    }

    fn get(&self, user_id: &str, provider_id: i64) -> Option<Arc<KnownEntry>> {
        let mark = self.mark(user_id, provider_id);
        let known = self.memory().entries.get(&mark).cloned()?;
        (known.entry.user_id == user_id && known.entry.provider_id == provider_id).then_some(known)
    }

    fn mark(&self, user_id: &str, provider_id: i64) -> u64 {
        self.marks.hash_one((user_id, provider_id))
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock()
    }
}

impl Memory {
    /// Whether this mark was seen before, and not overwritten by another one since.
    fn meet(&mut self, mark: u64) -> bool {
        let place = usize::try_from(mark % MOST_MET).unwrap_or_default();
        mem::replace(&mut self.met[place], mark) == mark
    }
}
