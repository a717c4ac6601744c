//! KNOWN: entries that were loaded lately and not for the first time, and held by somebody.
//!
//! Whoever asks for one of them again is served by one guarded UPDATE of a row whose key is known, and nothing is loaded. A
//! copy may be as old as it likes: the guard is everything that was decided on.
//!
//! Who is asked for once is not kept in mind. Of a million users who come by chance hardly anybody comes again in time, and
//! keeping and forgetting an entry costs as much as reading it.

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

/// Entries that are known at most, about a kilobyte each; the one that was not asked for the longest goes first.
const MOST_ENTRIES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4_095);

/// How many users are remembered to have been asked for, at most: eight bytes each.
const MOST_MET: u64 = 8_192;

/// Of an entry that is not to be believed any more: held until the epoch.
const FORGOTTEN: i64 = 0;

/// An entry as it was loaded, and what was reserved of it since.
#[derive(Debug)]
pub struct KnownEntry {
    /// As it was loaded.
    pub entry: Arc<Entry>,
    user_id: String,
    provider_id: i64,
    /// Until when it is reserved as far as is known, in ms since the epoch. Beside the entry, of which the rest stays as it is:
    /// with every request it grows.
    reserved_until: AtomicI64,
}

/// What is known. Clones are one and the same.
#[derive(Debug, Clone)]
pub(super) struct Known {
    /// Makes a mark of a user and a provider. Its seed is by chance, so that nobody can choose users whose marks are the same.
    marks: RandomState,
    memory: Arc<Mutex<Memory>>,
}

#[derive(Debug)]
struct Memory {
    /// By mark. Of two with the same mark the later one is known.
    entries: LruCache<u64, Arc<KnownEntry>>,
    /// The marks of who was asked for, each in the place that its remainder says; zero: nobody.
    met: Box<[u64]>,
}

impl Store {
    /// The entry of a user at a provider, if it was loaded before and is still held by somebody since: to be decided on, and
    /// reserved with [`Store::reserve_known`] before its token is handed out.
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
        let reserved = self.reservations.submit(&self.db, reservation).await?;
        match reserved {
            Guarded::Done => known.reserved_until.fetch_max(until.as_millis(), Ordering::Relaxed),
            Guarded::Moved => known.reserved_until.swap(FORGOTTEN, Ordering::Relaxed),
        };
        Ok(reserved)
    }
}

impl KnownEntry {
    /// Until when it is reserved, as far as is known.
    pub fn reserved_until(&self) -> Timestamp {
        Timestamp::from_millis(self.reserved_until.load(Ordering::Relaxed))
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

    /// Keeps an entry in mind, if it is one that the next request is likely to be served without another look.
    pub(super) fn learn(&self, user_id: &str, provider_id: i64, entry: &Arc<Entry>, now: Timestamp) {
        if !entry.is_ordinary() {
            return;
        }
        let Some(reserved_until) = entry.state.reserved_until.filter(|until| *until > now) else { return };
        let mark = self.mark(user_id, provider_id);
        let mut memory = self.memory();
        if !memory.meet(mark) {
            return;
        }
        let known = KnownEntry {
            entry: Arc::clone(entry),
            user_id: user_id.to_owned(),
            provider_id,
            reserved_until: AtomicI64::new(reserved_until.as_millis()),
        };
        memory.entries.put(mark, Arc::new(known));
    }

    fn get(&self, user_id: &str, provider_id: i64) -> Option<Arc<KnownEntry>> {
        let mark = self.mark(user_id, provider_id);
        let known = self.memory().entries.get(&mark).cloned()?;
        (known.user_id == user_id && known.provider_id == provider_id).then_some(known)
    }

    fn mark(&self, user_id: &str, provider_id: i64) -> u64 {
        self.marks.hash_one((user_id, provider_id))
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // Nothing that runs under it panics half way.
        self.memory.lock()
    }
}

impl Memory {
    /// Whether whoever has this mark was met before, and not forgotten for another one since.
    fn meet(&mut self, mark: u64) -> bool {
        let place = usize::try_from(mark % MOST_MET).unwrap_or_default();
        mem::replace(&mut self.met[place], mark) == mark
    }
}
