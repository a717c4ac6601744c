//! Secrets in memory, and their encryption at rest.
//!
//! Invariant 6 (docs/contract.md): no token, secret or key in logs, metrics, errors, or, in clear, in the database.
//! In memory a secret is a [`SecretString`]: `Debug` prints a placeholder, and dropping wipes it. The database gets
//! the output of [`KeyRing::seal`].

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chacha20poly1305::aead::{Aead, AeadInOut, Generate, KeyInit, Payload};
use chacha20poly1305::{Key, Tag, XChaCha20Poly1305, XNonce};
pub use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// The first byte of a sealed secret names its format. 1 = XChaCha20-Poly1305, 24-byte nonce, ciphertext, tag.
const FORMAT: u8 = 1;
/// Bytes of an XChaCha20 nonce (draft-irtf-cfrg-xchacha).
const NONCE_LEN: usize = 24;
const KEY_LEN: usize = 32;
const TAG_LEN: usize = 16;
/// The width of the `key_id` columns.
const KEY_ID_MAX: usize = 64;

/// The encryption keys, newest first: the first one seals, every one opens.
#[derive(Clone)]
pub struct KeyRing {
    keys: Vec<RingKey>,
}

#[derive(Clone)]
struct RingKey {
    id: String,
    cipher: XChaCha20Poly1305,
}

/// A sealed secret and the id of the key that opens it, as two columns of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    pub key_id: String,
    /// Format byte, nonce, ciphertext and tag.
    pub bytes: Vec<u8>,
}

/// Opens a sealed body, together with the key: format byte, nonce and tag. Kept apart from the body.
pub type BodySeal = [u8; 1 + NONCE_LEN + TAG_LEN];

/// Why a key ring could not be read. Never holds key material.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyRingError {
    #[error("there are no encryption keys; make one with `tokenkeeper keys generate`")]
    Empty,
    #[error("key {position} is not `id:base64` with an id of 1 to 64 letters, digits, `-`, `_` or `.`")]
    Shape {
        /// Counted from 1.
        position: usize,
    },
    #[error("key `{id}` is not 32 bytes in base64; make one with `tokenkeeper keys generate`")]
    Material { id: String },
    #[error("key id `{id}` is there twice")]
    Duplicate { id: String },
}

/// Why a sealed secret could not be opened.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OpenError {
    /// The key that sealed it is not in the ring.
    #[error("it is encrypted with key `{0}`, which is not among the configured encryption keys")]
    UnknownKey(String),
    /// Wrong key material, changed bytes, or a ciphertext moved here from another row.
    #[error(
        "it does not decrypt with key `{0}`: another key has the same id, or the row was changed or copied"
    )]
    Tampered(String),
}

impl KeyRing {
    /// Reads `id:base64,id:base64`. Blanks and line breaks around entries do not matter.
    ///
    /// # Errors
    /// Names the entry that is wrong, and never its material.
    pub fn parse(text: &str) -> Result<Self, KeyRingError> {
        let mut keys: Vec<RingKey> = Vec::new();
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        for (index, entry) in entries.enumerate() {
            let position = index + 1;
            let (id, material) = entry.split_once(':').ok_or(KeyRingError::Shape { position })?;
            if !is_key_id(id) {
                return Err(KeyRingError::Shape { position });
            }
            if keys.iter().any(|key| key.id == id) {
                return Err(KeyRingError::Duplicate { id: id.to_owned() });
            }
            let bytes = Zeroizing::new(BASE64.decode(material).unwrap_or_default());
            let key = <&[u8; KEY_LEN]>::try_from(bytes.as_slice())
                .map_err(|_| KeyRingError::Material { id: id.to_owned() })?;
            keys.push(RingKey { id: id.to_owned(), cipher: XChaCha20Poly1305::new(key.into()) });
        }
        if keys.is_empty() { Err(KeyRingError::Empty) } else { Ok(Self { keys }) }
    }

    /// Returns a new entry for the setting `encryption.keys`: `id:base64` with 32 random bytes.
    pub fn generate(id: &str) -> SecretString {
        let key: Zeroizing<[u8; KEY_LEN]> = Zeroizing::new(Key::generate().into());
        format!("{id}:{}", BASE64.encode(key.as_slice())).into()
    }

