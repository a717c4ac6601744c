//! The checks of `tokenkeeper doctor`. What a worker proves at its start is proved by the same code here, without a worker.
//!
//! Each check has a time limit of its own, and they run side by side: one that hangs does not stop the others.

mod access;
mod broker;
mod database;
mod files;
mod providers;
mod tls;
mod workers;

use std::time::Duration;

use futures_util::future::join;
use tokio::time::timeout;

use self::database::Looked;
use crate::domain::finding::{Finding, Verdict};
use crate::settings::Settings;

/// How long one check may take.
const LIMIT: Duration = Duration::from_secs(15);

/// Runs all checks. The findings come in the order in which a worker needs what they are about.
pub async fn run(settings: &Settings) -> Vec<Finding> {
    let of_database = async {
        let Looked { mut findings, db } = database::look(&settings.database, LIMIT).await;
        findings.extend(within("workers", LIMIT, workers::look(settings, db.clone())).await);
        findings.extend(providers::look(settings, db, LIMIT).await);
        findings
    };
    let of_broker = async {
        let mut findings = within("broker", LIMIT, Box::pin(broker::look(&settings.broker))).await;
        if matches!(findings[..], [Finding { verdict: Verdict::Good(_), .. }, ..]) {
            findings.extend(within("dead letters", LIMIT, broker::dead_letters(&settings.broker)).await);
            findings.extend(within("parked pairs", LIMIT, broker::parked_pairs(settings)).await);
        } else {
            for check in ["dead letters", "parked pairs"] {
                findings.push(Finding::not_looked(check, "the broker cannot be used"));
            }
        }
        findings
    };
    let (mut findings, of_broker) = join(Box::pin(of_database), Box::pin(of_broker)).await;
    findings.extend(of_broker);
    findings.extend([tls::of_broker(&settings.broker), tls::of_database(&settings.database)]);
    findings.extend(within("files", LIMIT, files::look(settings)).await);
    findings.push(access::look(settings));
    findings
}

/// What a check found, or that it took too long.
async fn within(check: &str, limit: Duration, look: impl Future<Output = Vec<Finding>>) -> Vec<Finding> {
    let found = timeout(limit, look).await;
    found.unwrap_or_else(|_| {
        vec![Finding::not_looked(check, format!("no answer within {} s", limit.as_secs()))]
    })
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_check_that_hangs_is_told_and_ends() {
        let found = within("provider", Duration::from_secs(2), pending()).await;
        let [Finding { check, verdict: Verdict::NotLooked(why) }] = &found[..] else { panic!("{found:?}") };
        assert_eq!((check.as_str(), why.as_str()), ("provider", "no answer within 2 s"));
    }
}
