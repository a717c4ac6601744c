//! What a requester gets: a token, and what the reply says about it.

use std::{fmt, time::Duration};

use anyhow::{Context, Result, bail};
use chrono::DateTime;
use serde_json::Value;

/// An access token, of which only the end is ever shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token(String);

impl Token {
    pub(crate) fn new(value: &str) -> Self {
        Self(value.to_owned())
    }

    /// All of it.
    pub(crate) fn value(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (start, _) = self.0.char_indices().nth_back(3).unwrap_or_default();
        write!(f, "…{}", &self.0[start..])
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A token that was handed out. Times are epoch milliseconds.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) token: Token,
    /// What the request did: `none`, `reserved`, `opportunistic` or `required`.
    pub(crate) refresh: String,
    pub(crate) warnings: Vec<String>,
    pub(crate) expires_at_ms: i64,
    pub(crate) reserved_until_ms: i64,
    pub(crate) asked_at_ms: i64,
    pub(crate) answered_at_ms: i64,
}

impl Grant {
    /// Reads a reply of type `token.reply`, or one element of a `workspace.start.reply`.
    pub(crate) fn read(reply: &Value, asked_at_ms: i64, answered_at_ms: i64) -> Result<Self> {
        if reply["status"] != "ok" {
            bail!("tokenkeeper answered with an error: {}", reply["error"]);
        }
        let token = &reply["token"];
        let warnings = reply["warnings"].as_array().context("a reply without `warnings`")?;
        Ok(Self {
            token: Token::new(text(&token["value"], "token.value")?),
            refresh: text(&reply["refresh"], "refresh")?.to_owned(),
            warnings: warnings.iter().map(Value::to_string).collect(),
            expires_at_ms: epoch_ms(&token["expires_at"], "token.expires_at")?,
            reserved_until_ms: epoch_ms(&token["reserved_until"], "token.reserved_until")?,
            asked_at_ms,
            answered_at_ms,
        })
    }

    /// Whether it is reserved for this long, counted from when the request was under way.
    pub(crate) fn is_reserved_for(&self, lifetime: Duration) -> bool {
        self.is_after(self.reserved_until_ms, lifetime)
    }

    /// Whether it lives for this long, counted likewise.
    pub(crate) fn lives_for(&self, lifetime: Duration) -> bool {
        self.is_after(self.expires_at_ms, lifetime)
    }

    /// How long the answer took.
    pub(crate) fn took_ms(&self) -> i64 {
        self.answered_at_ms - self.asked_at_ms
    }

    fn is_after(&self, time_ms: i64, lifetime: Duration) -> bool {
        let began_ms = i64::try_from(lifetime.as_millis()).map(|lifetime_ms| time_ms - lifetime_ms);
        began_ms.is_ok_and(|began_ms| (self.asked_at_ms..=self.answered_at_ms).contains(&began_ms))
    }
}

fn text<'a>(value: &'a Value, field: &str) -> Result<&'a str> {
    value.as_str().with_context(|| format!("a reply without `{field}`"))
}

fn epoch_ms(value: &Value, field: &str) -> Result<i64> {
    let time = DateTime::parse_from_rfc3339(text(value, field)?);
    Ok(time.with_context(|| format!("`{field}` of a reply is not a date"))?.timestamp_millis())
}
