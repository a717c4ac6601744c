//! Sealed boxes, as libsodium makes them (`crypto_box_seal`): whoever has the public key seals, and only the holder of the secret
//! key opens.
//!
//! A box is the public half of a key pair that is made for it alone, and the content under XSalsa20-Poly1305. The nonce is the
//! `BLAKE2b` of both public keys (<https://doc.libsodium.org/public-key_cryptography/sealed_boxes>). A box keeps its content
//! secret and whole. It does not say who sealed it.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use crypto_box::aead::OsRng;
use crypto_box::aead::rand_core::CryptoRngCore;
use schemars::JsonSchema;
use serde::Deserialize;
use zeroize::Zeroizing;

/// Bytes of an X25519 key, public or secret (RFC 7748).
const KEY_LEN: usize = 32;

/// What a box has beside its content, in bytes: a public key and an authentication tag.
pub const OVERHEAD: usize = KEY_LEN + 16;

/// The public keys of low order, without their highest bit, which X25519 ignores. With one of them everybody computes the same
/// shared secret, so everybody could open the box. The list is that of libsodium (`crypto_scalarmult/curve25519/ref10`).
const LOW_ORDER: [[u8; KEY_LEN]; 7] = {
    const fn near_p(lowest: u8) -> [u8; KEY_LEN] {
        let mut bytes = [0xff; KEY_LEN];
        bytes[0] = lowest;
        bytes[KEY_LEN - 1] = 0x7f;
        bytes
    }
    let zero = [0; KEY_LEN];
    let mut one = zero;
    one[0] = 1;
    [
        zero,
        one,
        [
            0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a,
            0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
        ],
        [
            0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b,
            0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
        ],
        near_p(0xec),
        near_p(0xed),
        near_p(0xee),
    ]
};

/// A public key that a box can be sealed to. It is not of low order.
#[derive(Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "Cow<'_, str>")]
#[schemars(
    with = "String",
    extend("pattern" = "^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$", "not" = low_order_schema())
)]
pub struct PublicKey(crypto_box::PublicKey);

impl PublicKey {
    /// Seals with a key pair that is made for this box alone. Costs two multiplications on the curve (docs/performance-notes.md).
    pub fn seal(&self, content: &[u8]) -> Vec<u8> {
        self.seal_with(&mut OsRng, content)
    }

    #[allow(clippy::expect_used, reason = "the cipher refuses only over 256 GiB")]
    fn seal_with(&self, chance: &mut impl CryptoRngCore, content: &[u8]) -> Vec<u8> {
        self.0.seal(chance, content).expect("the content is shorter than 256 GiB")
    }
}

impl TryFrom<Cow<'_, str>> for PublicKey {
    type Error = &'static str;

    fn try_from(text: Cow<'_, str>) -> Result<Self, Self::Error> {
        let mut bytes = [0; KEY_LEN];
        // The decoder wants room for a byte more than 44 characters can hold.
        let mut room = [0; KEY_LEN + 1];
        match BASE64.decode_slice(text.as_bytes(), &mut room) {
            Ok(KEY_LEN) => bytes.copy_from_slice(&room[..KEY_LEN]),
            _ => return Err("must be an X25519 public key: 32 bytes in base64, with padding"),
        }
        let mut without_highest_bit = bytes;
        without_highest_bit[KEY_LEN - 1] &= 0x7f;
        if LOW_ORDER.contains(&without_highest_bit) {
            return Err("must not be a key of low order: everybody could open what is sealed to it");
        }
        Ok(Self(bytes.into()))
    }
}

/// In base64, as it stands in messages.
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(self.0.as_bytes()))
    }
}

/// Shows nothing: somebody may have sent a secret key in its place.
impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PublicKey")
    }
}

/// The keys that [`PublicKey`] refuses although they have its shape.
fn low_order_schema() -> serde_json::Value {
    let with_either_highest_bit = |bytes: [u8; KEY_LEN]| {
        let mut other = bytes;
        other[KEY_LEN - 1] |= 0x80;
        [BASE64.encode(bytes), BASE64.encode(other)]
    };
    serde_json::json!({"enum": LOW_ORDER.into_iter().flat_map(with_either_highest_bit).collect::<Vec<_>>()})
}

/// The key that opens what was sealed to its public key.
#[derive(Clone)]
pub struct SecretKey(crypto_box::SecretKey);

impl SecretKey {
    pub fn generate() -> Self {
        Self(crypto_box::SecretKey::generate(&mut OsRng))
    }

    pub fn from_bytes(bytes: &[u8; KEY_LEN]) -> Self {
        Self((*bytes).into())
    }

    pub fn public_key(&self) -> PublicKey {
        PublicKey(self.0.public_key())
    }

    /// None: it was sealed to another key, or was changed.
    pub fn open(&self, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        self.0.unseal(sealed).ok().map(Zeroizing::new)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

#[cfg(test)]
mod tests;
