//! What an operator sets by policy, where `broker.queue_arguments` leaves it to policies.

use serde_json::{Value, json};

use super::Names;
use crate::broker::diagnosis::word;
use crate::settings::{Broker, QueueArguments};

/// The commands that set what the settings say. None, where the worker declares it.
pub fn policies(settings: &Broker) -> Vec<String> {
    if settings.queue_arguments == QueueArguments::Declare {
        return Vec::new();
    }
    let vhost = settings.nodes.uri().vhost;
    let set = |name: String, pattern: String, definition: Value| {
        let (vhost, name) = (word(&vhost), word(&name));
        format!("rabbitmqctl set_policy -p {vhost} --apply-to queues {name} '{pattern}' '{definition}'")
    };
    let escaped = settings.prefix.replace('.', "\\.");
    let work = "(token-requests|workspace-starts|token-stores|token-reports|suspects|isolated)";
    let mut commands = vec![set(
        format!("{}.work", settings.prefix),
        format!("^{escaped}\\.{work}(\\.[0-9]+)?$"),
        json!({"delivery-limit": settings.delivery_limit}),
    )];
    let mut bounds = serde_json::Map::new();
    if settings.dead_letters_max_length > 0 {
        bounds.insert("max-length".to_owned(), settings.dead_letters_max_length.into());
    }
    if !settings.dead_letters_max_age.is_zero() {
        let millis = u64::try_from(settings.dead_letters_max_age.as_millis()).unwrap_or(u64::MAX);
        bounds.insert("message-ttl".to_owned(), millis.into());
    }
    if !bounds.is_empty() {
        let name = Names::new(&settings.prefix).dead_letters();
        let pattern = format!("^{}$", name.replace('.', "\\."));
        commands.push(set(name, pattern, bounds.into()));
    }
    commands
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::settings::Settings;

    const DOCUMENT: &str = include_str!("../../../docs/operating.md");

    fn of(set: &[(&str, &str)]) -> Vec<String> {
        let variable =
            |(key, value): &(&str, &str)| (format!("TOKENKEEPER__BROKER__{key}"), (*value).to_owned());
        let environment: HashMap<_, _> = set.iter().map(variable).collect();
        policies(&Settings::load_from(None, environment).unwrap().broker)
    }

    #[test]
    fn the_document_has_the_policies_of_the_defaults_and_of_bounded_dead_letters() {
        assert!(of(&[]).is_empty(), "the worker declares it");
        let bounded = of(&[
            ("QUEUE_ARGUMENTS", "policy"),
            ("DEAD_LETTERS_MAX_LENGTH", "100000"),
            ("DEAD_LETTERS_MAX_AGE_SECS", "604800"),
        ]);
        assert_eq!((of(&[("QUEUE_ARGUMENTS", "policy")]).len(), bounded.len()), (1, 2));
        for command in bounded {
            assert!(DOCUMENT.contains(&command), "docs/operating.md should have:\n{command}");
        }
    }

    #[test]
    fn a_dot_of_the_prefix_stays_a_dot() {
        let command = of(&[("QUEUE_ARGUMENTS", "policy"), ("PREFIX", "a.b")]).remove(0);
        assert!(command.contains(r" a.b.work '^a\.b\.(token-requests|"), "{command}");
    }
}
