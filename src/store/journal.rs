//! Records of the journal (`src/journal.rs`): how they are sealed, and how they come back to a row that is behind them.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::{Expr, ExprTrait as _};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QuerySelect};
use serde::{Deserialize, Serialize};
use tokenkeeper_entity::journal_mark::{self, Column};
use tokenkeeper_entity::token_entry;

use super::contents::Contents;
use super::entry::{Entry, Owner};
use super::login::is_duplicate;
use super::pair::{Leases, NewPair, PairSource};
use super::{AccountNames, Guarded, Store, StoreError};
use crate::domain::clock::Timestamp;
use crate::domain::secret::{Binding, ExposeSecret, SecretString, fingerprint};

/// The only row of `journal_mark`.
const MARK: &str = "pairs";

/// How far the clocks of two workers may be apart. Each follows the database's.
const CLOCKS_DIFFER: Duration = Duration::from_secs(1);

/// A record as it stands in the stream. User and pair are encrypted, and bound to the host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JournalRecord {
    pub host: String,
    key_id: String,
    /// Base64 of a sealed [`Told`] in JSON.
    sealed: String,
}

/// The sealed part.
#[derive(Serialize, Deserialize)]
struct Told<Secret> {
    user_id: String,
    /// Not after the date that the row got for this pair.
    at: Timestamp,
    generation: i64,
    spent: Option<String>,
    account: Option<Account>,
    pair: Contents<Secret>,
}

#[derive(Serialize, Deserialize)]
struct Account {
    auth_id: String,
    auth_name: Option<String>,
}

/// A pair that was stored, as a record tells it.
#[derive(Debug, Clone)]
pub struct JournalledPair {
    pub user_id: String,
    /// A row whose pair was stored earlier is behind this record.
    pub at: Timestamp,
    pub generation: i64,
    /// The fingerprint of the refresh token that was spent for the pair. None: a login, or the host did not change it.
    pub spent: Option<String>,
    /// Of a login.
    pub account: Option<AccountNames>,
    pub pair: NewPair,
}

/// What a record did to its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// The row was behind the record, and has its pair now.
    Stored,
    /// The row has this pair, or a newer one.
    AlreadyThere,
    /// There is no such identity, and the record is not of a login.
    NoIdentity,
}

/// How far a user's pair is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairState {
    pub user_id: String,
    generation: i64,
    updated_at: Timestamp,
}

/// Up to where the database is known to hold what the journal has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalMark {
    /// The offset of the last record that it holds.
    pub offset: u64,
    /// Of that record: tells a journal from another one.
    pub fingerprint: String,
    /// Counts how often the mark was written. It goes back only with the database.
    pub moves: i64,
    pub moved_at: Timestamp,
    /// Reservations may be unknown until then, because the database went back. None: it did not.
    pub unsure_until: Option<Timestamp>,
}

impl JournalRecord {
    /// The body of a message.
    #[allow(clippy::expect_used, clippy::missing_panics_doc, reason = "every field has a JSON form")]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a record has a JSON form")
    }

    /// Reads what [`JournalRecord::encode`] wrote. None: it is no record.
    pub fn decode(body: &[u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
    }

    fn binding(host: &str) -> Binding {
        Binding::new("journal", "sealed").text(host)
    }
}

impl PairState {
    /// As [`Entry::is_behind`].
    pub fn is_behind(&self, at: Timestamp, generation: i64) -> bool {
        is_behind((self.updated_at, self.generation), (at, generation))
    }
}

impl Entry {
    /// Whether the row is behind a record of this date and generation.
    pub fn is_behind(&self, at: Timestamp, generation: i64) -> bool {
        is_behind((self.updated_at, self.generation), (at, generation))
    }
}

/// By the dates. A generation does not say it alone: after the database went back, a login may have used it for another pair.
/// It decides where two workers' clocks could differ by as much as the dates.
fn is_behind(row: (Timestamp, i64), record: (Timestamp, i64)) -> bool {
    record.0 > row.0 || (record.1 > row.1 && record.0.plus(CLOCKS_DIFFER) > row.0)
}

impl JournalledPair {
    /// The pair that a refresh of `entry` brought. `spent`: fingerprint of the refresh token that was sent.
    pub fn refreshed(entry: &Entry, pair: &NewPair, spent: &str) -> Self {
        // Before the pair was stored, and before a login that came meanwhile: the login stays the newer one.
        let at = pair.source.asked_at().unwrap_or(entry.updated_at);
        let kept = pair.refresh_token.as_ref().is_none_or(|token| fingerprint(token) == spent);
        Self {
            user_id: entry.user_id.clone(),
            at,
            generation: entry.generation + 1,
            spent: (!kept).then(|| spent.to_owned()),
            account: None,
            pair: pair.clone(),
        }
    }