    /// Encrypts `secret` with the first key. `bound_to` names its place (table, column, row). Only the same `bound_to` opens
    /// it, so a ciphertext copied into another row is worthless.
    #[allow(clippy::expect_used, clippy::missing_panics_doc, reason = "the cipher refuses only over 256 GiB")]
    pub fn seal(&self, secret: &SecretString, bound_to: &str) -> Sealed {
        let RingKey { id, cipher } = &self.keys[0];
        let nonce = XNonce::generate();
        let payload = Payload { msg: secret.expose_secret().as_bytes(), aad: bound_to.as_bytes() };
        let ciphertext = cipher.encrypt(&nonce, payload).expect("a token is shorter than 256 GiB");
        let mut bytes = Vec::with_capacity(1 + NONCE_LEN + ciphertext.len());
        bytes.push(FORMAT);
        bytes.extend_from_slice(&nonce);
        bytes.extend_from_slice(&ciphertext);
        Sealed { key_id: id.clone(), bytes }
    }

    /// Decrypts what [`KeyRing::seal`] made for the same `bound_to`.
    ///
    /// # Errors
    /// [`OpenError`]: the key is missing, or the bytes are not what was sealed for this place.
    pub fn open(&self, key_id: &str, sealed: &[u8], bound_to: &str) -> Result<SecretString, OpenError> {
        let key = self.key(key_id)?;
        let tampered = || OpenError::Tampered(key_id.into());
        let (&FORMAT, rest) = sealed.split_first().ok_or_else(tampered)? else { return Err(tampered()) };
        let (nonce, ciphertext) = rest.split_first_chunk::<NONCE_LEN>().ok_or_else(tampered)?;
        let payload = Payload { msg: ciphertext, aad: bound_to.as_bytes() };
        let plain = key.cipher.decrypt(nonce.into(), payload).map_err(|_| tampered())?;
        let text = String::from_utf8(plain).map_err(|_| tampered())?;
        Ok(text.into())
    }

    /// Encrypts a body in place with the first key. Returns the key's id and the seal that opens the body again. `bound_to`:
    /// as in [`KeyRing::seal`].
    #[allow(clippy::expect_used, clippy::missing_panics_doc, reason = "the cipher refuses only over 256 GiB")]
    pub fn seal_body(&self, body: &mut [u8], bound_to: &[u8]) -> (&str, BodySeal) {
        let RingKey { id, cipher } = &self.keys[0];
        let nonce = XNonce::generate();
        let tag =
            cipher.encrypt_inout_detached(&nonce, bound_to, body.into()).expect("it is shorter than 256 GiB");
        let mut seal = [FORMAT; 1 + NONCE_LEN + TAG_LEN];
        seal[1..=NONCE_LEN].copy_from_slice(&nonce);
        seal[1 + NONCE_LEN..].copy_from_slice(&tag);
        (id, seal)
    }

    /// Decrypts in place what [`KeyRing::seal_body`] made for the same `bound_to`.
    ///
    /// # Errors
    /// [`OpenError`]; the body is garbage then.
    pub fn open_body(
        &self,
        key_id: &str,
        seal: &BodySeal,
        body: &mut [u8],
        bound_to: &[u8],
    ) -> Result<(), OpenError> {
        let key = self.key(key_id)?;
        let tampered = || OpenError::Tampered(key_id.into());
        let (&FORMAT, rest) = seal.split_first().ok_or_else(tampered)? else { return Err(tampered()) };
        let (nonce, tag) = rest.split_first_chunk::<NONCE_LEN>().ok_or_else(tampered)?;
        let tag = <&[u8; TAG_LEN]>::try_from(tag).map_err(|_| tampered())?;
        key.cipher
            .decrypt_inout_detached(nonce.into(), bound_to, body.into(), <&Tag>::from(tag))
            .map_err(|_| tampered())
    }

    fn key(&self, key_id: &str) -> Result<&RingKey, OpenError> {
        self.keys.iter().find(|key| key.id == key_id).ok_or_else(|| OpenError::UnknownKey(key_id.into()))
    }
}

/// Shows only the ids.
impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|key| &key.id)).finish()
    }
}

