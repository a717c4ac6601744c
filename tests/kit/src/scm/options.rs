//! What can be set of a simulated SCM.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    Clock, Pace,
    dialect::{ClientAuth, Dialect},
    ledger::random_token,
};

/// How a simulated SCM behaves. Start from [`ScmOptions::new`] and change what a test is about:
///
/// ```
/// # use std::time::Duration;
/// # use tokenkeeper_testkit::scm::{Dialect, ScmOptions};
/// let slow = ScmOptions { latency: Duration::from_millis(200), ..ScmOptions::new(Dialect::GitHub) };
/// ```
#[derive(Clone)]
pub struct ScmOptions {
    /// Whose behaviour.
    pub dialect: Dialect,
    /// The port on 127.0.0.1; a free one when not given.
    pub port: Option<u16>,
    /// The path below which everything lives, as a Bitbucket Server behind a shared host name has one
    /// (`/bitbucket`). Empty by default.
    pub context_path: String,
    /// The OAuth client id that is expected.
    pub client_id: String,
    /// The OAuth client secret that is expected.
    pub client_secret: String,
    /// Where client id and secret are expected.
    pub client_auth: ClientAuth,
    /// The `redirect_uri` that has to come with each refresh; `None` expects none.
    pub redirect_uri: Option<String>,
    /// How long a new access token lives.
    pub token_lifetime: Duration,
    /// Whether a refresh kills the access token that it replaces.
    pub kills_old_token: bool,
    /// What becomes of a refresh token that was used already.
    pub spent_refresh_token: SpentRefreshToken,
    /// Leaves `refresh_token` out of the answers, which means that the old one stays good.
    pub omit_refresh_token: bool,
    /// Leaves `expires_in` out of the answers; the token expires all the same.
    pub omit_expires_in: bool,
    /// How long the token endpoint takes to act.
    pub latency: Duration,
    /// Lets refreshes act one at a time; one that waits longer than this for its turn is answered 500, as
    /// Bitbucket Data Center does. `None`: all at once.
    pub refresh_lock_timeout: Option<Duration>,
    /// What becomes of a connection of the token endpoint.
    pub connections: Connections,
    /// How fast `git` is served.
    pub pace: Pace,
    /// The clock that tokens expire by. A test with a manual clock gives it here.
    pub clock: Clock,
}

/// What an SCM does with a connection whose request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// It may be used again.
    Kept,
    /// It ends, as at some load balancers.
    Closed,
}

/// What an SCM does with a refresh token that was used already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpentRefreshToken {
    /// It refuses it.
    Refused,
    /// It accepts it again, as providers with a grace period do for a client that lost the answer. What the
    /// earlier use issued is dead then.
    Accepted,
}

impl ScmOptions {
    /// What the dialect does by itself: tokens of two hours, no latency, a random client id and secret.
    pub fn new(dialect: Dialect) -> Self {
        Self {
            dialect,
            port: None,
            context_path: String::new(),
            client_id: random_token("client-", 16),
            client_secret: random_token("", 32),
            client_auth: dialect.client_auth(),
            redirect_uri: dialect.wants_redirect_uri().then(|| "https://app.example.org/callback".to_owned()),
            token_lifetime: Duration::from_hours(2),
            kills_old_token: dialect.kills_old_token(),
            spent_refresh_token: SpentRefreshToken::Refused,
            omit_refresh_token: false,
            omit_expires_in: false,
            latency: Duration::ZERO,
            refresh_lock_timeout: (dialect == Dialect::BitbucketServer).then_some(Duration::from_secs(10)),
            connections: Connections::Kept,
            pace: Pace::default(),
            clock: Arc::new(system_clock_ms),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the SCM is another machine: it has a clock of its own")]
fn system_clock_ms() -> i64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a date after 1970");
    i64::try_from(since_epoch.as_millis()).expect("a date that fits")
}
