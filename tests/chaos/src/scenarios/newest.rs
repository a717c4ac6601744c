//! Whether what is handed out is the newest pair that the provider has issued.

use std::time::Duration;

use crate::{
    report::Row,
    stage::{Stage, User},
    upstream::Answered,
};

const PATIENCE: Duration = Duration::from_secs(60);
const TRIES: usize = 10;

/// Users whose stored pair is the provider's newest one, and the others.
#[derive(Default)]
pub(super) struct Newest {
    users: usize,
    not: Vec<String>,
}

impl Newest {
    /// Asks for the token of each of these users.
    pub(super) async fn look(&mut self, stage: &Stage, users: &[User]) {
        let looks = users.iter().map(|user| look(stage, user));
        let seen = futures_util::future::join_all(looks).await;
        self.users += users.len();
        self.not.extend(seen.into_iter().filter_map(Result::err));
    }

    /// Notes what was seen.
    pub(super) fn judge(self, row: &mut Row) {
        let what = format!("the newest pair is stored: 0 of {} lost or overwritten", self.users);
        row.promise(what, self.not.is_empty());
        for what in self.not {
            row.detail(format!("not the newest pair: {what}"));
        }
    }
}

async fn look(stage: &Stage, user: &User) -> Result<(), String> {
    let mut why = "no answer".to_owned();
    for _ in 0..TRIES {
        // Before the question, which may itself lead to a refresh.
        let newest = stage.scm_of(user).latest_pair(&user.name).map(|pair| pair.number);
        let id = stage.upstream.send(stage.ask(user, 1));
        match stage.upstream.answer(id, PATIENCE).await.map(|answer| answer.what) {
            Some(Answered::Granted(granted)) => {
                let given = stage.scm_of(user).number_of(&granted.token);
                let refreshed = granted.refresh == "opportunistic" || granted.refresh == "required";
                if given == newest || (refreshed && given > newest) {
                    return Ok(());
                }
                return Err(format!("{}: given pair {given:?}, the newest is {newest:?}", user.name));
            }
            Some(Answered::Failed(failed)) => {
                why = format!("{}: {}", failed.code, failed.message);
                if !failed.retryable {
                    break;
                }
            }
            Some(Answered::Stored) | None => break,
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Err(format!("{}: {why}", user.name))
}
