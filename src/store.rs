//! RESERVE: every query on token entries (docs/contract.md, The database protocol), and nothing else.
//!
//! Each write is one short conditional UPDATE, guarded by the state that was decided on (`rules.rs`). It tells whether it took
//! effect ([`Guarded`]). If it did not, the row has changed, and the caller loads and decides again. Nothing on a request's way
//! holds a transaction. A connection is held for one statement, or for grouped statements that follow one another (`line.rs`).

mod canary;
mod claim;
mod condemn;
mod contents;
pub mod database;
mod duty;
mod entry;
mod error;
mod group_commit;
mod idle;
mod journal;
mod known;
mod lease;
mod line;
mod listing;
mod login;
mod pair;
mod parked;
mod provider;
pub mod provider_cache;
mod refusal;
mod report;
mod reseal;
mod reserve;
mod rules;
mod seal;
mod standing;
mod store_refreshed;
mod take_lease;
mod workers;

use std::sync::Arc;

use sea_orm::sea_query::Expr;
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseConnection, DbBackend, DbErr, EntityTrait, QueryFilter,
    QuerySelect, Statement,
};
use tokenkeeper_entity::{identity, token_entry};

pub use self::canary::KeyProof;
pub use self::claim::Claim;
use self::database::Link;
pub use self::entry::{Entry, Failure, FailureKind, Lease, Origin};
pub use self::error::StoreError;
use self::group_commit::GroupCommit;
pub use self::idle::Unrefreshable;
pub use self::journal::{Applied, JournalMark, JournalRecord, JournalledPair, PairState};
use self::known::Known;
pub use self::known::KnownEntry;
pub use self::listing::{ListedFailure, ListedIdentity, ListedLease, ListedToken, Listing, ListingFilter};
pub use self::login::{AccountNames, LoginEffect, StoredLogin};
pub use self::pair::{NewPair, PairSource};
pub use self::parked::{ParkedPair, Restored};
pub use self::provider::{Move, ProviderChange, RemoveProvider, Stake};
pub use self::refusal::Judgement;
pub use self::reseal::{KeyRows, Resealed};
use self::reserve::Reservation;
pub use self::standing::{Standing, standings};
use self::store_refreshed::Succession;
use self::take_lease::WantedLease;
use crate::domain::clock::Timestamp;
use crate::domain::secret::KeyRing;

/// The token entries and providers of one database.
#[derive(Debug, Clone)]
pub struct Store {
    db: DatabaseConnection,
    /// For statements that must not wait behind requests: leases and refreshed pairs.
    urgent: DatabaseConnection,
    /// For statements that many requests share.
    grouped: DatabaseConnection,
    /// What these pools share.
    link: Link,
    keys: KeyRing,
    known: Known,
    claims: GroupCommit<Claim>,
    reservations: GroupCommit<Reservation>,
    leases: GroupCommit<WantedLease>,
    successions: GroupCommit<Succession>,
}

/// The result of a lookup by user and provider.
#[derive(Debug)]
pub enum Found {
    /// The user has no identity at all.
    NoUser,
    /// The user has no identity at this provider.
    NoIdentity,
    /// The identity has no token.
    NoToken,
    Entry(Arc<Entry>),
}

/// Whether a guarded UPDATE took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a guarded UPDATE that changed nothing means: load and decide again"]
pub enum Guarded {
    Done,
    /// The row has changed since the decision.
    Moved,
}

impl Guarded {
    fn from_rows(rows: u64) -> Self {
        if rows == 0 { Self::Moved } else { Self::Done }
    }

    /// For each of a group: whether the statement changed the row at its place. The database counts places from one.
    fn at_places(changed: Option<Vec<i64>>, group: usize) -> Vec<Self> {
        let mut answers = vec![Self::Moved; group];
        for place in changed.unwrap_or_default() {
            let place = usize::try_from(place).ok().and_then(|place| place.checked_sub(1));
            if let Some(answer) = place.and_then(|place| answers.get_mut(place)) {
                *answer = Self::Done;
            }
        }
        answers
    }
}

impl Store {
    /// `keys` open the secrets in this database.
    pub fn new(db: DatabaseConnection, keys: KeyRing) -> Self {
        Self {
            urgent: db.clone(),
            grouped: db.clone(),
            link: Link::default(),
            db,
            keys,
            known: Known::nothing(),
            claims: GroupCommit::new(),
            reservations: GroupCommit::new(),
            leases: GroupCommit::new(),
            successions: GroupCommit::new(),
        }
    }

    /// The same store with a pool of its own for leases and refreshed pairs, so that they never wait behind requests.
    #[must_use]
    pub fn with_urgent(self, urgent: DatabaseConnection) -> Self {
        Self { urgent, ..self }
    }

    /// The same store with a pool of its own for statements that many requests share (`database::open_grouped`).
    #[must_use]
    pub fn with_grouped(self, grouped: DatabaseConnection) -> Self {
        Self { grouped, ..self }
    }

    /// The same store over pools that share this link. All of its connections can be renewed at once.
    #[must_use]
    pub fn with_link(self, link: Link) -> Self {
        Self { link, ..self }
    }

    /// The time by the database's clock.
    pub async fn now(&self) -> Result<Timestamp, StoreError> {
        let failed = StoreError::database("ask the database for the time");
        let backend = self.urgent.get_database_backend();
        let question = Statement::from_string(backend, format!("SELECT {} AS now", time_of(backend)));
        let read = async {
            let row = self.urgent.query_one_raw(question).await?;
            row.ok_or_else(|| DbErr::RecordNotFound("the time".to_owned()))?.try_get("", "now")
        };
        read.await.map(Timestamp::from_millis).map_err(failed)
    }

    /// The same as an expression in a statement.
    fn database_time(&self) -> Expr {
        Expr::cust(time_of(self.urgent.get_database_backend()))
    }

    pub async fn ping(&self) -> Result<(), StoreError> {
        self.urgent.ping().await.map_err(StoreError::database("reach the database"))
    }

    /// For a user without an entry at this provider.
    async fn without_entry(&self, user_id: &str, provider_id: i64) -> Result<Found, StoreError> {
        let providers: Vec<i64> = identity::Entity::find()
            .select_only()
            .column(identity::Column::ProviderId)
            .filter(identity::Column::UserId.eq(user_id))
            .into_tuple()
            .all(&self.db)
            .await
            .map_err(StoreError::database("look a user up"))?;
        Ok(if providers.contains(&provider_id) {
            Found::NoToken
        } else if providers.is_empty() {
            Found::NoUser
        } else {
            Found::NoIdentity
        })
    }

    /// Loads an entry again. None: the entry is gone.
    pub async fn reload(&self, entry_id: i64) -> Result<Option<Entry>, StoreError> {
        let row = token_entry::Entity::find_by_id(entry_id)
            .one(&self.db)
            .await
            .map_err(StoreError::database("look at a token again"))?;
        row.map(Entry::from_row).transpose()
    }
}

/// In ms since the epoch.
const fn time_of(backend: DbBackend) -> &'static str {
    match backend {
        DbBackend::Postgres => "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
        DbBackend::MySql => "CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000 AS SIGNED)",
        // Its clock is this machine's: it has none of its own.
        _ => "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
    }
}
