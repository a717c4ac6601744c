//! Who may ask for tokens.

use crate::domain::finding::Finding;
use crate::settings::{AccessPolicy, Settings};

pub(super) fn look(settings: &Settings) -> Finding {
    const CHECK: &str = "publishers";
    match (settings.unguarded(), &settings.access.policy) {
        (Some(problem), _) => Finding::warning(CHECK, problem),
        (None, AccessPolicy::Open) => {
            Finding::good(CHECK, "the settings name none, and only this machine reaches the broker")
        }
        (None, AccessPolicy::Rules(rules)) => {
            Finding::good(CHECK, format!("{} access rules hold", rules.len()))
        }
        (None, AccessPolicy::Publishers(policies)) => {
            let names: Vec<&str> = policies.keys().map(String::as_str).collect();
            let told = if names.is_empty() { "nobody may ask".to_owned() } else { names.join(", ") };
            Finding::good(CHECK, told)
        }
    }
}
