//! What the commands that send a request to a worker share: options, and the exchange itself.

use std::cell::Cell;
use std::time::Duration;

use anyhow::{Context, anyhow};
use serde_json::{Map, Value};
use tokenkeeper::app::lifecycle::StopSignals;
use tokenkeeper::contract::{LifetimeSecs, MessageKind, decode};
use tokenkeeper::settings::Settings;

use super::Failure;
use super::ending::Interrupted;
use super::requester::{Question, Sent, ask};
use super::sealing::Sealing;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// How long from now a token must work, 1s to 24h [default: the worker decides]
    #[arg(long, value_name = "DURATION", value_parser = lifetime)]
    lifetime: Option<u64>,
    /// Asks for a reply that the broker cannot read, and opens it
    ///
    /// Makes a key pair for this one request. The worker seals the token to its public key.
    #[arg(long)]
    sealed: bool,
    /// Shows tokens in the table
    #[arg(long)]
    pub(super) show_token: bool,
    /// Prints the reply as JSON, with the tokens in it
    #[arg(long)]
    pub(super) json: bool,
}

/// Publishes a request with these fields and returns the body of the reply, opened if it is sealed.
pub(super) async fn exchange(
    settings: &Settings,
    kind: MessageKind,
    mut fields: Map<String, Value>,
    options: &Options,
    timeout: Duration,
) -> Result<Vec<u8>, Failure> {
    if let Some(lifetime) = options.lifetime {
        fields.insert("requested_lifetime_secs".to_owned(), lifetime.into());
    }
    let sealing = options.sealed.then(Sealing::new);
    if let Some(sealing) = &sealing {
        fields.insert("reply_public_key".to_owned(), sealing.public_key().into());
    }
    let user = fields.get("user_id").and_then(Value::as_str).unwrap_or_default().to_owned();
    let body = Value::Object(fields).to_string();
    // A worker would refuse it too, and the message would end up in the dead letters.
    decode(kind, body.as_bytes()).map_err(|invalid| Failure::Usage(anyhow!(invalid.reason)))?;
    let question = Question { kind, user: &user, body: body.as_bytes(), timeout };
    let mut signals = StopSignals::listen().context("cannot listen for signals")?;
    let sent = Cell::new(Sent::No);
    let reply = tokio::select! {
        reply = ask(&settings.broker, &question, &sent) => {
            reply.map_err(|error| Failure::NoReply(error.into()))?
        }
        () = signals.next() => {
            return Err(anyhow!(Interrupted).context(left_behind(sent.get())).into());
        }
    };
    match sealing {
        None => Ok(reply),
        Some(sealing) => sealing.open(&user, &reply).map_err(Failure::NoReply),
    }
}

/// What becomes of a request that nobody waits for any more.
const fn left_behind(sent: Sent) -> &'static str {
    match sent {
        Sent::No => "no request was published",
        Sent::Perhaps => "the request may have been published; its reply is not waited for",
        Sent::Yes => {
            "the request was published, and its reply is not waited for; a worker still handles it, unless its \
             time is over before"
        }
    }
}

/// Parses how long to wait for a reply.
pub(super) fn patience(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_hours(24);
    match duration(text)? {
        timeout if timeout < Duration::from_millis(1) => Err("must be at least 1ms".to_owned()),
        timeout if timeout > LONGEST => Err("must be at most 24h".to_owned()),
        timeout => Ok(timeout),
    }
}

fn lifetime(text: &str) -> Result<u64, String> {
    let lifetime = duration(text)?;
    if lifetime.subsec_nanos() != 0 {
        return Err("must be whole seconds".to_owned());
    }
    LifetimeSecs::try_from(lifetime.as_secs()).map(|_| lifetime.as_secs()).map_err(str::to_owned)
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a duration like 30s, 10m or 1h 30m"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_is_within_the_contracts_range() {
        for (text, expected) in
            [("1s", Some(1)), ("10m", Some(600)), ("24h", Some(86_400)), ("1h 30m", Some(5_400))]
        {
            assert_eq!(lifetime(text).ok(), expected, "{text}");
        }
        for text in ["", "0s", "25h", "500ms", "10", "soon", "-1s"] {
            assert!(lifetime(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_timeout_fits_into_the_expiration_of_a_message() {
        assert_eq!(patience("1ms"), Ok(Duration::from_millis(1)));
        assert_eq!(patience("24h"), Ok(Duration::from_hours(24)));
        assert!(patience("0s").is_err() && patience("1us").is_err() && patience("2days").is_err());
    }
}
