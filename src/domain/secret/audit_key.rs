//! The key that chains the lines of an audit log.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::KEY_LEN;

/// Keeps the use apart from every other one of the same encryption key.
const PURPOSE: &[u8] = b"tokenkeeper audit chain 1";

/// Bytes of an HMAC-SHA-256 (RFC 2104).
pub const MAC_LEN: usize = 32;

/// A subkey of an encryption key: its HMAC-SHA-256 of a fixed text. Reveals nothing of the encryption key.
#[derive(Clone)]
pub struct AuditKey {
    id: String,
    mac: Hmac<Sha256>,
}

impl AuditKey {
    pub(super) fn new(id: &str, key: &[u8; KEY_LEN]) -> Self {
        let subkey: Zeroizing<[u8; MAC_LEN]> =
            Zeroizing::new(keyed(key).chain_update(PURPOSE).finalize().into_bytes().into());
        Self { id: id.to_owned(), mac: keyed(subkey.as_slice()) }
    }

    /// The id of the encryption key.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The code of a line's content behind the code of the line before.
    pub fn code(&self, before: &[u8; MAC_LEN], content: &[u8]) -> [u8; MAC_LEN] {
        self.over(before, content).finalize().into_bytes().into()
    }

    /// Whether it is that code. Takes a time that does not tell how much of it is right.
    pub fn accepts(&self, before: &[u8; MAC_LEN], content: &[u8], code: &[u8; MAC_LEN]) -> bool {
        self.over(before, content).verify_slice(code).is_ok()
    }

    fn over(&self, before: &[u8; MAC_LEN], content: &[u8]) -> Hmac<Sha256> {
        self.mac.clone().chain_update(before).chain_update(content)
    }
}

#[allow(clippy::expect_used, reason = "HMAC takes keys of any length")]
fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

/// Shows only the id.
impl fmt::Debug for AuditKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AuditKey").field(&self.id).finish()
    }
}
