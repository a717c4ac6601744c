//! The judge: the honest publisher's view, and what lies in the dead letters.

use std::{collections::HashSet, ops::Range, time::Duration};

use futures_util::{StreamExt, stream};
use reqwest::StatusCode;
use tokenkeeper_testkit::{http, scm::SimulatedScm};
use tokio::time::{Instant, sleep};

use super::crew::{Memory, Suffered};
use crate::{
    report::Row,
    stage::{Stage, User},
    truth::Findings,
    upstream::{Answered, Letter, Sent},
};

/// How much slower the honest publisher may be served beside the hostile one.
const FACTOR: i64 = 2;

/// Below this nobody is slow: two cores that everybody shares are busy for longer now and then.
const FLOOR_MS: i64 = 60;

/// A machine on which the honest publisher waits so long when alone is busy with something else: nothing can be compared.
const FIT_MS: i64 = 500;

/// How much a worker's memory may grow after its first minute.
const GROWTH_KIB: u64 = 8 * 1024;

/// A run in which the workers are attacked for less says nothing about growth.
const MEANINGFUL_MS: i64 = 120_000;

/// How long a victim's refresh may be refused because there were too many of late.
const REFRESH_PATIENCE: Duration = Duration::from_secs(90);
const ANSWER_PATIENCE: Duration = Duration::from_secs(40);

/// Longer than the half of a token's life, so that it leads to a refresh before long.
const VICTIM_LIFETIME_SECS: u64 = 110;

const AT_ONCE: usize = 20;

/// So much of a token is looked for: tokens are random, and nothing else looks like that.
const TELLTALE: usize = 20;

/// When something was so, and how busy the machine was meanwhile.
pub(super) struct Phase {
    pub(super) ms: Range<i64>,
    pub(super) busy_percent: u64,
}

pub(super) struct Phases {
    pub(super) calm: Phase,
    pub(super) beside: Phase,
}

/// Everything that is judged.
pub(super) struct Verdict<'a> {
    pub(super) stage: &'a Stage,
    pub(super) findings: &'a Findings,
    pub(super) phases: Phases,
    pub(super) ready: Result<(), String>,
    pub(super) memory: Vec<Memory>,
    /// Victims whose pairs do not work any more, each described.
    pub(super) victims: Vec<String>,
    /// What the hostile publisher has sent.
    pub(super) sent: String,
    pub(super) suffered: Suffered,
}

impl Verdict<'_> {
    pub(super) fn note(self, row: &mut Row) {
        let Phases { calm, beside } = &self.phases;
        let requests = self.stage.upstream.book().requests();
        let (alone, attacked) = (Latencies::of(&requests, calm), Latencies::of(&requests, beside));
        row.note(format!("alone: {}; machine {} % busy", alone.line(), calm.busy_percent));
        row.note(format!("beside: {}; machine {} % busy", attacked.line(), beside.busy_percent));
        row.note(format!("messages of the hostile publisher: {}", self.sent));
        let Suffered { kills, cuts, .. } = &self.suffered;
        row.note(format!("connections cut by poison: {cuts}; processes killed by it: {}", kills.len()));

        // What was asked afterwards, of victims, is judged by itself.
        let until_now = requests.iter().filter(|sent| sent.asked_at_ms < beside.ms.end);
        let bad: Vec<_> = until_now.filter_map(|sent| not_ok(sent, beside.ms.start)).collect();
        row.promise("every honest request is answered ok", bad.is_empty());
        let allowed = (alone.percentile(99) * FACTOR).max(FLOOR_MS);
        let what = format!("the honest p99 is within twice that of the same run alone ({allowed} ms)");
        row.promise(what, attacked.percentile(99) <= allowed && attacked.all_answered());
        let what = format!("alone, the honest p99 is below {FIT_MS} ms, so that it can be compared");
        row.promise(what, alone.percentile(99) < FIT_MS);
        let honest = self.findings.letters.iter().filter(|letter| letter.request.is_some()).count();
        row.promise("no honest message is in the dead letters", honest == 0);
        let leaked = leaked(&self.stage.scms, &self.findings.letters);
        row.note(format!("dead letters: {}", self.findings.letters.len()));
        row.promise("no token is in clear in the dead letters", leaked.is_empty());
        row.promise("victims' pairs can still be refreshed, and work", self.victims.is_empty());
        row.promise("all workers are ready when it is over", self.ready.is_ok());
        self.note_memory(row);

        for what in bad {
            row.detail(format!("honest: {what}"));
        }
        for what in leaked {
            row.detail(format!("in clear: {what}"));
        }
        for what in self.victims {
            row.detail(format!("victim: {what}"));
        }
        if let Err(why) = self.ready {
            row.detail(format!("not ready: {why}"));
        }
    }

    fn note_memory(&self, row: &mut Row) {
        let size = |kib: Option<u64>| kib.map_or("gone".to_owned(), |kib| format!("{kib} KiB"));
        for Memory { worker, before, after } in &self.memory {
            row.note(format!("{worker}: {} of memory, at the end {}", size(*before), size(*after)));
        }
        if self.phases.beside.ms.end - self.phases.beside.ms.start < MEANINGFUL_MS {
            row.note("too short to tell whether memory grows");
            return;
        }
        let flat = |memory: &Memory| match (memory.before, memory.after) {
            (Some(before), Some(after)) => after <= before + GROWTH_KIB,
            _ => false,
        };
        row.promise("memory is flat", self.memory.iter().all(flat));
    }
}