/// Identifies a secret without revealing it: the first 128 bits of its SHA-256, in hex.
///
/// Stored beside a failure, it says *which* refresh token the provider refused. Tokens are long and random, so nobody can
/// find a token by its digest.
pub fn fingerprint(secret: &SecretString) -> String {
    let digest = Sha256::digest(secret.expose_secret().as_bytes());
    format!("{:032x}", u128::from_be_bytes(*digest.0.first_chunk().unwrap_or(&[0; 16])))
}

pub(crate) fn is_key_id(id: &str) -> bool {
    (1..=KEY_ID_MAX).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(ids: &[&str]) -> (KeyRing, String) {
        let keys: Vec<String> =
            ids.iter().map(|id| KeyRing::generate(id).expose_secret().to_owned()).collect();
        let text = keys.join(", ");
        (KeyRing::parse(&text).unwrap(), text)
    }

    #[test]
    fn what_was_sealed_opens_in_its_place_alone() {
        let (ring, _) = ring(&["k1"]);
        let sealed = ring.seal(&"s3cret".into(), "token_entry/1");
        assert!(!sealed.bytes.windows(6).any(|window| window == b"s3cret"));
        let opened = ring.open(&sealed.key_id, &sealed.bytes, "token_entry/1").unwrap();
        assert_eq!(opened.expose_secret(), "s3cret");
        let elsewhere = ring.open(&sealed.key_id, &sealed.bytes, "token_entry/2").unwrap_err();
        assert_eq!(elsewhere, OpenError::Tampered("k1".into()));
    }

    #[test]
    fn every_changed_or_missing_byte_is_found() {
        let (ring, _) = ring(&["k1"]);
        let sealed = ring.seal(&"s3cret".into(), "here");
        for position in 0..sealed.bytes.len() {
            let mut changed = sealed.bytes.clone();
            changed[position] ^= 1;
            assert!(ring.open("k1", &changed, "here").is_err(), "byte {position} changed");
            assert!(ring.open("k1", &sealed.bytes[..position], "here").is_err(), "cut at {position}");
        }
    }

    #[test]
    fn the_first_key_seals_and_older_ones_still_open() {
        let (old, old_text) = ring(&["old"]);
        let sealed = old.seal(&"s3cret".into(), "here");
        let (_, new_text) = ring(&["new"]);
        let rotated = KeyRing::parse(&format!("{new_text},{old_text}")).unwrap();
        assert_eq!(rotated.open(&sealed.key_id, &sealed.bytes, "here").unwrap().expose_secret(), "s3cret");
        assert_eq!(rotated.seal(&"x".into(), "here").key_id, "new");
        let dropped = KeyRing::parse(&new_text).unwrap();
        let error = dropped.open(&sealed.key_id, &sealed.bytes, "here").unwrap_err();
        assert_eq!(error, OpenError::UnknownKey("old".into()));
    }

    #[test]
    fn a_wrong_key_setting_is_named_without_its_material() {
        let good = KeyRing::generate("a").expose_secret().to_owned();
        assert_eq!(KeyRing::parse(" , ").unwrap_err(), KeyRingError::Empty);
        assert_eq!(KeyRing::parse("nocolon").unwrap_err(), KeyRingError::Shape { position: 1 });
        assert_eq!(
            KeyRing::parse(&format!("{good},b c:x")).unwrap_err(),
            KeyRingError::Shape { position: 2 }
        );
        assert_eq!(KeyRing::parse("a:c2hvcnQ=").unwrap_err(), KeyRingError::Material { id: "a".into() });
        assert_eq!(
            KeyRing::parse(&format!("{good},{good}")).unwrap_err(),
            KeyRingError::Duplicate { id: "a".into() }
        );
    }

    #[test]
    fn debug_of_a_ring_shows_ids_alone() {
        let (ring, text) = ring(&["k1", "k2"]);
        assert_eq!(format!("{ring:?}"), r#"["k1", "k2"]"#);
        assert!(!format!("{ring:?}").contains(text.split(':').nth(1).unwrap()));
    }

    #[test]
    fn a_fingerprint_tells_secrets_apart_and_does_not_contain_them() {
        let one = fingerprint(&"refresh-1".into());
        assert_eq!(one.len(), 32);
        assert_eq!(one, fingerprint(&"refresh-1".into()));
        assert_ne!(one, fingerprint(&"refresh-2".into()));
    }
}
