//! The broker, and the dead letters there.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::broker::checks;
use crate::broker::dead_letters::{DeadLetters, DeadLettersError};
use crate::domain::finding::Finding;
use crate::domain::problem::Problem;
use crate::settings::Broker;

/// How long to wait while somebody else reads the dead letters.
const PATIENCE: Duration = Duration::from_secs(3);

/// Above it the letters are only counted: to read them takes them out of the queue for a moment.
const READ_AT_MOST: u32 = 10_000;

/// Whether a worker could do its job there, and whether anybody does.
pub(super) async fn look(settings: &Broker) -> Vec<Finding> {
    let problems = checks::check(settings).await;
    if !problems.is_empty() {
        return problems.into_iter().map(|problem| Finding::wrong("broker", problem)).collect();
    }
    let how = format!("{} lets a worker publish, declare and consume", settings.display_url());
    vec![Finding::good("broker", how), queues(settings).await]
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
        return Finding::good(CHECK, format!("{} of them, {waiting} messages wait", queues.len()));
    }
    let what = format!("messages wait that nobody takes: {}", left.join(", "));
    Finding::warning(CHECK, Problem::new(what, "no worker consumes these queues", "tokenkeeper worker"))
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