/// How a request went that did not go as it should.
fn not_ok(sent: &Sent, began_ms: i64) -> Option<String> {
    let what = match sent.answers.first().map(|answer| &answer.what) {
        Some(Answered::Granted(_) | Answered::Stored) => return None,
        Some(Answered::Failed(failed)) => format!("{}: {}", failed.code, failed.message),
        None => "no answer".to_owned(),
    };
    let after = sent.asked_at_ms - began_ms;
    Some(format!("{} for {} after {after} ms: {what}", sent.id, sent.ask.user))
}

/// How long the requests of a phase took, in milliseconds, in order.
struct Latencies {
    took: Vec<i64>,
    unanswered: usize,
}

impl Latencies {
    fn of(requests: &[Sent], phase: &Phase) -> Self {
        let asked: Vec<_> = requests.iter().filter(|sent| phase.ms.contains(&sent.asked_at_ms)).collect();
        let mut took: Vec<_> = asked.iter().filter_map(|sent| sent.took_ms()).collect();
        took.sort_unstable();
        Self { unanswered: asked.len() - took.len(), took }
    }

    fn percentile(&self, percent: usize) -> i64 {
        let last = self.took.len().saturating_sub(1);
        self.took.get((self.took.len() * percent / 100).min(last)).copied().unwrap_or_default()
    }

    fn all_answered(&self) -> bool {
        self.unanswered == 0
    }

    fn line(&self) -> String {
        format!(
            "{} requests, p50 {} ms, p95 {} ms, p99 {} ms, longest {} ms",
            self.took.len() + self.unanswered,
            self.percentile(50),
            self.percentile(95),
            self.percentile(99),
            self.percentile(100),
        )
    }
}

/// Dead letters in which a token can be read that one of the hosts has issued.
fn leaked(scms: &[std::sync::Arc<SimulatedScm>], letters: &[Letter]) -> Vec<String> {
    let secrets: Vec<_> = scms.iter().flat_map(|scm| scm.secrets()).collect();
    let telltales: HashSet<_> =
        secrets.iter().filter_map(|secret| secret.as_bytes().get(..TELLTALE)).collect();
    let leaks =
        |letter: &&Letter| letter.text.as_bytes().windows(TELLTALE).any(|part| telltales.contains(part));
    letters.iter().filter(leaks).map(|letter| without_secrets(&letter.text)).collect()
}

/// The beginning of a letter, up to what looks like a body's first value.
fn without_secrets(text: &str) -> String {
    let end = text.find("value").unwrap_or(text.len()).min(600);
    text.char_indices().take_while(|(index, _)| *index < end).map(|(_, letter)| letter).collect()
}

/// Refreshes each victim's pair once more, and calls the host with what came of it. Gives back those for whom that did
/// not work.
pub(super) async fn refresh_once_more(stage: &Stage, victims: &[User]) -> Vec<String> {
    let until = Instant::now() + REFRESH_PATIENCE;
    let refreshes = stream::iter(victims).map(|user| async move {
        refresh(stage, user, until).await.err().map(|why| format!("{}: {why}", user.name))
    });
    refreshes.buffer_unordered(AT_ONCE).filter_map(async |victim| victim).collect().await
}

async fn refresh(stage: &Stage, user: &User, until: Instant) -> Result<(), String> {
    loop {
        let id = stage.upstream.send(stage.ask(user, VICTIM_LIFETIME_SECS));
        let why = match stage.upstream.answer(id, ANSWER_PATIENCE).await.map(|answer| answer.what) {
            Some(Answered::Granted(granted))
                if granted.refresh == "none" || granted.refresh == "reserved" =>
            {
                format!("it is not refreshed: {}", granted.refresh)
            }
            Some(Answered::Granted(granted)) => {
                let scm = stage.scm_of(user);
                let answer = http::client().get(scm.user_url()).bearer_auth(granted.token).send().await;
                let status = answer.map_err(|error| error.to_string())?.status();
                if status == StatusCode::OK {
                    return Ok(());
                }
                return Err(format!("the host answers {status} to the token that was handed out"));
            }
            Some(Answered::Failed(failed)) => format!("{}: {}", failed.code, failed.message),
            Some(Answered::Stored) | None => "no answer".to_owned(),
        };
        if Instant::now() > until {
            return Err(why);
        }
        sleep(Duration::from_secs(2)).await;
    }
}
