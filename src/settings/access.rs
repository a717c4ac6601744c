use serde::Deserialize;

use super::reader::Reader;
use crate::contract::MessageKind;

/// Which publisher may ask for what. Without rules only the broker's own permissions decide.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Any one matching rule is enough.
    pub rules: Vec<AccessRule>,
}

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
const RULES: &str = "access.rules";

impl Access {
    /// Whether `publisher` may send `message` about `host`.
    ///
    /// The broker refuses a message whose `user_id` is not the connection's user. So the property proves the publisher.
    /// Without it the publisher is unknown, and no rule matches.
    pub fn allows(&self, publisher: Option<&str>, message: MessageKind, host: &str) -> bool {
        self.rules.is_empty()
            || publisher
                .is_some_and(|publisher| self.rules.iter().any(|rule| rule.gives(publisher, message, host)))
    }

    pub(super) fn read(from: &mut Reader) -> Self {
        let rules: Vec<AccessRule> = from.list(RULES).unwrap_or_default();
        for (index, rule) in rules.iter().enumerate() {
            if let Some(problem) = rule.problem() {
                from.problem(RULES, format!("rule {}: {problem}", index + 1));
            }
        }
        Self { rules }
    }
}

impl AccessRule {
    fn gives(&self, publisher: &str, message: MessageKind, host: &str) -> bool {
        self.publisher == publisher
            && self.messages.contains(&message)
            && self.hosts.iter().any(|allowed| allowed == EVERY_HOST || allowed == host)
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(publisher: &str, hosts: &[&str], messages: &[MessageKind]) -> AccessRule {
        AccessRule {
            publisher: publisher.into(),
            hosts: hosts.iter().map(|&host| host.into()).collect(),
            messages: messages.into(),
        }
    }

    #[test]
    fn without_rules_everyone_may_have_everything() {
        assert!(Access::default().allows(None, MessageKind::TokenStore, "git.example.org"));
    }

    #[test]
    fn a_publisher_has_what_its_rules_give_and_nothing_else() {
        use MessageKind::{TokenRequest, TokenStore, WorkspaceStart};
        let access = Access {
            rules: vec![
                rule("server", &["git.example.org"], &[TokenRequest]),
                rule("server", &["*"], &[WorkspaceStart]),
                rule("login", &["git.example.org:8443"], &[TokenStore]),
            ],
        };
        let cases = [
            (Some("server"), TokenRequest, "git.example.org", true),
            (Some("server"), TokenRequest, "git.example.org:8443", false),
            (Some("server"), TokenRequest, "other.example.org", false),
            (Some("server"), WorkspaceStart, "other.example.org", true),
            (Some("server"), TokenStore, "git.example.org", false),
            (Some("login"), TokenStore, "git.example.org:8443", true),
            (Some("login"), TokenStore, "git.example.org", false),
            (Some("Server"), WorkspaceStart, "git.example.org", false),
            (Some("nobody"), WorkspaceStart, "git.example.org", false),
            (None, WorkspaceStart, "git.example.org", false),
        ];
        for (publisher, message, host, allowed) in cases {
            assert_eq!(access.allows(publisher, message, host), allowed, "{publisher:?} {message:?} {host}");
        }
    }
}
