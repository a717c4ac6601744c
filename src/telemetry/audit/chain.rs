//! The chain over the lines of an audit log: each line ends with its sequence number, the id of a key, and a code over all of
//! itself and the code of the line before. Without the key nobody can change, remove, insert or move a line unnoticed.
//!
//! ```text
//! {"timestamp":…,"event":…, …,"sequence":17,"chain_key":"k1","chain":"64 hexadecimal digits"}
//! ```
//!
//! Each file begins with a line that repeats the last code before it (`previous`), so that it can be verified although older
//! files are gone.

use std::fmt::Write;

use serde::Deserialize;
use sha2::{Digest, Sha256};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use crate::domain::secret::{AuditKey, MAC_LEN, is_key_id};

/// `event` of the first line of a file.
const FILE_BEGUN: &str = "audit_file_begun";
/// `event` of the line behind one that a process left unfinished.
const TORN_LINE: &str = "torn_line_found";

const SEQUENCE: &str = ",\"sequence\":";
const CHAIN_KEY: &str = ",\"chain_key\":\"";
const CHAIN: &str = ",\"chain\":\"";
const END: &str = "\"}";

/// The last line of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChainEnd {
    /// Counted from 1. 0: there is no line yet.
    pub(super) sequence: u64,
    pub(super) code: [u8; MAC_LEN],
}

impl ChainEnd {
    /// Of a chain without a line.
    pub(super) const NEW: Self = Self { sequence: 0, code: [0; MAC_LEN] };

    /// Adds the chain's fields to a line, a JSON object with a line feed behind it. Returns it with the chain's new end.
    pub(super) fn link(&self, line: &[u8], key: &AuditKey) -> (Vec<u8>, Self) {
        let sequence = self.sequence.saturating_add(1);
        let mut linked = line.strip_suffix(b"}\n").unwrap_or(line).to_vec();
        linked.extend_from_slice(format!("{SEQUENCE}{sequence}{CHAIN_KEY}{}\"", key.id()).as_bytes());
        let code = key.code(&self.code, &linked);
        linked.extend_from_slice(format!("{CHAIN}{}{END}\n", hex(&code)).as_bytes());
        (linked, Self { sequence, code })
    }

    /// The first line of a file, not yet linked.
    pub(super) fn file_begun(&self) -> String {
        let outcome = if self.sequence == 0 { "new_chain" } else { "next_file" };
        let previous = hex(&self.code);
        of_chain(&format!(r#""event":"{FILE_BEGUN}","outcome":"{outcome}","previous":"{previous}""#))
    }
}

/// The line behind an unfinished one, not yet linked.
pub(super) fn torn_line_found(torn: &[u8]) -> String {
    let Torn { bytes, sha256 } = Torn::of(torn);
    of_chain(&format!(
        r#""event":"{TORN_LINE}","outcome":"left_unfinished","torn_bytes":{bytes},"torn_sha256":"{sha256}""#
    ))
}

fn of_chain(fields: &str) -> String {
    let mut timestamp = String::new();
    // Without a clock the line goes without its date.
    let _ = SystemTime.format_time(&mut Writer::new(&mut timestamp));
    format!("{{\"timestamp\":\"{timestamp}\",{fields}}}\n")
}

/// A line with the chain's fields.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link<'a> {
    /// What the code is over.
    pub(super) content: &'a [u8],
    pub(super) key_id: &'a str,
    pub(super) end: ChainEnd,
}

impl<'a> Link<'a> {
    /// None: the line has no chain. `line` has no line feed behind it.
    pub(super) fn read(line: &'a [u8]) -> Option<Self> {
        let line = str::from_utf8(line).ok()?;
        let (content, code) = line.strip_suffix(END)?.rsplit_once(CHAIN)?;
        let (rest, key_id) = content.strip_suffix('"')?.rsplit_once(CHAIN_KEY)?;
        let (_, sequence) = rest.rsplit_once(SEQUENCE)?;
        let end = ChainEnd { sequence: sequence.parse().ok()?, code: from_hex(code)? };
        is_key_id(key_id).then_some(Self { content: content.as_bytes(), key_id, end })
    }
}

/// An unfinished line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Torn {
    bytes: usize,
    sha256: String,
}

impl Torn {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len(), sha256: hex(&Sha256::digest(bytes)) }
    }
}

/// A line about the chain itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum OfChain {
    /// The first line of a file, with the code of the line before.
    FileBegun([u8; MAC_LEN]),
    /// The line before it is unfinished.
    TornLine(Torn),
}

impl OfChain {
    /// None: the line is about something else.
    pub(super) fn read(line: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Fields {
            event: String,
            previous: Option<String>,
            torn_bytes: Option<usize>,
            torn_sha256: Option<String>,
        }
        let fields: Fields = serde_json::from_slice(line).ok()?;
        match fields.event.as_str() {
            FILE_BEGUN => from_hex(&fields.previous?).map(Self::FileBegun),
            TORN_LINE => {
                Some(Self::TornLine(Torn { bytes: fields.torn_bytes?, sha256: fields.torn_sha256? }))
            }
            _ => None,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Takes lower case alone, as `hex` writes it.
fn from_hex(text: &str) -> Option<[u8; MAC_LEN]> {
    let mut bytes = [0; MAC_LEN];
    let digits = text.as_bytes();
    if digits.len() != 2 * MAC_LEN || !digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}
