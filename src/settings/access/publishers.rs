//! `[[publishers]]`: one entry for each user of the broker that may publish.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::num::NonZeroU32;
use std::time::Duration;

use serde::Deserialize;

use super::{AccessPolicy, Denied, PUBLISHERS};
use crate::contract::{DIRECT_REPLY_TO, LifetimeSecs, MessageKind, ReplyTo};
use crate::domain::escape::is_printable;
use crate::domain::pattern::{HostPattern, TextPattern};
use crate::domain::text::{Host, UserId};
use crate::settings::reader::Reader;

/// Names of queues and of the broker's users have at most so many bytes (AMQP 0-9-1, short string).
const MAX_NAME_LEN: usize = 255;
const MOST_PER_SECOND: u32 = 1_000_000;

/// What one publisher may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublisherPolicy {
    pub messages: Vec<MessageKind>,
    pub hosts: Vec<HostPattern>,
    /// The users whose tokens it may have or report.
    pub users: Vec<TextPattern>,
    /// The users whose pairs it may store and replace.
    pub may_store_for: Vec<TextPattern>,
    /// The longest lifetime that it may ask for. None: the contract's.
    pub max_lifetime: Option<Duration>,
    /// In place of `limits.publisher_requests_per_second`.
    pub requests_per_second: Option<NonZeroU32>,
    /// The queues that it may name in `reply_to`. None: every queue that the contract lets anybody name.
    pub reply_queues: Option<Vec<TextPattern>>,
    /// Whether it gets tokens in sealed replies alone.
    pub require_sealed_replies: bool,
}

impl PublisherPolicy {
    /// Lets a publisher do nothing.
    pub const fn nothing() -> Self {
        Self {
            messages: Vec::new(),
            hosts: Vec::new(),
            users: Vec::new(),
            may_store_for: Vec::new(),
            max_lifetime: None,
            requests_per_second: None,
            reply_queues: None,
            require_sealed_replies: false,
        }
    }

    pub(super) fn admits(
        &self,
        message: MessageKind,
        user_id: &str,
        lifetime: Option<Duration>,
    ) -> Result<(), Denied> {
        if !self.messages.contains(&message) {
            return Err(Denied::Message);
        }
        let (users, denied) = match message {
            MessageKind::TokenStore => (&self.may_store_for, Denied::StoreFor),
            MessageKind::TokenRequest | MessageKind::WorkspaceStart | MessageKind::TokenReport => {
                (&self.users, Denied::User)
            }
        };
        if !users.iter().any(|pattern| pattern.matches(user_id)) {
            return Err(denied);
        }
        match self.max_lifetime {
            Some(most) if lifetime.is_some_and(|lifetime| lifetime > most) => {
                Err(Denied::Lifetime { most_secs: most.as_secs() })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn has_host(&self, host: &str) -> bool {
        self.hosts.iter().any(|pattern| pattern.matches(host))
    }

    pub(super) fn has_reply_queue(&self, reply_to: &ReplyTo) -> bool {
        // The broker writes a direct reply-to, so its publisher cannot know the name.
        let name = match reply_to {
            ReplyTo::Queue(_) => reply_to.as_str(),
            ReplyTo::Direct(_) => DIRECT_REPLY_TO,
        };
        self.reply_queues.as_ref().is_none_or(|patterns| patterns.iter().any(|it| it.matches(name)))
    }
}

/// An entry as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    amqp_user: String,
    messages: Vec<MessageKind>,
    hosts: Vec<String>,
    users: Option<Vec<String>>,
    may_store_for: Option<Vec<String>>,
    max_lifetime_secs: Option<i64>,
    requests_per_second: Option<i64>,
    reply_queues: Option<Vec<String>>,
    #[serde(default)]
    require_sealed_replies: bool,
}

pub(super) fn read(from: &mut Reader, prefix: &str) -> Option<AccessPolicy> {
    let entries: Vec<Entry> = from.list(PUBLISHERS)?;
    let mut policies = BTreeMap::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let place = format!("entry {} (`{}`)", index + 1, entry.amqp_user);
        for problem in entry.problems(prefix) {
            from.problem(PUBLISHERS, format!("{place}: {problem}"));
        }
        let (amqp_user, policy) = entry.into_policy();
        if policies.insert(amqp_user, policy).is_some() {
            from.problem(
                PUBLISHERS,
                format!("{place}: this `amqp_user` has an entry already; make them one"),
            );
        }
    }
    Some(AccessPolicy::Publishers(policies))
}

impl Entry {
    /// What is out of range, and what could never match.
    fn problems(&self, prefix: &str) -> Vec<String> {
        let is_name = |name: &str| (1..=MAX_NAME_LEN).contains(&name.len()) && is_printable(name);
        let mut problems = Vec::new();
        let mut unless = |right: bool, problem: &str| {
            if !right {
                problems.push(problem.to_owned());
            }
        };
        unless(
            is_name(&self.amqp_user) && !self.amqp_user.contains('*'),
            "`amqp_user` must be the name of one user of the broker, as `rabbitmqctl list_users` shows it",
        );
        unless(
            !self.messages.is_empty(),
            "`messages` must name at least one of token.request, workspace.start, token.store, token.report",
        );
        unless(
            are_all(&self.hosts, |host| Host::try_from(host).is_ok()),
            "`hosts` must list hosts like \"git.example.org:8443\" or patterns like \"*.example.org\", or be [\"*\"]",
        );
        let is_user = |user: &str| UserId::try_from(user).is_ok();
        unless(
            self.may_store_for.is_some() == self.stores(),
            if self.stores() {
                "`may_store_for` is missing: it lists the users whose pairs this publisher may replace by token.store"
            } else {
                "`may_store_for` has no effect without \"token.store\" in `messages`"
            },
        );
        unless(
            self.may_store_for.as_deref().is_none_or(|users| are_all(users, is_user)),
            "`may_store_for` must list user ids, or patterns like \"ci-*\", or be [\"*\"]",
        );
        unless(
            self.users.is_some() == self.asks(),
            if self.asks() {
                "`users` is missing: it lists the users whose tokens this publisher may have; [\"*\"] is every user"
            } else {
                "`users` has no effect on token.store; `may_store_for` lists the users whose pairs may be stored"
            },
        );
        unless(
            self.users.as_deref().is_none_or(|users| are_all(users, is_user)),
            "`users` must list user ids, or patterns like \"ci-*\", or be [\"*\"]",
        );
        unless(
            self.reply_queues.as_deref().is_none_or(|queues| {
                are_all(queues, |queue| is_name(queue) && may_be_reply_queue(queue, prefix))
            }),
            "`reply_queues` must list queues or patterns like \"ci.replies.*\", or amq.rabbitmq.reply-to; replies go to \
             no other queue of `amq.`, and to none of `broker.prefix`",
        );
        let is_reserving =
            |kind: &MessageKind| matches!(kind, MessageKind::TokenRequest | MessageKind::WorkspaceStart);
        unless(
            self.max_lifetime_secs.is_none() || self.messages.iter().any(is_reserving),
            "`max_lifetime_secs` has no effect without \"token.request\" or \"workspace.start\" in `messages`",
        );
        problems.extend(out_of_range("max_lifetime_secs", self.max_lifetime_secs, LifetimeSecs::MAX));
        problems.extend(out_of_range("requests_per_second", self.requests_per_second, MOST_PER_SECOND));
        problems
    }

