//! A million users at once: rows as tokenkeeper itself would have written them, sealed with its own code, in statements
//! of a thousand rows.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use sea_orm::{ConnectionTrait, DatabaseBackend};
use tokenkeeper::{
    domain::clock::{Clock, SystemClock},
    domain::secret::{KeyRing, SecretString},
};

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
    let rows = Rows {
        provider: number(&connection, &provider, "n").await?,
        keys: KeyRing::parse(keys).context("read the encryption key")?,
        now_ms: SystemClock.now().as_millis(),
        refreshable,
        backend: connection.get_database_backend(),
    };
    if rows.backend == DatabaseBackend::Postgres {
        // What is lost with the machine is written again.
        let set = "set synchronous_commit = off";
        connection.execute_unprepared(set).await.context("make writing cheap")?;
    }
    let end = first + count;
    for row in (first..end).step_by(ROWS) {
        let range = row..end.min(row + ROWS);
        connection.execute_unprepared(&rows.identities(range.clone())?).await.context("insert identities")?;
        connection.execute_unprepared(&rows.entries(range)?).await.context("insert entries")?;
    }
    // Else the database does it by itself, in the middle of a round.
    if rows.backend == DatabaseBackend::Postgres {
        connection.execute_unprepared("vacuum analyze").await.context("analyze the tables")?;
    }
    if rows.backend == DatabaseBackend::Postgres && count >= MANY {
        connection.execute_unprepared("checkpoint").await.context("write a checkpoint")?;
    }
    connection.close().await.context("close the connection")
}

/// Lets every seeded token expire, and nobody hold one.
pub(super) async fn expire(url: &str) -> Result<()> {
    let connection = connect(url).await?;
    let past = SystemClock.now().as_millis() - 60_000;
    let sql = format!(
        "update token_entry set expires_at = {past}, reserved_until = null where identity_id >= {SEEDED_USERS} and expires_at > {past}"
    );
    connection.execute_unprepared(&sql).await.context("let tokens expire")?;
    connection.close().await.context("close the connection")
}

struct Rows {
    provider: u64,
    keys: KeyRing,
    now_ms: i64,
    refreshable: bool,
    backend: DatabaseBackend,
}

impl Rows {
    fn identities(&self, users: std::ops::Range<usize>) -> Result<String> {
        let Self { provider, now_ms, .. } = self;
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

    fn entries(&self, users: std::ops::Range<usize>) -> Result<String> {
        let Self { provider, now_ms, .. } = self;
        let expires_ms = now_ms + LIFETIME_MS;
        let mut sql =
            "insert into token_entry (id, identity_id, user_id, provider_id, generation, key_id, scopes, expires_at, created_at, \
                       updated_at, access_token_sealed, refresh_token_sealed) values "
                .to_owned();
        for (row, id) in users.enumerate() {
            let comma = if row > 0 { "," } else { "" };
            let user = user_name(id);
            let (key, access) = self.sealed("access_token_sealed", id, &format!("access-{id:0>57}"));
            let refresh = if self.refreshable {
                self.sealed("refresh_token_sealed", id, &format!("refresh-{id:0>56}")).1
            } else {
                "null".to_owned()
            };
            write!(
                sql,
                "{comma}({id},{id},'{user}',{provider},1,'{key}','[\"repo\"]',{expires_ms},{now_ms},{now_ms},{access},{refresh})"
            )?;
        }
        Ok(sql)
    }

    /// The id of the key, and the bytes as this database writes them. Bound to its place as `store/entry.rs` does it;
    /// were that wrong no reply would be `ok`.
    fn sealed(&self, column: &str, identity: usize, token: &str) -> (String, String) {
        let sealed =
            self.keys.seal(&SecretString::from(token), &format!("token_entry/{column}/{identity}/1"));
        let mut hex = String::with_capacity(2 * sealed.bytes.len() + 4);
        hex.push_str(if self.backend == DatabaseBackend::Postgres { r"'\x" } else { "x'" });
        for byte in &sealed.bytes {
            for digit in [byte >> 4, byte & 15] {
                hex.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
            }
        }
        hex.push('\'');
        (sealed.key_id, hex)
    }
}
