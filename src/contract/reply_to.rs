//! Where a reply goes. The publisher of a request chooses that, and the worker may write to queues that the publisher may
//! not. So this module checks the name, and only this module makes a [`ReplyTo`].

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::domain::escape::is_printable;

/// RabbitMQ's direct reply-to: a requester consumes from this name and writes it into `reply_to`. The broker replaces it
/// with a name of its own before it delivers the request.
pub const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// Names that begin with this belong to the broker.
const RESERVED: &str = "amq.";
/// The longest name that AMQP carries, in bytes.
const MAX_LEN: usize = 255;

/// Never a queue of ours, and never a name that is known to cost us the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplyTo {
    /// A queue of the requester's.
    Queue(Name),
    /// RabbitMQ's direct reply-to: the requester's channel. Never published to as `mandatory`, because RabbitMQ up to 4.1
    /// returns such a message although it arrives. Only the broker knows whether that channel still exists. RabbitMQ 3.10
    /// ends the connection of a publisher who names a node outside its cluster.
    Direct(Name),
}

/// A checked name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

/// Why no reply goes to this name. Does not repeat it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnfitReplyTo {
    /// A queue of ours, or one that could become one.
    #[error(
        "is or begins like the name of a queue that the worker itself uses; declare a queue with another name"
    )]
    Ours,
    /// The broker's own, and not a direct reply-to.
    #[error(
        "begins with `amq.`, which is the broker's (a queue that the broker named included); declare a queue with a name \
         of its own, or use amq.rabbitmq.reply-to"
    )]
    Reserved,
    /// Direct reply-to as a requester writes it.
    #[error(
        "is amq.rabbitmq.reply-to, which the broker had to replace; publish over the channel that consumes from it, to \
         RabbitMQ and not by way of something that republishes"
    )]
    Bare,
    /// Looks like a direct reply-to, but RabbitMQ never writes such a name.
    #[error(
        "is no direct reply-to as RabbitMQ writes it; leave what stands behind amq.rabbitmq.reply-to to the broker"
    )]
    Forged,
    /// Too long for AMQP.
    #[error("is longer than 255 bytes")]
    TooLong,
    /// Has unprintable characters.
    #[error(
        "must be UTF-8 without control characters and without characters that change the direction of a text"
    )]
    Unprintable,
}

impl ReplyTo {
    /// `prefix`: the start of our own queues' names.
    pub(super) fn read(name: &str, prefix: &str) -> Result<Self, UnfitReplyTo> {
        if name.len() > MAX_LEN {
            return Err(UnfitReplyTo::TooLong);
        }
        if name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) {
            return Err(UnfitReplyTo::Ours);
        }
        // U+FFFD replaces bytes that are not UTF-8, so the queue's real name differs.
        if !is_printable(name) || name.contains(char::REPLACEMENT_CHARACTER) {
            return Err(UnfitReplyTo::Unprintable);
        }
        if !name.starts_with(RESERVED) {
            return Ok(Self::Queue(Name(name.to_owned())));
        }
        match name.strip_prefix(DIRECT_REPLY_TO) {
            Some("") => Err(UnfitReplyTo::Bare),
            Some(rest) => match rest.strip_prefix('.').map(is_written_by_rabbitmq) {
                Some(true) => Ok(Self::Direct(Name(name.to_owned()))),
                Some(false) => Err(UnfitReplyTo::Forged),
                None => Err(UnfitReplyTo::Reserved),
            },
            None => Err(UnfitReplyTo::Reserved),
        }
    }

    /// The routing key that replies go out with, by the default exchange. At most 255 bytes.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Queue(Name(name)) | Self::Direct(Name(name)) => name,
        }
    }
}

/// Whether RabbitMQ, from 3.10 on, could have written this behind `amq.rabbitmq.reply-to.`: the base64 of a process
/// identifier in Erlang's external term format, a dot, and the base64 of 16 secret bytes (`rabbit_direct_reply_to` up to
/// 4.1, `rabbit_volatile_queue` from 4.2).
///
/// Accepts only the forms that 3.10 to 4.3 all decode. Erlang has other forms (`PID_EXT`, atoms in Latin-1). Over those, and
/// over broken terms, some versions end the connection.
fn is_written_by_rabbitmq(rest: &str) -> bool {
    /// No name is longer than this, and a decoded name is shorter still.
    const ROOM: usize = MAX_LEN;
    const KEY_LEN: usize = 16;
    let Some((process, key)) = rest.split_once('.') else { return false };
    let (mut process_room, mut key_room) = ([0; ROOM], [0; ROOM]);
    let decoded = |text: &str, room: &mut [u8; ROOM]| BASE64.decode_slice(text, room).ok();
    decoded(key, &mut key_room) == Some(KEY_LEN)
        && decoded(process, &mut process_room)
            .and_then(|len| process_room.get(..len))
            .is_some_and(is_process_of_a_channel)
}

/// Whether these bytes are the term of a process at a node whose name is a hash (`reply@HASH`).
/// See <https://www.erlang.org/doc/apps/erts/erl_ext_dist.html>.
fn is_process_of_a_channel(term: &[u8]) -> bool {
    const VERSION: u8 = 131;
    const NEW_PID_EXT: u8 = 88;
    const ATOM_UTF8_EXT: u8 = 118;
    const SMALL_ATOM_UTF8_EXT: u8 = 119;
    /// ID, serial and creation, 32 bits each. Any value is possible.
    const NUMBERS_LEN: usize = 12;
    let node = match term {
        [VERSION, NEW_PID_EXT, ATOM_UTF8_EXT, high, low, rest @ ..] => {
            split_exactly(rest, usize::from(u16::from_be_bytes([*high, *low])), NUMBERS_LEN)
        }
        [VERSION, NEW_PID_EXT, SMALL_ATOM_UTF8_EXT, len, rest @ ..] => {
            split_exactly(rest, usize::from(*len), NUMBERS_LEN)
        }
        _ => None,
    };
    node.and_then(|node| node.strip_prefix(b"reply@")).is_some_and(is_node_hash)
}

/// The first `len` bytes, if exactly `behind` bytes follow them.
fn split_exactly(bytes: &[u8], len: usize, behind: usize) -> Option<&[u8]> {
    let (first, rest) = bytes.split_at_checked(len)?;
    (rest.len() == behind).then_some(first)
}

/// `erlang:phash2/1` in decimal, as Erlang writes it: below 2^27.
fn is_node_hash(digits: &[u8]) -> bool {
    let is_canonical = matches!(digits, [b'0'] | [b'1'..=b'9', ..]) && digits.iter().all(u8::is_ascii_digit);
    let hash = str::from_utf8(digits).ok().and_then(|digits| digits.parse::<u32>().ok());
    is_canonical && hash.is_some_and(|hash| hash < 1 << 27)
}

#[cfg(test)]
mod tests;