    /// The pair of a login that was stored at `at`.
    pub fn of_login(
        user_id: &str,
        account: &AccountNames,
        pair: &NewPair,
        generation: i64,
        at: Timestamp,
    ) -> Self {
        Self {
            user_id: user_id.to_owned(),
            at,
            generation,
            spent: None,
            account: Some(account.clone()),
            pair: pair.clone(),
        }
    }

    /// The login that the pair goes back to, where a refresh brought it.
    fn login(&self) -> Option<&str> {
        match &self.pair.source {
            PairSource::Refresh { origin, .. } => origin.login.as_deref(),
            PairSource::Login | PairSource::DatedLogin { .. } => None,
        }
    }
}

impl Store {
    /// Encrypts a record.
    #[allow(clippy::expect_used, clippy::missing_panics_doc, reason = "every field has a JSON form")]
    pub fn seal_journal(&self, host: &str, stored: &JournalledPair) -> JournalRecord {
        let told = Told {
            user_id: stored.user_id.clone(),
            at: stored.at,
            generation: stored.generation,
            spent: stored.spent.clone(),
            account: stored
                .account
                .as_ref()
                .map(|names| Account { auth_id: names.auth_id.clone(), auth_name: names.auth_name.clone() }),
            pair: Contents::of(&stored.pair),
        };
        let json = SecretString::from(serde_json::to_string(&told).expect("a record has a JSON form"));
        let sealed = self.keys.seal(&json, JournalRecord::binding(host));
        JournalRecord { host: host.to_owned(), key_id: sealed.key_id, sealed: BASE64.encode(sealed.bytes) }
    }

    /// Decrypts a record.
    ///
    /// # Errors
    /// [`StoreError::Sealed`]: its key is missing, or it is not what a worker wrote. [`StoreError::Corrupt`]: no base64, or another
    /// version's contents.
    pub fn open_journal(&self, record: &JournalRecord) -> Result<JournalledPair, StoreError> {
        let what = || format!("a record of the journal about {}", record.host);
        let corrupt = |reason: String| StoreError::Corrupt { what: what(), reason };
        let sealed = BASE64.decode(&record.sealed).map_err(|error| corrupt(error.to_string()))?;
        let json = self
            .keys
            .open(&record.key_id, &sealed, JournalRecord::binding(&record.host))
            .map_err(|source| StoreError::Sealed { what: what(), source })?;
        // The decoder's own words could repeat what stands there.
        let told: Told<SecretString> = serde_json::from_str(json.expose_secret()).map_err(|error| {
            corrupt(format!("its contents are not as written, at column {}", error.column()))
        })?;
        Ok(JournalledPair {
            user_id: told.user_id,
            at: told.at,
            generation: told.generation,
            spent: told.spent,
            account: told.account.map(|Account { auth_id, auth_name }| AccountNames { auth_id, auth_name }),
            pair: told.pair.into(),
        })
    }

    /// How far the pairs of these users at a provider are, for those who have one.
    pub async fn pairs_of(&self, provider_id: i64, users: &[&str]) -> Result<Vec<PairState>, StoreError> {
        let rows: Vec<(String, i64, i64)> = token_entry::Entity::find()
            .select_only()
            .columns([
                token_entry::Column::UserId,
                token_entry::Column::Generation,
                token_entry::Column::UpdatedAt,
            ])
            .filter(token_entry::Column::ProviderId.eq(provider_id))
            .filter(token_entry::Column::UserId.is_in(users.iter().copied()))
            .into_tuple()
            .all(&self.db)
            .await
            .map_err(StoreError::database("compare tokens with the journal"))?;
        let state = |(user_id, generation, at)| PairState {
            user_id,
            generation,
            updated_at: Timestamp::from_millis(at),
        };
        Ok(rows.into_iter().map(state).collect())
    }

