//! What keeps a row of `token_entry` from being changed by whoever can write the database.
//!
//! Nobody without a key makes a row that opens. The tokens are bound to their owner, and to every column that is written with them
//! and never apart from them. What is written apart from them, and decides whether they are handed out, has a code of its own
//! ([`Record`]). Opening a token checks both, and no token leaves without being opened.
//!
//! Reservation, lease and attempt are not covered. A wrong one delays a refresh, or makes one happen, and shows a token to nobody
//! (docs/contract.md, What the database is trusted with).

use sea_orm::{ColumnTrait, Condition};
use tokenkeeper_entity::token_entry::Column;

use super::entry::{Entry, Failure, FailureKind, lifetime_ms};
use super::{Store, StoreError};
use crate::domain::clock::Timestamp;
use crate::domain::secret::{Binding, Format, OpenError, Sealer, SecretString};

const TABLE: &str = "token_entry";

/// What is on record against a pair: the last failed refresh and the first report, as their columns have them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) code: Option<String>,
    pub(super) message: Option<String>,
    pub(super) fingerprint: Option<String>,
    /// In ms since the epoch.
    pub(super) failed_at: Option<i64>,
    /// In ms since the epoch.
    pub(super) reported_at: Option<i64>,
}

impl Record {
    /// The failure, if this version knows its kind.
    pub(super) fn failure(&self) -> Option<Failure> {
        let code = self.code.as_deref()?;
        Some(Failure {
            kind: FailureKind::ALL.into_iter().find(|kind| kind.name() == code)?,
            message: self.message.clone().unwrap_or_default(),
            fingerprint: self.fingerprint.clone().unwrap_or_default(),
            at: Timestamp::from_millis(self.failed_at.unwrap_or_default()),
        })
    }

    /// This record with another failure.
    pub(super) fn with_failure(&self, failure: &Failure) -> Self {
        Self {
            code: Some(failure.kind.name().to_owned()),
            message: Some(failure.message.clone()),
            fingerprint: Some(failure.fingerprint.clone()),
            failed_at: Some(failure.at.as_millis()),
            reported_at: self.reported_at,
        }
    }

    /// This record without its failure.
    pub(super) fn without_failure(&self) -> Self {
        Self { reported_at: self.reported_at, ..Self::default() }
    }

    /// Whether both have the same failure, whatever they say of a report.
    pub(super) fn has_failure_of(&self, other: &Self) -> bool {
        Self { reported_at: None, ..self.clone() } == Self { reported_at: None, ..other.clone() }
    }

    /// This record with a report. The first report's date stays.
    pub(super) fn with_report(&self, at: Timestamp) -> Self {
        Self { reported_at: self.reported_at.or(Some(at.as_millis())), ..self.clone() }
    }
}

/// The two encrypted columns of an entry.
#[derive(Debug, Clone, Copy)]
pub(super) enum PairColumn {
    AccessToken,
    RefreshToken,
}

impl PairColumn {
    const fn name(self) -> &'static str {
        match self {
            Self::AccessToken => "access_token_sealed",
            Self::RefreshToken => "refresh_token_sealed",
        }
    }
}

impl Entry {
    /// What a token of the entry is bound to: its owner and generation, and every column that is written with the pair alone.
    fn binding(&self, column: PairColumn) -> Binding {
        let millis = |at: Option<Timestamp>| at.map(Timestamp::as_millis);
        self.of_owner(column.name())
            .optional_number(millis(self.state.expires_at))
            .optional_number(millis(self.refresh_token_expires_at))
            .optional_number(lifetime_ms(self.state.granted_lifetime))
            // Whether there is a refresh token.
            .number(self.state.refreshable.into())
            .optional_text(self.username.as_deref())
            .texts(&self.scopes)
            .optional_number(millis(self.refreshed_at))
            .optional_text(self.login_fingerprint.as_deref())
            .optional_number(millis(self.issued_at))
            .number(self.updated_at.as_millis())
            .in_format_1(format!("{TABLE}/{}/{}/{}", column.name(), self.identity_id, self.generation))
    }

    fn record_binding(&self, record: &Record) -> Binding {
        self.of_owner("record_mac")
            .optional_text(record.code.as_deref())
            .optional_text(record.message.as_deref())
            .optional_text(record.fingerprint.as_deref())
            .optional_number(record.failed_at)
            .optional_number(record.reported_at)
    }