    fn stores(&self) -> bool {
        self.messages.contains(&MessageKind::TokenStore)
    }

    /// Whether it may send anything but logins.
    fn asks(&self) -> bool {
        self.messages.iter().any(|kind| *kind != MessageKind::TokenStore)
    }

    /// The policy. Whatever is wrong was told, and gives nothing.
    fn into_policy(self) -> (String, PublisherPolicy) {
        fn texts(patterns: Vec<String>) -> Vec<TextPattern> {
            patterns.into_iter().map(TextPattern::new).collect()
        }
        let number = |number: Option<i64>| number.and_then(|number| u32::try_from(number).ok());
        let policy = PublisherPolicy {
            messages: self.messages,
            hosts: self.hosts.into_iter().map(HostPattern::new).collect(),
            users: texts(self.users.unwrap_or_default()),
            may_store_for: texts(self.may_store_for.unwrap_or_default()),
            max_lifetime: number(self.max_lifetime_secs).map(|secs| Duration::from_secs(secs.into())),
            requests_per_second: number(self.requests_per_second).and_then(NonZeroU32::new),
            reply_queues: self.reply_queues.map(texts),
            require_sealed_replies: self.require_sealed_replies,
        };
        (self.amqp_user, policy)
    }
}

fn are_all(texts: &[String], fits: impl Fn(&str) -> bool) -> bool {
    !texts.is_empty() && texts.iter().all(|text| fits(text))
}

/// Whether a request may name such a queue at all ([`ReplyTo`]).
fn may_be_reply_queue(pattern: &str, prefix: &str) -> bool {
    let is_ours = pattern.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    let is_reserved = pattern.starts_with("amq.") && !TextPattern::new(pattern).matches(DIRECT_REPLY_TO);
    !is_ours && !is_reserved
}

fn out_of_range(key: &str, number: Option<i64>, most: impl Into<i64> + Display + Copy) -> Option<String> {
    let number = number.filter(|number| !(1..=most.into()).contains(number))?;
    Some(format!("`{key}` must be a whole number from 1 to {most}; it is `{number}`"))
}
