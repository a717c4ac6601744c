//! tokenkeeper with a database, providers and users.

use std::{fmt::Write as _, path::Path, time::Duration};

use anyhow::Result;
use tokenkeeper_testkit::{
    database::{Kind, TestDatabase},
    program::{Ground, Program},
    queues::TestBroker,
};
use tokio::sync::OnceCell;

pub(crate) use super::seed::Crowd;
use super::{folder_of, seed};
use crate::{
    endpoint::Endpoint,
    load::{SEEDED_USERS, user_name},
};

/// Hosts whose tokens are refreshed while they are valid, unless they are reserved. The first is the hot one.
pub(crate) const BITBUCKETS: &[&str] =
    &["bitbucket-1.example.org", "bitbucket-2.example.org", "bitbucket-3.example.org"];

/// A host whose tokens are refreshed when they must.
pub(crate) const GITHUB: &str = "github.example.org";

/// The same, where a refresh takes 50 ms.
pub(crate) const REFRESHING: &str = "refreshing.example.org";

/// The same, where a refresh takes 5 s (1 s with `--quick`).
pub(crate) const STALLING: &str = "stalling.example.org";

/// A host that no provider has.
pub(crate) const UNKNOWN: &str = "unknown.example.org";

/// As many refreshes at once as there are requests: what is measured is tokenkeeper, not the patience of a host.
const REFRESHES_AT_ONCE: u32 = 65_535;

/// How long the reply to a hot request is, in bytes.
pub(crate) const REPLY_BYTES: usize = 359;

const TOKEN_LENGTH: usize = 64;

/// tokenkeeper, ready to be started.
pub(crate) struct Install {
    pub(crate) kind: Kind,
    /// Which other program it is; none: the one that is measured.
    pub(crate) version: Option<String>,
    pub(crate) program: Program,
    pub(crate) database: TestDatabase,
    keys: String,
    seeded: OnceCell<()>,
}

impl Install {
    /// Sets a program up on a new database.
    pub(crate) async fn new(
        (version, path): (Option<String>, &Path),
        kind: Kind,
        broker: &TestBroker,
        folder: &Path,
        endpoint: &Endpoint,
        stall: Duration,
    ) -> Result<Self> {
        let database = TestDatabase::create(kind).await;
        let folder = folder_of(folder, broker.prefix())?;
        let mut program = Program::at(path.to_owned(), &folder);
        let ground = Ground {
            database: &in_the_clear(kind, database.url()),
            broker: broker.url(),
            prefix: broker.prefix(),
            providers: &providers(endpoint, stall),
            // Each round puts old rows back, so that tokens have expired again. The journal is there to undo that.
            settings: &[("TOKENKEEPER__BROKER__JOURNAL_MAX_AGE_SECS", "0")],
        };
        let keys = program.set_up(&ground).await?;
        Ok(Self { kind, version, program, database, keys, seeded: OnceCell::new() })
    }

    /// Logs so many users in at every Bitbucket, with tokens that are valid for hours.
    pub(crate) async fn log_in(&self, users: usize) -> Result<()> {
        let mut lines = String::new();
        for host in BITBUCKETS {
            for number in 0..users {
                let user = user_name(number);
                let access = format!("{:x<TOKEN_LENGTH$}", format!("{user}-access-"));
                writeln!(
                    lines,
                    r#"{{"user_id":"{user}","host":"{host}","token":{{"value":"{access}","refresh_token":"{user}-refresh","scopes":["repo"],"expires_at":"2100-01-01T00:00:00Z"}}}}"#
                )?;
            }
        }
        self.program.import(&lines).await
    }

    /// Puts so many users of [`GITHUB`] into the tables, once.
    pub(crate) async fn seed(&self, users: usize, refreshable: bool) -> Result<()> {
        let crowd = Crowd { host: GITHUB, first: SEEDED_USERS, count: users, refreshable };
        self.seeded.get_or_try_init(|| self.seed_crowd(crowd)).await.copied()
    }

    /// Puts users straight into the tables: the rows are what `tokenkeeper` itself would have written.
    pub(crate) async fn seed_crowd(&self, crowd: Crowd) -> Result<()> {
        seed::seed(self.database.url(), &self.keys, crowd).await
    }

    /// Lets every seeded token expire.
    pub(crate) async fn expire(&self) -> Result<()> {
        seed::expire(self.database.url(), &self.keys).await
    }
}

/// Nobody's link is encrypted, the broker's neither: all that is measured stays on this machine.
fn in_the_clear(kind: Kind, url: &str) -> String {
    match kind {
        Kind::Postgres => format!("{url}?sslmode=disable"),
        Kind::MariaDb => format!("{url}?ssl-mode=disabled"),
        Kind::Sqlite => url.to_owned(),
    }
}

fn providers(endpoint: &Endpoint, stall: Duration) -> String {
    let at_once = Duration::from_millis(5);
    let refreshing = Duration::from_millis(50);
    let hosts = BITBUCKETS.iter().map(|host| (*host, "bitbucket_server", at_once)).chain([
        (GITHUB, "github", at_once),
        (REFRESHING, "github", refreshing),
        (STALLING, "github", stall),
    ]);
    let block = |(host, kind, latency)| {
        format!(
            "[[provider]]\nhost = \"{host}\"\nkind = \"{kind}\"\nclient_id = \"bench\"\nclient_secret = \"bench\"\n\
             token_url = \"{}\"\nredirect_uri = \"https://app.example.org/callback\"\n\
             max_concurrent_refreshes = {REFRESHES_AT_ONCE}\n\n",
            endpoint.token_url(latency)
        )
    };
    hosts.map(block).collect()
}
