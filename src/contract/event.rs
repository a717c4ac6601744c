//! What tokenkeeper publishes to the exchange of events.

use schemars::JsonSchema;
use serde::Serialize;

use super::reply::ErrorReason;
use crate::domain::clock::Timestamp;
use crate::domain::escape;

/// Something that happened. The routing key is its name. No field is a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(tag = "event")]
pub enum Event {
    /// A user's refresh token is dead: the user must log in again. Once for each pair.
    #[serde(rename = "token.reauthorization_required")]
    ReauthorizationRequired {
        /// The provider's host.
        host: String,
        /// The platform's user.
        user_id: String,
        /// When it was found out.
        at: Timestamp,
        /// Which pair: counts the pairs stored for this user at this host.
        generation: i64,
        /// How it came to that.
        reason: ErrorReason,
    },
    /// A new pair is stored.
    #[serde(rename = "token.refreshed")]
    TokenRefreshed {
        /// The provider's host.
        host: String,
        /// The platform's user.
        user_id: String,
        /// When it was stored.
        at: Timestamp,
        /// Which pair it is.
        generation: i64,
        /// Why it was refreshed.
        cause: RefreshCause,
        /// When the new access token expires; null: never.
        expires_at: Option<Timestamp>,
    },
    /// A worker leaves a host alone, because it failed call after call or asked for it.
    #[serde(rename = "provider.unavailable")]
    ProviderUnavailable {
        /// The provider's host.
        host: String,
        /// When that began.
        at: Timestamp,
        /// After how many seconds the worker tries again.
        retry_after_secs: u64,
        /// What the last call came to, in words.
        reason: String,
    },
    /// A host that was unavailable or refused everybody works again.
    #[serde(rename = "provider.recovered")]
    ProviderRecovered {
        /// The provider's host.
        host: String,
        /// When it was found out.
        at: Timestamp,
    },
    /// A host refuses everybody's refresh token: its settings are wrong, and an operator must act. No user is asked
    /// to log in again for it.
    #[serde(rename = "provider.misconfigured")]
    ProviderMisconfigured {
        /// The provider's host.
        host: String,
        /// When it was found out.
        at: Timestamp,
        /// Since when it has refused everybody.
        since: Timestamp,
        /// What it last said, in words.
        reason: String,
    },
}

/// Why a token was refreshed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RefreshCause {
    /// It was still valid, and nobody held it.
    Opportunistic,
    /// It did not live as long as requested.
    Required,
}

impl Event {
    /// The names of all events.
    pub const NAMES: [&'static str; 5] = [
        "token.reauthorization_required",
        "token.refreshed",
        "provider.unavailable",
        "provider.recovered",
        "provider.misconfigured",
    ];

    /// Its name: the routing key, the AMQP `type`, and the field `event`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::ReauthorizationRequired { .. } => "token.reauthorization_required",
            Self::TokenRefreshed { .. } => "token.refreshed",
            Self::ProviderUnavailable { .. } => "provider.unavailable",
            Self::ProviderRecovered { .. } => "provider.recovered",
            Self::ProviderMisconfigured { .. } => "provider.misconfigured",
        }
    }

    /// The JSON body.
    #[allow(
        clippy::expect_used,
        clippy::missing_panics_doc,
        reason = "every field of an event has a JSON form"
    )]
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        escape::write_json(&mut body, self).expect("an event has a JSON form");
        body
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn nothing_of_an_older_row_leaves_raw() {
        let (host, reason) = ("h\u{9b}2J".to_owned(), "a\u{202e}b\n\u{1b}\u{7f}".to_owned());
        let event =
            Event::ProviderUnavailable { host, at: Timestamp::from_millis(0), retry_after_secs: 1, reason };
        let body = String::from_utf8(event.encode()).unwrap();
        assert!(escape::is_printable(&body), "{body:?}");
        let read: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            (&read["host"], &read["reason"]),
            (&"h\u{9b}2J".into(), &"a\u{202e}b\n\u{1b}\u{7f}".into())
        );
    }

    #[test]
    fn the_name_in_the_body_is_the_routing_key() {
        let (host, at) = ("git.example.org".to_owned(), Timestamp::from_millis(0));
        let user_id = "u-1".to_owned();
        let events = [
            Event::ReauthorizationRequired {
                host: host.clone(),
                user_id: user_id.clone(),
                at,
                generation: 1,
                reason: ErrorReason::RefreshTokenRefused,
            },
            Event::TokenRefreshed {
                host: host.clone(),
                user_id,
                at,
                generation: 2,
                cause: RefreshCause::Required,
                expires_at: None,
            },
            Event::ProviderUnavailable { host: host.clone(), at, retry_after_secs: 1, reason: String::new() },
            Event::ProviderRecovered { host: host.clone(), at },
            Event::ProviderMisconfigured { host, at, since: at, reason: String::new() },
        ];
        for (event, name) in events.iter().zip(Event::NAMES) {
            let body: Value = serde_json::from_slice(&event.encode()).unwrap();
            assert_eq!((event.name(), &body["event"]), (name, &Value::from(name)));
        }
    }
}
