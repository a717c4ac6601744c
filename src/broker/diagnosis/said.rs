//! What RabbitMQ says when it refuses, taken apart. Its texts differ between versions, and are cut at 255 bytes.

use std::fmt;

use lapin::ErrorKind;

/// What a user lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    Configure,
    Write,
    Read,
    /// To declare a queue that has a dead-letter exchange, one needs both, and an older broker does not say which one is missing.
    ConfigureOrRead,
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Configure => "configure",
            Self::Write => "write",
            Self::Read => "read",
            Self::ConfigureOrRead => "configure or read",
        })
    }
}

/// How a queue or exchange differs from ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub argument: String,
    pub wanted: String,
    pub found: String,
}

/// An error of the library in plain words. What the broker said stays as it is.
pub(in crate::broker) fn plainly(error: &lapin::Error) -> String {
    let words = match error.kind() {
        ErrorKind::ProtocolError(error) => return error.get_message().to_string(),
        ErrorKind::MissingHeartbeatError => "the broker has fallen silent",
        ErrorKind::ParsingError(_) | ErrorKind::InvalidProtocolVersion(_) => {
            "the other end does not speak AMQP 0-9-1"
        }
        ErrorKind::SerialisationError(_) => "it does not fit into AMQP",
        ErrorKind::ChannelsLimitReached => "the connection has no channel left",
        ErrorKind::InvalidChannel(_) | ErrorKind::InvalidChannelState(..) => "the channel is closed",
        _ => "the connection is closed",
    };
    words.to_owned()
}

/// The object of a refusal, as `queue tk.suspects`: `… queue 'tk.suspects' in vhost '/' …`.
pub(super) fn object(text: &str) -> Option<String> {
    let kinds = ["queue", "exchange"];
    let found = kinds.into_iter().filter_map(|kind| Some((text.find(&format!("{kind} '"))?, kind)));
    let (at, kind) = found.min()?;
    let rest = &text[at + kind.len() + 2..];
    let name = rest.split_once("' in vhost").map_or(rest, |(name, _)| name);
    Some(format!("{kind} {name}"))
}

/// The missing permission, as `… configure access to queue 'q' …` of newer brokers. Older ones leave the word out; then it
/// follows from what was refused (`action`).
pub(super) fn permission(text: &str, action: &str, object: &str) -> Permission {
    let named = [Permission::Configure, Permission::Write, Permission::Read];
    if let Some(named) = named.into_iter().find(|named| text.contains(&format!("{named} access to"))) {
        return named;
    }
    let is_queue = object.starts_with("queue");
    match action.split(' ').next() {
        // Of another object: its dead-letter exchange.
        Some("declare") if !action.ends_with(object) => Permission::Write,
        Some("declare") if is_queue => Permission::ConfigureOrRead,
        Some("declare") => Permission::Configure,
        Some("bind") if is_queue => Permission::Write,
        Some("bind" | "consume" | "read") => Permission::Read,
        _ => Permission::Write,
    }
}

/// `inequivalent arg 'x-delivery-limit' for queue 'q' in vhost '/': received the value '7' of type 'signedint' but current is none`
pub(super) fn difference(text: &str) -> Option<Difference> {
    let (_, rest) = text.split_once("inequivalent arg '")?;
    let (argument, rest) = rest.split_once('\'')?;
    let (_, rest) = rest.split_once(": received ")?;
    let (wanted, found) = rest.split_once(" but current is ")?;
    Some(Difference { argument: argument.to_owned(), wanted: value(wanted), found: value(found) })
}

/// `7` of `the value '7' of type 'signedint'` and of `'7'`.
fn value(text: &str) -> String {
    let quoted = text.split_once('\'').and_then(|(_, rest)| rest.split_once('\''));
    quoted.map_or(text, |(value, _)| value).to_owned()
}
