//! `[[publishers]]` and section `[access]`: which publisher may ask for what.
//!
//! A publisher is a user of the broker, as the AMQP property `user_id` names it. The broker refuses a message whose `user_id`
//! is not the connection's user (<https://www.rabbitmq.com/docs/validated-user-id>). So the property proves the publisher;
//! no other property, header or field does.

mod denied;
mod publishers;
mod rules;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

pub use self::denied::Denied;
pub use self::publishers::PublisherPolicy;
pub use self::rules::AccessRule;
use super::Settings;
use super::reader::Reader;
use crate::contract::{MessageKind, ReplyTo};
use crate::domain::problem::Problem;

const PUBLISHERS: &str = "publishers";
const RULES: &str = "access.rules";
const PUBLISHERS_REQUIRE_SEALED_REPLIES: &str = "publishers.require_sealed_replies";
const REQUIRE_SEALED_REPLIES: &str = "access.require_sealed_replies";
const REQUIRE_SEALED_STORES: &str = "access.require_sealed_stores";

/// Who may ask for what.
#[derive(Debug, Clone, Default)]
pub struct Access {
    pub policy: AccessPolicy,
    /// Whether every message must name its publisher. With a policy it must in any case.
    pub require_user_id: bool,
    /// A token is handed out only if it can be sealed to the requester's key.
    pub require_sealed_replies: bool,
    /// A login is taken only if it is sealed to a key of the deployment.
    pub require_sealed_stores: bool,
}

/// Which publishers there are. An empty policy denies everybody.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum AccessPolicy {
    /// The settings name none: the broker's permissions alone decide.
    #[default]
    Open,
    /// `access.rules`: any one matching rule is enough.
    Rules(Vec<AccessRule>),
    /// `[[publishers]]`, by their names at the broker.
    Publishers(BTreeMap<String, PublisherPolicy>),
}

/// What a message asks for, apart from its hosts.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// None: the message does not say.
    pub publisher: Option<&'a str>,
    pub message: MessageKind,
    pub user_id: &'a str,
    /// The lifetime that the message names itself.
    pub lifetime: Option<Duration>,
}

impl Access {
    /// Decides everything but the host. Looks at nothing that is stored, so that a refusal tells nothing of it.
    ///
    /// # Errors
    /// [`Denied`] says what the publisher may not do.
    pub fn admits(&self, asked: &Asked<'_>) -> Result<(), Denied> {
        let Asked { publisher, message, user_id, lifetime } = *asked;
        match (&self.policy, publisher) {
            (AccessPolicy::Open, None) if !self.require_user_id => Ok(()),
            (_, None) => Err(Denied::Unnamed),
            (AccessPolicy::Open, Some(_)) => Ok(()),
            (AccessPolicy::Rules(rules), Some(publisher)) => rules::admit(rules, publisher, message),
            (AccessPolicy::Publishers(policies), Some(publisher)) => {
                policies.get(publisher).ok_or(Denied::Unlisted)?.admits(message, user_id, lifetime)
            }
        }
    }

    /// Whether a publisher may send a message about a provider with this host.
    ///
    /// # Errors
    /// [`Denied`]: it may not.
    pub fn admits_host(
        &self,
        publisher: Option<&str>,
        message: MessageKind,
        host: &str,
    ) -> Result<(), Denied> {
        let allowed = match &self.policy {
            AccessPolicy::Open => true,
            AccessPolicy::Rules(rules) => publisher.is_some_and(|it| rules::give(rules, it, message, host)),
            AccessPolicy::Publishers(_) => self.policy_of(publisher).is_some_and(|it| it.has_host(host)),
        };
        if allowed { Ok(()) } else { Err(Denied::Host) }
    }

    /// Whether a publisher may have its replies there. One without a policy of its own may: it is told that it is denied.
    pub fn admits_reply_to(&self, publisher: Option<&str>, reply_to: &ReplyTo) -> bool {
        self.policy_of(publisher).is_none_or(|policy| policy.has_reply_queue(reply_to))
    }

