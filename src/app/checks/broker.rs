//! The broker, and the dead letters there.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join;

use crate::broker::checks::{self, Checked};
use crate::broker::dead_letters::{DeadLetters, DeadLettersError};
use crate::broker::{policies, version};
use crate::domain::escape;
use crate::domain::finding::Finding;
use crate::domain::problem::{Problem, of_system};
use crate::parking::{Spool, waiting};
use crate::settings::{Broker, Settings, Topology};

/// How long to wait while somebody else reads the dead letters.
const PATIENCE: Duration = Duration::from_secs(3);

/// Above it the letters are only counted: to read them takes them out of the queue for a moment.
const READ_AT_MOST: u32 = 10_000;

/// Whether a worker could do its job there, and whether anybody does.
pub(super) async fn look(settings: &Broker) -> Vec<Finding> {
    let (Checked { problems, blocked }, version) = join(checks::check(settings), version(settings)).await;
    if !problems.is_empty() {
        return problems.into_iter().map(|problem| Finding::wrong("broker", problem)).collect();
    }
    let version = version.unwrap_or_else(|| "a broker that does not say its version".to_owned());
    let at = settings.display_url();
    let how = format!("{version} at {at} lets a worker publish, declare and consume");
    let mut findings = vec![Finding::good("broker", how), alarms(blocked), queues(settings).await];
    findings.extend(limits(settings));
    findings
}

/// What policies are to say, where limits are left to them. A client cannot ask which there are.
fn limits(settings: &Broker) -> Option<Finding> {
    let policies = policies(settings);
    let commands = policies.iter().map(|command| format!("`{command}`")).collect::<Vec<_>>().join(" and ");
    (!policies.is_empty()).then(|| Finding::good("queue limits", format!("by policy, as set by {commands}")))
}

fn alarms(blocked: Option<String>) -> Finding {
    const CHECK: &str = "broker alarms";
    let Some(reason) = blocked else { return Finding::good(CHECK, "none: it takes messages") };
    Finding::wrong(
        CHECK,
        Problem::new(
            "the broker takes no messages at the moment, so no reply either",
            format!("an alarm of its memory or disk: {}", escape::line(&reason)),
            "`rabbitmq-diagnostics alarms` where it runs; then free some of its memory or disk",
        ),
    )
}

async fn queues(settings: &Broker) -> Finding {
    const CHECK: &str = "queues";
    let queues = match checks::queues(settings).await {
        Ok(queues) => queues,
        Err(error) => return Finding::not_looked(CHECK, error.to_string()),
    };
    let left: Vec<String> = queues
        .iter()
        .filter(|queue| queue.messages > 0 && queue.consumers == 0)
        .map(|queue| format!("{} in {}", queue.messages, queue.name))
        .collect();
    if left.is_empty() {
        let waiting: u32 = queues.iter().map(|queue| queue.messages).sum();
        // Where they were not, `checks::check` has said so.
        let arguments = match settings.topology {
            Topology::Declare => " with the arguments that a worker declares",
            Topology::Passive | Topology::None => "",
        };
        return Finding::good(CHECK, format!("{} of them{arguments}, {waiting} messages wait", queues.len()));
    }
    let what = format!("messages wait that nobody takes: {}", left.join(", "));
    Finding::warning(CHECK, Problem::new(what, "no worker consumes these queues", "tokenkeeper worker"))
}

/// Refreshed pairs that no worker has stored yet: on the queue, and in this machine's spool folder.
pub(super) async fn parked_pairs(settings: &Settings) -> Vec<Finding> {
    const CHECK: &str = "parked pairs";
    let spool = Spool::new(&settings.worker.spool_dir);
    let (queued, spooled) =
        join(waiting::on_the_queue(&settings.broker), waiting::in_the_folder(&spool)).await;
    let count = |pairs: &waiting::PairsByKey| pairs.values().sum::<u64>();
    let (queued, spooled) = match (queued, spooled) {
        (Ok(queued), Ok(spooled)) => (count(&queued), count(&spooled)),
        (Err(error), _) => return vec![Finding::not_looked(CHECK, error.to_string())],
        (_, Err(error)) => return vec![Finding::not_looked(CHECK, of_system(&error))],
    };
    if queued + spooled == 0 {
        return vec![Finding::good(CHECK, "none waits")];
    }
    let folder = spool.folder().display();
    let what = format!("refreshed pairs wait to be stored: {queued} on the queue, {spooled} in {folder}");
    let next = "start a worker, which stores them; `tokenkeeper keys status` shows which keys they need";
    let cause = "their workers had to stop while the database was away, and no worker has stored them since";
    vec![Finding::warning(CHECK, Problem::new(what, cause, next))]
}

/// How many there are, by reason.
pub(super) async fn dead_letters(settings: &Broker) -> Vec<Finding> {
    const CHECK: &str = "dead letters";
    let finding = match count(settings).await {
        Ok(reasons) if reasons.is_empty() => Finding::good(CHECK, "there are none"),
        Ok(reasons) => {
            let all: u32 = reasons.values().sum();
            let by_reason: Vec<String> =
                reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
            let letters = if all == 1 { "letter" } else { "letters" };
            let what = format!("{all} dead {letters}: {}", by_reason.join(", "));
            Finding::warning(CHECK, Problem::new(what, "nobody could answer them", "tokenkeeper dead list"))
        }
        Err(DeadLettersError::NoQueue { queue, .. }) => {
            Finding::good(CHECK, format!("there is no queue {queue} yet: a worker declares it"))
        }
        Err(error) => Finding::not_looked(CHECK, error.to_string()),
    };
    vec![finding]
}

async fn count(settings: &Broker) -> Result<BTreeMap<String, u32>, DeadLettersError> {
    let mut letters = DeadLetters::open(settings, PATIENCE, || {}).await?;
    let mut reasons = BTreeMap::new();
    if letters.waiting() > READ_AT_MOST {
        reasons.insert("of any reason".to_owned(), letters.waiting());
    } else {
        while let Some(letter) = letters.next().await? {
            *reasons.entry(letter.reason()).or_default() += 1;
        }
    }
    letters.close().await?;
    Ok(reasons)
}
