//! `access.rules`, from before there were `[[publishers]]`.

use serde::Deserialize;

use super::{AccessPolicy, Denied, RULES};
use crate::contract::MessageKind;
use crate::settings::reader::Reader;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessRule {
    /// A user of the broker, from the AMQP property `user_id`.
    pub publisher: String,
    /// Hosts whose tokens it may have. `*`: every host.
    pub hosts: Vec<String>,
    pub messages: Vec<MessageKind>,
}

const EVERY_HOST: &str = "*";

pub(super) fn read(from: &mut Reader) -> Option<AccessPolicy> {
    let rules: Vec<AccessRule> = from.list(RULES)?;
    for (index, rule) in rules.iter().enumerate() {
        if let Some(problem) = rule.problem() {
            from.problem(RULES, format!("rule {}: {problem}", index + 1));
        }
    }
    Some(AccessPolicy::Rules(rules))
}

/// Whether some rule lets the publisher send such messages, about whatever host.
pub(super) fn admit(rules: &[AccessRule], publisher: &str, message: MessageKind) -> Result<(), Denied> {
    let mut of_publisher = rules.iter().filter(|rule| rule.publisher == publisher).peekable();
    if of_publisher.peek().is_none() {
        Err(Denied::Unlisted)
    } else if of_publisher.any(|rule| rule.messages.contains(&message)) {
        Ok(())
    } else {
        Err(Denied::Message)
    }
}

pub(super) fn give(rules: &[AccessRule], publisher: &str, message: MessageKind, host: &str) -> bool {
    rules.iter().any(|rule| {
        rule.publisher == publisher
            && rule.messages.contains(&message)
            && rule.hosts.iter().any(|allowed| allowed == EVERY_HOST || allowed == host)
    })
}

impl AccessRule {
    /// Finds a rule that can never match.
    fn problem(&self) -> Option<&'static str> {
        let odd_host = |host: &String| host.is_empty() || host.contains(['/', '@']) || is_pattern(host);
        if self.publisher.is_empty() {
            Some("`publisher` must name a user of the broker")
        } else if self.messages.is_empty() {
            Some(
                "`messages` must name at least one of token.request, workspace.start, token.store, token.report",
            )
        } else if self.hosts.is_empty() || self.hosts.iter().any(odd_host) {
            Some(
                "`hosts` must list hosts like \"git.example.org\" or \"git.example.org:8443\", or be [\"*\"] for every host",
            )
        } else {
            None
        }
    }
}

fn is_pattern(host: &str) -> bool {
    host.contains('*') && host != EVERY_HOST
}