    /// A lifetime that the publisher did not name itself: no longer than it may ask for.
    pub fn within_limit(&self, publisher: Option<&str>, lifetime: Duration) -> Duration {
        let most = self.policy_of(publisher).and_then(|policy| policy.max_lifetime);
        most.map_or(lifetime, |most| lifetime.min(most))
    }

    /// The setting by which this publisher must keep the token of such a message from the broker, if there is one. The only place
    /// where this is asked.
    pub fn must_seal(&self, publisher: Option<&str>, message: MessageKind) -> Option<&'static str> {
        match message {
            MessageKind::TokenRequest | MessageKind::WorkspaceStart if self.require_sealed_replies => {
                Some(REQUIRE_SEALED_REPLIES)
            }
            MessageKind::TokenRequest | MessageKind::WorkspaceStart => self
                .policy_of(publisher)
                .is_some_and(|policy| policy.require_sealed_replies)
                .then_some(PUBLISHERS_REQUIRE_SEALED_REPLIES),
            MessageKind::TokenStore => self.require_sealed_stores.then_some(REQUIRE_SEALED_STORES),
            MessageKind::TokenReport => None,
        }
    }

    /// The publisher, if the policy names it. There are no more of these than the settings have entries.
    pub fn listed<'a>(&self, publisher: Option<&'a str>) -> Option<&'a str> {
        publisher.filter(|publisher| match &self.policy {
            AccessPolicy::Open => false,
            AccessPolicy::Rules(rules) => rules.iter().any(|rule| rule.publisher == *publisher),
            AccessPolicy::Publishers(policies) => policies.contains_key(*publisher),
        })
    }

    /// The publishers that have a limit of messages a second of their own.
    pub fn own_limits(&self) -> impl Iterator<Item = (&str, NonZeroU32)> {
        let policies = match &self.policy {
            AccessPolicy::Publishers(policies) => Some(policies),
            AccessPolicy::Open | AccessPolicy::Rules(_) => None,
        };
        let of_all = policies.into_iter().flatten();
        of_all.filter_map(|(publisher, policy)| Some((publisher.as_str(), policy.requests_per_second?)))
    }

    pub const fn is_open(&self) -> bool {
        matches!(self.policy, AccessPolicy::Open)
    }

    fn policy_of(&self, publisher: Option<&str>) -> Option<&PublisherPolicy> {
        match &self.policy {
            AccessPolicy::Publishers(policies) => policies.get(publisher?),
            AccessPolicy::Open | AccessPolicy::Rules(_) => None,
        }
    }

    /// `prefix`: the start of our own queues' names.
    pub(super) fn read(from: &mut Reader, prefix: &str) -> Self {
        let (rules, publishers) = (rules::read(from), publishers::read(from, prefix));
        if rules.is_some() && publishers.is_some() {
            from.problem(RULES, "is set beside `publishers`; set one of the two");
        }
        let policy = publishers.or(rules).unwrap_or_else(|| {
            // Wrong settings are refused as a whole. Until then they open nothing.
            let is_written = from.is_set(RULES) || from.is_set(PUBLISHERS);
            if is_written { AccessPolicy::Rules(Vec::new()) } else { AccessPolicy::Open }
        });
        Self {
            policy,
            require_user_id: from.boolean("access.require_user_id").unwrap_or(false),
            require_sealed_replies: from.boolean(REQUIRE_SEALED_REPLIES).unwrap_or(false),
            require_sealed_stores: from.boolean(REQUIRE_SEALED_STORES).unwrap_or(false),
        }
    }
}

impl Settings {
    /// Tells of a worker that would give any token to any publisher, where others than this machine's programs may publish.
    pub fn unguarded(&self) -> Option<Problem> {
        let is_guarded = !self.access.is_open() || self.broker.nodes.are_on_this_machine();
        (!is_guarded).then(|| {
            let broker = self.broker.display_url();
            Problem::new(
                "every user of the broker may ask for every token (publishers)",
                format!("the settings name no publishers, and {broker} is not on this machine"),
                "rabbitmqctl list_users, and an entry under [[publishers]] for each that may ask",
            )
        })
    }
}

#[cfg(test)]
mod tests;