    /// Brings a row up to a record that it is behind, and leaves any other alone. The pair gets a generation that neither had.
    ///
    /// The row keeps the record's date: a later record of this user is newer than it.
    pub async fn apply_journalled(
        &self,
        provider_id: i64,
        stored: &JournalledPair,
    ) -> Result<Applied, StoreError> {
        let identity = match (&stored.account, self.identity(&stored.user_id, provider_id).await?) {
            (_, Some(identity)) => identity,
            (Some(account), None) => {
                self.put_identity(&stored.user_id, provider_id, account, stored.at).await?
            }
            (None, None) => return Ok(Applied::NoIdentity),
        };
        let owner = Owner { identity_id: identity.id, user: &stored.user_id, provider_id };
        loop {
            let Some(current) = self.entry_of(&owner).await? else {
                let new = self.new_entry(owner, stored.generation, &stored.pair, stored.login(), stored.at);
                match token_entry::Entity::insert(new.first_row()).exec_without_returning(&self.db).await {
                    Ok(_) => return Ok(Applied::Stored),
                    Err(error) if is_duplicate(&error) => continue,
                    Err(source) => {
                        return Err(StoreError::Database { action: "store a pair of the journal", source });
                    }
                }
            };
            if !current.is_behind(stored.at, stored.generation) {
                return Ok(Applied::AlreadyThere);
            }
            let generation = Ord::max(current.generation, stored.generation) + 1;
            let pair = stored.pair.reserved_like(&current);
            let next = self.new_entry(owner, generation, &pair, stored.login(), stored.at);
            let next = Entry { id: current.id, ..next };
            if self.store_successor(&current, &next, Leases::All).await? == Guarded::Done {
                return Ok(Applied::Stored);
            }
        }
    }

    /// The mark. None: there is none yet.
    pub async fn journal_mark(&self) -> Result<Option<JournalMark>, StoreError> {
        let row = journal_mark::Entity::find_by_id(MARK)
            .one(&self.urgent)
            .await
            .map_err(StoreError::database("read the mark of the journal"))?;
        Ok(row.map(|row| JournalMark {
            offset: u64::try_from(row.position).unwrap_or_default(),
            fingerprint: row.fingerprint,
            moves: row.moves,
            moved_at: Timestamp::from_millis(row.moved_at),
            unsure_until: row.unsure_until.map(Timestamp::from_millis),
        }))
    }

    /// Writes the mark, and counts it. A mark that stands further on stays, unless `replaces` says that it belongs to another journal.
    pub async fn move_journal_mark(&self, mark: &JournalMark, replaces: bool) -> Result<(), StoreError> {
        let action = "move the mark of the journal";
        let position = i64::try_from(mark.offset).unwrap_or(i64::MAX);
        let (moved_at, unsure) = (mark.moved_at.as_millis(), mark.unsure_until.map(Timestamp::as_millis));
        let mut update = journal_mark::Entity::update_many()
            .col_expr(Column::Position, Expr::value(position))
            .col_expr(Column::Fingerprint, Expr::value(mark.fingerprint.as_str()))
            .col_expr(Column::Moves, Expr::col(Column::Moves).add(1))
            .col_expr(Column::MovedAt, Expr::value(moved_at))
            .filter(Column::Name.eq(MARK));
        if mark.unsure_until.is_some() {
            update = update.col_expr(Column::UnsureUntil, Expr::value(unsure));
        }
        if !replaces {
            update = update.filter(Column::Position.lte(position));
        }
        let updated = update.exec(&self.urgent).await.map_err(StoreError::database(action))?;
        if updated.rows_affected > 0 {
            return Ok(());
        }
        let first = journal_mark::ActiveModel {
            name: Set(MARK.to_owned()),
            position: Set(position),
            fingerprint: Set(mark.fingerprint.clone()),
            moves: Set(1),
            moved_at: Set(moved_at),
            unsure_until: Set(unsure),
        };
        match journal_mark::Entity::insert(first).exec_without_returning(&self.urgent).await {
            Ok(_) => Ok(()),
            // It stands further on.
            Err(error) if is_duplicate(&error) => Ok(()),
            Err(source) => Err(StoreError::Database { action, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_behind_a_record_that_is_later_and_the_generation_decides_where_clocks_may_differ() {
        let at = |seconds: i64| Timestamp::from_millis(seconds * 1_000);
        for (row, record, behind) in [
            ((at(10), 5), (at(20), 6), true),
            // The pair itself: it was stored after the provider was asked.
            ((at(10), 6), (at(9), 6), false),
            ((at(10), 6), (at(10), 6), false),
            // A login of later gave another pair the same generation.
            ((at(30), 6), (at(20), 6), false),
            ((at(30), 6), (at(20), 9), false),
            // The clock of the worker that refreshed was half a second late.
            ((at(10), 5), (Timestamp::from_millis(9_500), 6), true),
            ((at(10), 5), (at(8), 6), false),
        ] {
            assert_eq!(is_behind(row, record), behind, "{row:?} {record:?}");
        }
    }
}
