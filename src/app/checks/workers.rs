//! The encryption keys in use, and the workers that there are.

use sea_orm::DatabaseConnection;

use crate::domain::finding::Finding;
use crate::domain::key_use::{Canary, Fit, KnownWorker, problem_with_ring, problem_with_settings};
use crate::domain::problem::Problem;
use crate::settings::Settings;
use crate::store::Store;

/// Nothing where the database cannot be read: other checks say so.
pub(super) async fn look(settings: &Settings, db: Option<DatabaseConnection>) -> Vec<Finding> {
    let Some(db) = db else { return Vec::new() };
    let keys = match settings.key_ring() {
        Ok(keys) => keys,
        Err(error) => return vec![Finding::not_looked("keys", error.to_string())],
    };
    let store = Store::new(db, keys);
    let keys = match store.canaries().await {
        Ok(canaries) => keys_in_use(&store, &canaries),
        Err(error) => Finding::not_looked("keys", error.to_string()),
    };
    let workers = match store.workers().await {
        Ok(known) => workers(known),
        Err(error) => Finding::not_looked("workers", error.to_string()),
    };
    vec![keys, workers]
}

/// Whether these settings have every key that rows use. A key that no worker has proven yet counts as right.
fn keys_in_use(store: &Store, canaries: &[Canary]) -> Finding {
    let of = |wanted: Fit| -> Vec<&str> {
        let those = canaries.iter().filter(|canary| canary.fit(store.keys()) == wanted);
        those.map(|canary| canary.key_id.as_str()).collect()
    };
    let problem = problem_with_ring(&of(Fit::Missing), &of(Fit::OtherKey));
    match problem.or_else(|| problem_with_settings(store.keys(), canaries)) {
        Some(problem) => Finding::wrong("keys", problem),
        None => Finding::good("keys", "all that rows are encrypted with are here"),
    }
}

fn workers(known: Vec<KnownWorker>) -> Finding {
    const CHECK: &str = "workers";
    let (living, silent): (Vec<_>, Vec<_>) =
        known.into_iter().filter(|worker| worker.command == "worker").partition(|worker| worker.is_living);
    let told = |workers: &[KnownWorker]| {
        let each = workers.iter().map(|worker| {
            format!("{} (version {}, last seen {})", worker.id, worker.version, worker.last_seen_at)
        });
        each.collect::<Vec<_>>().join(", ")
    };
    if !silent.is_empty() {
        let problem = Problem::new(
            format!("workers that said nothing for over a minute: {}", told(&silent)),
            "they were killed, are frozen, or do not reach the database",
            "look at their logs; a row that stays behind is removed after a day",
        );
        return Finding::warning(CHECK, problem);
    }
    if living.is_empty() {
        return Finding::warning(CHECK, Problem::new("no worker runs", "", "tokenkeeper worker"));
    }
    Finding::good(CHECK, format!("{}: {}", living.len(), told(&living)))
}
