//! Who has a working token at the end, and why somebody has none.

use std::{ops::RangeInclusive, time::Duration};

use futures_util::{StreamExt, stream};
use reqwest::{Client, StatusCode};
use tokenkeeper_testkit::{http, scm::RefreshOutcome};
use tokio::time::{Instant, sleep};

use crate::{
    stage::{Stage, User},
    truth::LastRefresh,
    upstream::Answered,
};

/// How many users are asked for at once.
const AT_ONCE: usize = 16;
const PATIENCE: Duration = Duration::from_secs(60);
/// After this, counted over everybody, nobody is patient any more: who has no token by then has none.
const ALL_TRIES: Duration = Duration::from_secs(120);
const IMPATIENCE: Duration = Duration::from_secs(5);
/// How often an answer that says "try again" is taken at its word.
const TRIES: usize = 20;
/// A worker that is killed may have read the answer and not yet stored it.
const STORING_MS: i64 = 500;

/// What was done to workers, and when: epoch milliseconds.
#[derive(Default)]
pub(crate) struct Violence {
    /// Workers killed without a chance to store anything.
    pub(crate) kills: Vec<i64>,
    /// When the database was away.
    pub(crate) database_away: Vec<RangeInclusive<i64>>,
}

/// Every user, asked for once more.
#[derive(Default)]
pub(crate) struct Standing {
    pub(crate) working: usize,
    /// A worker was killed after the provider had acted and before the new pair was stored.
    pub(crate) killed_inside: Vec<String>,
    /// The provider acted, and its answer never reached a worker.
    pub(crate) answer_lost: Vec<String>,
    /// Nothing explains it.
    pub(crate) without: Vec<String>,
}

enum State {
    Works,
    KilledInside,
    AnswerLost,
    Without(String),
}

impl Standing {
    /// Asks for every user's token and calls the SCM's API with it.
    pub(crate) async fn look(stage: &Stage, users: &[User], violence: &Violence) -> Self {
        let http = http::client();
        let until = Instant::now() + ALL_TRIES;
        let states = stream::iter(users)
            .map(|user| {
                let http = http.clone();
                async move { (user, state(stage, user, violence, &http, until).await) }
            })
            .buffer_unordered(AT_ONCE)
            .collect::<Vec<_>>()
            .await;
        let mut standing = Self::default();
        for (user, state) in states {
            match state {
                State::Works => standing.working += 1,
                State::KilledInside => standing.killed_inside.push(user.name.to_string()),
                State::AnswerLost => standing.answer_lost.push(user.name.to_string()),
                State::Without(why) => standing.without.push(format!("{}: {why}", user.name)),
            }
        }
        standing
    }
}

async fn state(stage: &Stage, user: &User, violence: &Violence, http: &Client, until: Instant) -> State {
    let why = match token(stage, user, until).await {
        Ok(token) => match api_status(stage, user, &token, http).await {
            Some(StatusCode::OK) => return State::Works,
            status => format!("the SCM answers {status:?} to the token that was handed out"),
        },
        Err(why) => why,
    };
    let last = LastRefresh::of(stage.scm_of(user), &user.name);
    let Some(event) = last.event else { return State::Without(why) };
    let ended = event.ended_at_ms.unwrap_or(i64::MAX);
    if violence.kills.iter().any(|kill| (event.started_at_ms..=violence.stored_by(ended)).contains(kill)) {
        return State::KilledInside;
    }
    if event.outcome == RefreshOutcome::Failed {
        return State::AnswerLost;
    }
    State::Without(format!(
        "{why}; its last pair was issued from {} to {ended}, {:?}",
        event.started_at_ms, event.outcome
    ))
}

impl Violence {
    /// Until when a pair that came at `answered_ms` was stored, if its worker lived.
    fn stored_by(&self, answered_ms: i64) -> i64 {
        let by = answered_ms.saturating_add(STORING_MS);
        let away = self.database_away.iter().filter(|away| *away.start() <= by && answered_ms <= *away.end());
        // The worker looks again every two seconds or so.
        away.map(|away| away.end() + 4_000).fold(by, i64::max)
    }
}

async fn token(stage: &Stage, user: &User, until: Instant) -> Result<String, String> {
    let mut why = "no answer".to_owned();
    for _ in 0..TRIES {
        let id = stage.upstream.send(stage.ask(user, 1));
        let patience = until.saturating_duration_since(Instant::now()).clamp(IMPATIENCE, PATIENCE);
        match stage.upstream.answer(id, patience).await.map(|answer| answer.what) {
            Some(Answered::Granted(granted)) => return Ok(granted.token),
            Some(Answered::Failed(failed)) => {
                why = format!("{}: {}", failed.code, failed.message);
                if !failed.retryable || Instant::now() > until {
                    break;
                }
            }
            Some(Answered::Stored) | None => break,
        }
        sleep(Duration::from_secs(1)).await;
    }
    Err(why)
}

async fn api_status(stage: &Stage, user: &User, token: &str, http: &Client) -> Option<StatusCode> {
    let answer = http.get(stage.scm_of(user).user_url()).bearer_auth(token).send().await;
    answer.ok().map(|answer| answer.status())
}