    fn of_owner(&self, column: &str) -> Binding {
        Binding::new(TABLE, column)
            .number(self.identity_id)
            .text(&self.user_id)
            .number(self.provider_id)
            .number(self.generation)
    }

    fn is_in_format_1(&self) -> bool {
        Format::of(&self.access_token_sealed) == Some(Format::One)
    }

    /// The guard of what writes another record: nobody has written one since the entry was loaded. In format 1 there is no code,
    /// and the last one to write wins.
    pub(super) fn has_record_as_loaded(&self) -> Condition {
        let code = self.record_mac.as_deref();
        self.is_unmoved()
            .add(code.map_or_else(|| Column::RecordMac.is_null(), |code| Column::RecordMac.eq(code)))
    }
}

impl Store {
    /// The entry with this pair, sealed as everything is sealed now.
    pub(super) fn seal_pair(
        &self,
        entry: Entry,
        access_token: &SecretString,
        refresh_token: Option<&SecretString>,
    ) -> Entry {
        self.seal_pair_by(&self.keys.sealer(), entry, access_token, refresh_token)
    }

    pub(super) fn seal_pair_by(
        &self,
        sealer: &Sealer<'_>,
        mut entry: Entry,
        access_token: &SecretString,
        refresh_token: Option<&SecretString>,
    ) -> Entry {
        let access = sealer.seal(access_token, entry.binding(PairColumn::AccessToken));
        let refresh = refresh_token.map(|token| sealer.seal(token, entry.binding(PairColumn::RefreshToken)));
        entry.key_id = access.key_id;
        entry.access_token_sealed = access.bytes;
        entry.refresh_token_sealed = refresh.map(|sealed| sealed.bytes);
        entry.record_mac = self.mac_of(&entry, &entry.record).ok().flatten();
        entry
    }

    /// Decrypts the access token.
    ///
    /// # Errors
    /// [`StoreError::Sealed`] or [`StoreError::Changed`]: nothing in the row is to be believed, or its key is missing.
    pub fn open_access_token(&self, entry: &Entry) -> Result<SecretString, StoreError> {
        self.open(entry, PairColumn::AccessToken, &entry.access_token_sealed)
    }

    /// Decrypts the refresh token, if there is one.
    ///
    /// # Errors
    /// As [`Store::open_access_token`].
    pub fn open_refresh_token(&self, entry: &Entry) -> Result<Option<SecretString>, StoreError> {
        let sealed = entry.refresh_token_sealed.as_deref();
        sealed.map(|sealed| self.open(entry, PairColumn::RefreshToken, sealed)).transpose()
    }

    fn open(&self, entry: &Entry, column: PairColumn, sealed: &[u8]) -> Result<SecretString, StoreError> {
        let binding = entry.binding(column);
        let token = self.keys.open(&entry.key_id, sealed, binding).map_err(|source| StoreError::Sealed {
            what: format!("column {} of {TABLE} {}", column.name(), entry.id),
            source,
        })?;
        if Format::of(sealed) != Some(Format::One) {
            let code = entry.record_mac.as_deref().unwrap_or_default();
            let checked = self.keys.check_mac(&entry.key_id, code, entry.record_binding(&entry.record));
            checked.map_err(|_| StoreError::Changed {
                what: format!("failure or report of {TABLE} {}", entry.id),
            })?;
        }
        Ok(token)
    }

    /// Whether a row is to be believed: its access token opens beside what stands there.
    pub(super) fn check(&self, entry: &Entry) -> Result<(), StoreError> {
        self.open_access_token(entry).map(drop)
    }

    /// Whether somebody without the key changed the row. A missing key is no such sign.
    pub(super) fn is_changed(&self, entry: &Entry) -> bool {
        match self.check(entry) {
            Ok(()) => false,
            Err(StoreError::Sealed { source, .. }) => matches!(source, OpenError::Tampered(_)),
            Err(_) => true,
        }
    }

    /// The code of another record of this row. None: the row is in format 1.
    ///
    /// # Errors
    /// [`StoreError::Sealed`]: the row's key is missing.
    pub(super) fn mac_of(&self, entry: &Entry, record: &Record) -> Result<Option<Vec<u8>>, StoreError> {
        if entry.is_in_format_1() {
            return Ok(None);
        }
        let code = self.keys.mac(&entry.key_id, entry.record_binding(record));
        code.map(Some).map_err(|source| StoreError::Sealed {
            what: format!("column record_mac of {TABLE} {}", entry.id),
            source,
        })
    }
}
