//! The pairs that were stored, and those that took another's place.

use std::num::NonZeroUsize;
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokenkeeper::contract::{ReportResult, TokenDigest};
use tokenkeeper::domain::clock::Timestamp;
use tokenkeeper::domain::secret::SecretString;
use tokenkeeper::requests::Login;

/// At most this many pairs are kept, of at most 32 KiB each; the least recently used one is forgotten first.
const MOST: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4_095);

/// How long a token works that nobody stored.
const LIFE: Duration = Duration::from_hours(1);

const USERNAME: &str = "fake";

pub(super) struct Memory(Mutex<LruCache<(String, String), Pair>>);

/// The pair of a user at a host.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    pub(super) value: SecretString,
    pub(super) username: String,
    pub(super) scopes: Vec<String>,
    pub(super) updated_at: Timestamp,
    pub(super) expires_at: Option<Timestamp>,
    /// Whether it has a refresh token.
    is_refreshable: bool,
    /// Somebody reported its token, and there is no other one.
    is_withdrawn: bool,
    generation: u64,
}

/// There is no token for so long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotRefreshable;

impl Memory {
    pub(super) fn new() -> Self {
        Self(Mutex::new(LruCache::new(MOST)))
    }

    pub(super) fn store(&self, login: Login, now: Timestamp) {
        let Login { user_id, host, pair, .. } = login;
        let pair = Pair {
            value: pair.access_token,
            username: pair.username.unwrap_or_else(|| USERNAME.to_owned()),
            scopes: pair.scopes,
            updated_at: now,
            expires_at: pair.expires_at,
            is_refreshable: pair.refresh_token.is_some(),
            is_withdrawn: false,
            generation: 1,
        };
        self.0.lock().put((user_id, host), pair);
    }

    /// The pair that works until then, and whether it is a new one.
    pub(super) fn hand_out(
        &self,
        user_id: &str,
        host: &str,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<(Pair, bool), NotRefreshable> {
        let mut pairs = self.0.lock();
        let key = (user_id.to_owned(), host.to_owned());
        let Some(pair) = pairs.get_mut(&key) else {
            return Ok((Pair::nobody_stored(user_id, host, now, until), false));
        };
        if pair.is_withdrawn {
            return Err(NotRefreshable);
        }
        if pair.expires_at.is_none_or(|expires_at| expires_at >= until) {
            return Ok((pair.clone(), false));
        }
        if !pair.is_refreshable {
            return Err(NotRefreshable);
        }
        pair.refresh(user_id, host, now, until);
        Ok((pair.clone(), true))
    }

    /// What comes of a report of this token.
    pub(super) fn report(
        &self,
        user_id: &str,
        host: &str,
        token: &TokenDigest,
        now: Timestamp,
    ) -> ReportResult {
        let mut pairs = self.0.lock();
        let pair = pairs.get_or_insert_mut((user_id.to_owned(), host.to_owned()), || {
            Pair::nobody_stored(user_id, host, now, now)
        });
        if !token.is_of(&pair.value) {
            ReportResult::NotCurrent
        } else if pair.is_refreshable {
            pair.refresh(user_id, host, now, now);
            ReportResult::Refreshed
        } else {
            pair.is_withdrawn = true;
            ReportResult::Withdrawn
        }
    }
}

impl Pair {
    /// The same token for the same user and host, in each run.
    fn nobody_stored(user_id: &str, host: &str, now: Timestamp, until: Timestamp) -> Self {
        Self {
            value: token(user_id, host, 1),
            username: USERNAME.to_owned(),
            scopes: vec!["repo".to_owned()],
            updated_at: now,
            expires_at: Some(now.plus(LIFE).max(until)),
            is_refreshable: true,
            is_withdrawn: false,
            generation: 1,
        }
    }

    fn refresh(&mut self, user_id: &str, host: &str, now: Timestamp, until: Timestamp) {
        self.generation += 1;
        self.value = token(user_id, host, self.generation);
        self.updated_at = now;
        self.expires_at = Some(now.plus(LIFE).max(until));
    }
}

/// A token that says what it is.
fn token(user_id: &str, host: &str, generation: u64) -> SecretString {
    let digest: [u8; 32] =
        Sha256::new().chain_update(user_id).chain_update("\0").chain_update(host).finalize().into();
    let (name, _): (&[u8; 8], _) = digest.split_first_chunk().unwrap_or((&[0; 8], &[]));
    format!("fake-not-a-real-token-{:016x}-{generation}", u64::from_be_bytes(*name)).into()
}
