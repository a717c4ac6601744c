//! The broker, and the dead letters there.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::broker::dead_letters::{DeadLetters, DeadLettersError};
use crate::broker::{connect, may_publish, take_leave};
use crate::domain::finding::Finding;
use crate::domain::problem::Problem;
use crate::settings::Broker;

/// How long to wait while somebody else reads the dead letters.
const PATIENCE: Duration = Duration::from_secs(3);

/// Above it the letters are only counted: to read them takes them out of the queue for a moment.
const READ_AT_MOST: u32 = 10_000;

/// Whether a worker can connect, and publish its replies.
pub(super) async fn look(settings: &Broker) -> Vec<Finding> {
    let connection = match connect(settings, "tokenkeeper doctor").await {
        Ok(connection) => connection,
        Err(error) => {
            let what = format!("the broker at {} cannot be used (broker.url)", settings.display_url());
            let next = "rabbitmq-diagnostics check_running on the broker, or correct broker.url";
            return vec![Finding::wrong("broker", Problem::new(what, error.to_string(), next))];
        }
    };
    let published = may_publish(&connection, settings).await;
    take_leave(&connection).await;
    let reached = Finding::good("broker", format!("{} is reached", settings.display_url()));
    let published = match published {
        Ok(()) => Finding::good("replies", "may be published to the default exchange"),
        Err(error) => {
            let next = "rabbitmqctl set_permissions, with write for `amq.default`";
            let what = "replies cannot be published to the default exchange (broker.url)";
            Finding::wrong("replies", Problem::new(what, error.to_string(), next))
        }
    };
    vec![reached, published]
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
            let what = format!("{all} dead letters: {}", by_reason.join(", "));
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
