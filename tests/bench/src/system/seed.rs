//! A million users at once: rows as tokenkeeper itself would have written them, sealed with its own code, in statements
//! of a thousand rows.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use sea_orm::ActiveValue::{NotSet, Set};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseBackend, DatabaseConnection, EntityTrait, QueryFilter, QueryOrder,
    QuerySelect,
};
use tokenkeeper::{
    domain::clock::{Clock, SystemClock, Timestamp},
    domain::secret::{Format, KeyRing},
    store::{NewPair, PairSource, Store},
};
use tokenkeeper_entity::token_entry::{ActiveModel, Column, Entity as TokenEntry};

use crate::{
    load::{SEEDED_USERS, user_name},
    statements::{connect, number},
};

/// Rows a statement. All databases take statements of this length as they are installed.
const ROWS: usize = 1_000;

/// From so many on the server has more to write than it does by the way.
const MANY: usize = 100_000;

/// How long the tokens live: longer than any run, in milliseconds.
const LIFETIME_MS: i64 = 24 * 3600 * 1000;

/// Users of one host, whose numbers are the ids of their rows: well above those that the database gives.
#[derive(Clone, Copy)]
pub(crate) struct Crowd {
    pub(crate) host: &'static str,
    /// The number of the first one, at least [`SEEDED_USERS`].
    pub(crate) first: usize,
    pub(crate) count: usize,
    /// Whether their tokens can be refreshed.
    pub(crate) refreshable: bool,
}

/// Writes an identity and an entry for each of them.
pub(super) async fn seed(url: &str, keys: &str, crowd: Crowd) -> Result<()> {
    let Crowd { host, first, count, refreshable } = crowd;
    let connection = connect(url).await?;
    let provider = format!("select id as n from auth_provider where host = '{host}'");
    let backend = connection.get_database_backend();
    let id = number(&connection, &provider, "n").await?;
    let rows = Rows::new(&connection, keys, i64::try_from(id).context("the provider's id")?).await?;
    if backend == DatabaseBackend::Postgres {
        // What is lost with the machine is written again.
        let set = "set synchronous_commit = off";
        connection.execute_unprepared(set).await.context("make writing cheap")?;
    }
    let end = first + count;
    for row in (first..end).step_by(ROWS) {
        let range = row..end.min(row + ROWS);
        connection.execute_unprepared(&rows.identities(range.clone())?).await.context("insert identities")?;
        let entries = range.map(|id| rows.entry(id, refreshable, LIFETIME_MS)).collect::<Result<Vec<_>>>()?;
        rows.insert(&connection, entries).await?;
    }
    // Else the database does it by itself, in the middle of a round.
    if backend == DatabaseBackend::Postgres {
        connection.execute_unprepared("vacuum analyze").await.context("analyze the tables")?;
    }
    if backend == DatabaseBackend::Postgres && count >= MANY {
        connection.execute_unprepared("checkpoint").await.context("write a checkpoint")?;
    }
    connection.close().await.context("close the connection")
}

/// Gives every seeded user whose token has not expired one that has, which nobody holds: a token is bound to its dates.
pub(super) async fn expire(url: &str, keys: &str) -> Result<()> {
    let connection = connect(url).await?;
    let first = i64::try_from(SEEDED_USERS)?;
    let past = SystemClock.now().as_millis() + EXPIRED_MS;
    let mut after = first - 1;
    loop {
        let valid: Vec<(i64, i64, bool)> = TokenEntry::find()
            .select_only()
            .columns([Column::IdentityId, Column::ProviderId])
            .column_as(Column::RefreshTokenSealed.is_not_null(), "refreshable")
            .filter(Column::IdentityId.gt(after))
            .filter(Column::ExpiresAt.gt(past))
            .order_by_asc(Column::IdentityId)
            .limit(ROWS as u64)
            .into_tuple()
            .all(&connection)
            .await
            .context("look for tokens to let expire")?;
        let Some((last, provider, _)) = valid.last().copied() else { break };
        after = last;
        let rows = Rows::new(&connection, keys, provider).await?;
        TokenEntry::delete_many()
            .filter(Column::IdentityId.is_in(valid.iter().map(|(id, _, _)| *id)))
            .exec(&connection)
            .await
            .context("remove tokens")?;
        let entries = valid.into_iter().map(|(id, provider, refreshable)| {
            let rows = Rows { provider, ..rows.clone() };
            rows.entry(usize::try_from(id)?, refreshable, EXPIRED_MS)
        });
        rows.insert(&connection, entries.collect::<Result<Vec<_>>>()?).await?;
    }
    connection.close().await.context("close the connection")
}

/// How long expired tokens live, in milliseconds.
const EXPIRED_MS: i64 = -60_000;

#[derive(Clone)]
struct Rows {
    provider: i64,
    store: Store,
    now: Timestamp,
    /// Whether the program that will read them knows format 2.
    is_of_format_2: bool,
}

impl Rows {
    async fn new(connection: &DatabaseConnection, keys: &str, provider: i64) -> Result<Self> {
        let is_of_format_2 =
            connection.execute_unprepared("select record_mac from token_entry where id = 0").await.is_ok();
        let keys = KeyRing::parse(keys).context("read the encryption key")?;
        keys.seal_in(if is_of_format_2 { Format::Two } else { Format::One });
        let store = Store::new(connection.clone(), keys);
        Ok(Self { provider, store, now: SystemClock.now(), is_of_format_2 })
    }

    fn identities(&self, users: std::ops::Range<usize>) -> Result<String> {
        let (provider, now_ms) = (self.provider, self.now.as_millis());
        let mut sql =
            "insert into identity (id, user_id, provider_id, auth_id, created_at, updated_at) values "
                .to_owned();
        for (row, id) in users.enumerate() {
            let comma = if row > 0 { "," } else { "" };
            let user = user_name(id);
            write!(sql, "{comma}({id},'{user}',{provider},'{user}',{now_ms},{now_ms})")?;
        }
        Ok(sql)
    }

    /// An entry whose token lives for so long, sealed as a login seals it.
    fn entry(&self, id: usize, refreshable: bool, lifetime_ms: i64) -> Result<ActiveModel> {
        let pair = NewPair {
            access_token: format!("access-{id:0>57}").into(),
            refresh_token: refreshable.then(|| format!("refresh-{id:0>56}").into()),
            username: None,
            scopes: vec!["repo".to_owned()],
            expires_at: Some(Timestamp::from_millis(self.now.as_millis() + lifetime_ms)),
            refresh_token_expires_at: None,
            source: PairSource::Login,
        };
        let id_of_row = i64::try_from(id)?;
        let row = self.store.first_row(id_of_row, &user_name(id), self.provider, &pair, self.now);
        // A version that does not know the column does not have it.
        let record_mac = if self.is_of_format_2 { row.record_mac.clone() } else { NotSet };
        Ok(ActiveModel { id: Set(id_of_row), record_mac, ..row })
    }

    async fn insert(&self, connection: &DatabaseConnection, entries: Vec<ActiveModel>) -> Result<()> {
        TokenEntry::insert_many(entries)
            .exec_without_returning(connection)
            .await
            .context("insert entries")?;
        Ok(())
    }
}
