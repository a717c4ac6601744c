//! Applying records: the rows that are behind them get their pairs, and all others stay.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::try_join_all;

use crate::domain::clock::Timestamp;
use crate::domain::provider::Provider;
use crate::store::provider_cache::Providers;
use crate::store::{Applied, JournalledPair, Store, StoreError};
use crate::telemetry;

/// Rows that are written at once. Requests need connections of the database, too.
const AT_ONCE: usize = 16;

/// Users that one statement compares.
const COMPARED_AT_ONCE: usize = 500;

/// What came of records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    /// Rows that were behind, and have the journal's pair now.
    pub stored: u64,
    /// Records whose pair, or a newer one, was there.
    pub already_there: u64,
    /// Records of a host without a provider, of a user without an identity, or that the database refuses.
    pub left: u64,
    /// The latest date of a pair that was stored.
    pub latest: Option<Timestamp>,
}

impl Done {
    pub(super) fn add(&mut self, other: Self) {
        self.stored += other.stored;
        self.already_there += other.already_there;
        self.left += other.left;
        self.latest = self.latest.max(other.latest);
    }
}

/// Applies records.
#[derive(Debug)]
pub(super) struct Applying {
    store: Store,
    providers: Providers,
    /// Only counts what would be done.
    dry: bool,
}

impl Applying {
    pub(super) fn new(store: Store) -> Self {
        Self { providers: Providers::new(store.clone()), store, dry: false }
    }

    /// Counts what would be done, and writes nothing.
    #[must_use]
    pub(super) fn dry(self) -> Self {
        Self { dry: true, ..self }
    }

    /// Applies records that stood in the journal one after the other.
    ///
    /// # Errors
    /// The database is away. Nothing is lost by applying the same records again.
    pub(super) async fn apply(&self, records: Vec<(String, JournalledPair)>) -> Result<Done, StoreError> {
        let mut by_host: HashMap<String, Vec<JournalledPair>> = HashMap::new();
        let (mut done, read) = (Done::default(), records.len());
        for (host, stored) in records {
            by_host.entry(host).or_default().push(stored);
        }
        for (host, records) in by_host {
            if let Some(provider) = self.providers.find(&host).await? {
                done.add(self.apply_to(&provider, last_of_each(records)).await?);
            } else {
                telemetry::journal_without_provider(&host);
                done.left += records.len() as u64;
            }
        }
        // Those that a later one of the same user made needless.
        done.already_there = (read as u64).saturating_sub(done.stored + done.left);
        Ok(done)
    }

    async fn apply_to(
        &self,
        provider: &Arc<Provider>,
        records: Vec<JournalledPair>,
    ) -> Result<Done, StoreError> {
        let mut done = Done::default();
        for records in records.chunks(COMPARED_AT_ONCE) {
            let behind = self.behind(provider.id, records).await?;
            for some in behind.chunks(AT_ONCE) {
                let applied = some.iter().map(|stored| self.apply_one(provider, stored));
                for (applied, at) in try_join_all(applied).await? {
                    match applied {
                        Some(Applied::Stored) => {
                            done.stored += 1;
                            done.latest = done.latest.max(Some(at));
                        }
                        Some(Applied::AlreadyThere) => done.already_there += 1,
                        Some(Applied::NoIdentity) | None => done.left += 1,
                    }
                }
            }
        }
        Ok(done)
    }

    /// The records whose rows are behind them, or not there.
    async fn behind<'a>(
        &self,
        provider_id: i64,
        records: &'a [JournalledPair],
    ) -> Result<Vec<&'a JournalledPair>, StoreError> {
        let users: Vec<&str> = records.iter().map(|stored| stored.user_id.as_str()).collect();
        let rows = self.store.pairs_of(provider_id, &users).await?;
        let rows: HashMap<String, _> = rows.into_iter().map(|pair| (pair.user_id.clone(), pair)).collect();
        let is_behind = |stored: &&JournalledPair| {
            rows.get(&stored.user_id).is_none_or(|row| row.is_behind(stored.at, stored.generation))
        };
        Ok(records.iter().filter(is_behind).collect())
    }

    /// None: it cannot be applied, which is logged.
    async fn apply_one(
        &self,
        provider: &Provider,
        stored: &JournalledPair,
    ) -> Result<(Option<Applied>, Timestamp), StoreError> {
        if self.dry {
            return Ok((Some(Applied::Stored), stored.at));
        }
        match self.store.apply_journalled(provider.id, stored).await {
            Ok(applied) => Ok((Some(applied), stored.at)),
            Err(error) if error.is_transient() => Err(error),
            Err(error) => {
                telemetry::journal_not_applied(&provider.host, &error);
                Ok((None, stored.at))
            }
        }
    }
}

/// The last record of each user, with the account of a login before it.
fn last_of_each(records: Vec<JournalledPair>) -> Vec<JournalledPair> {
    let mut last: HashMap<String, JournalledPair> = HashMap::new();
    for mut stored in records {
        if let Some(before) = last.remove(&stored.user_id) {
            let account = stored.account.take().or_else(|| before.account.clone());
            stored = if before.at > stored.at { before } else { stored };
            stored.account = account;
        }
        last.insert(stored.user_id.clone(), stored);
    }
    last.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{AccountNames, NewPair, PairSource};

    fn stored(user: &str, at: i64, account: Option<&str>) -> JournalledPair {
        JournalledPair {
            user_id: user.to_owned(),
            at: Timestamp::from_millis(at),
            generation: 1,
            spent: None,
            account: account.map(|id| AccountNames { auth_id: id.to_owned(), auth_name: None }),
            pair: NewPair {
                access_token: at.to_string().into(),
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
    fn of_many_records_the_latest_of_each_user_is_applied_and_keeps_the_account_of_a_login() {
        let records = vec![
            stored("a", 1, Some("account of a")),
            stored("b", 5, None),
            stored("a", 3, None),
            stored("b", 4, Some("account of b")),
        ];
        let mut last = last_of_each(records);
        last.sort_by(|one, other| one.user_id.cmp(&other.user_id));
        let seen: Vec<_> = last
            .iter()
            .map(|it| (&*it.user_id, it.at.as_millis(), it.account.as_ref().map(|names| &*names.auth_id)))
            .collect();
        assert_eq!(seen, [("a", 3, Some("account of a")), ("b", 5, Some("account of b"))]);
    }
}
