//! Secrets in memory, and their encryption at rest.
//!
//! Invariant 6 (docs/contract.md): no token, secret or key in logs, metrics, errors, or, in clear, in the database.
//! In memory a secret is a [`SecretString`]: `Debug` prints a placeholder, and dropping wipes it. The database gets
//! the output of [`KeyRing::seal`].

mod audit_key;
mod binding;
mod format;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod login_key;
mod ring_key;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chacha20poly1305::aead::{Aead, AeadInOut, Generate, Payload};
use chacha20poly1305::{Key, Tag};
use hmac::Mac as _;
pub use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

pub use self::audit_key::{AuditKey, MAC_LEN};
pub use self::binding::Binding;
pub use self::format::Format;
pub use self::login_key::LoginNotOpened;
pub use self::ring_key::{RingKey, Sealer};

/// Bytes of an XChaCha20 nonce (draft-irtf-cfrg-xchacha).
const NONCE_LEN: usize = 24;
const KEY_LEN: usize = 32;
const TAG_LEN: usize = 16;
/// The width of the `key_id` columns.
const KEY_ID_MAX: usize = 64;

/// The deployment's name, unless the settings have another one.
pub const DEFAULT_DEPLOYMENT: &str = "tokenkeeper";

/// The encryption keys, newest first. One seals, every one opens. The first one seals, in the newest format, unless
/// [`KeyRing::seal_with`] or [`KeyRing::seal_in`] say otherwise: a new key or format must wait until all workers can open what
/// is sealed with it (`domain/key_use.rs`).
#[derive(Clone)]
pub struct KeyRing {
    /// Shared, so that a key is in memory once.
    keys: Arc<[RingKey]>,
    /// Whose secrets these are. Part of what each secret is bound to.
    deployment: Arc<str>,
    /// Whether rows in format 1 are opened.
    accepts_format_1: bool,
    /// Clones share it, so that a process changes to another key as a whole.
    sealing: Arc<Sealing>,
}

/// How a ring seals.
#[derive(Default)]
struct Sealing {
    /// The place of the key.
    place: AtomicUsize,
    /// Whether it goes on with format 1.
    in_format_1: AtomicBool,
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
    /// It is in format 1, which the settings refuse.
    #[error(
        "it is encrypted with key `{0}` in format 1, which is refused here (encryption.accept_format_1); `tokenkeeper keys rotate` \
         rewrites such rows"
    )]
    Format1(String),
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
            keys.push(RingKey::new(id, key));
        }
        if keys.is_empty() {
            return Err(KeyRingError::Empty);
        }
        let deployment = DEFAULT_DEPLOYMENT.into();
        Ok(Self { keys: keys.into(), deployment, accepts_format_1: false, sealing: Arc::default() })
    }

    /// The same keys for this deployment. `accepts_format_1`: whether rows in format 1 are opened.
    #[must_use]
    pub fn of_deployment(self, deployment: &str, accepts_format_1: bool) -> Self {
        Self { deployment: deployment.into(), accepts_format_1, ..self }
    }

    /// Returns a new entry for the setting `encryption.keys`: `id:base64` with 32 random bytes.
    pub fn generate(id: &str) -> SecretString {
        let key: Zeroizing<[u8; KEY_LEN]> = Zeroizing::new(Key::generate().into());
        format!("{id}:{}", BASE64.encode(key.as_slice())).into()
    }

    /// Every key, in the order of the setting.
    pub fn keys(&self) -> &[RingKey] {
        &self.keys
    }

    /// The first key of the setting.
    pub fn newest(&self) -> &RingKey {
        &self.keys[0]
    }

    /// Whose secrets these are.
    pub fn deployment(&self) -> &str {
        &self.deployment
    }

    /// Whether rows in format 1 are opened. Where they are not, none is written.
    pub const fn accepts_format_1(&self) -> bool {
        self.accepts_format_1
    }

    /// The key that seals now.
    pub fn sealing_key(&self) -> &RingKey {
        &self.keys[self.sealing.place.load(Ordering::SeqCst)]
    }

    /// How it seals now. Parts that are opened together are sealed by one call's sealer.
    pub fn sealer(&self) -> Sealer<'_> {
        self.sealer_of(self.sealing_key(), self.sealing_format())
    }

    /// Seals with this key of the ring, in this format.
    pub fn sealer_of<'a>(&'a self, key: &'a RingKey, format: Format) -> Sealer<'a> {
        Sealer { key, format, deployment: &self.deployment }
    }

    /// The format that it seals in now.
    pub fn sealing_format(&self) -> Format {
        if self.sealing.in_format_1.load(Ordering::SeqCst) { Format::One } else { Format::Two }
    }

    /// From here on the key at this place of [`KeyRing::keys`] seals, in every clone. There must be one.
    pub fn seal_with(&self, place: usize) {
        debug_assert!(place < self.keys.len(), "there is a key at this place");
        self.sealing.place.store(place.min(self.keys.len() - 1), Ordering::SeqCst);
    }

    /// From here on every clone seals in this format.
    pub fn seal_in(&self, format: Format) {
        self.sealing.in_format_1.store(format == Format::One, Ordering::SeqCst);
    }

    /// As [`Sealer::seal`], with the key that seals now.
    pub fn seal(&self, secret: &SecretString, bound_to: Binding) -> Sealed {
        self.sealer().seal(secret, bound_to)
    }

    /// Decrypts what [`KeyRing::seal`] made for the same `bound_to`.
    ///
    /// # Errors
    /// [`OpenError`]: the key is missing, the bytes are not what was sealed for this place, or format 1 is refused.
    pub fn open(&self, key_id: &str, sealed: &[u8], bound_to: Binding) -> Result<SecretString, OpenError> {
        let key = self.key(key_id)?;
        let tampered = || OpenError::Tampered(key_id.into());
        let (aad, rest) = self.associated_data(key_id, sealed, bound_to)?;
        let (nonce, ciphertext) = rest.split_first_chunk::<NONCE_LEN>().ok_or_else(tampered)?;
        let payload = Payload { msg: ciphertext, aad: &aad };
        let plain = key.cipher.decrypt(nonce.into(), payload).map_err(|_| tampered())?;
        let text = String::from_utf8(plain).map_err(|_| tampered())?;
        Ok(text.into())
    }

    /// Encrypts a body in place with the key that seals now. Returns the key's id and the seal that opens the body again. `bound_to`:
    /// as in [`KeyRing::seal`].
    pub fn seal_body(&self, body: &mut [u8], bound_to: Binding) -> (&str, BodySeal) {
        let sealer = self.sealer();
        (sealer.key().id(), sealer.seal_body(body, bound_to))
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
        bound_to: Binding,
    ) -> Result<(), OpenError> {
        let key = self.key(key_id)?;
        let tampered = || OpenError::Tampered(key_id.into());
        let (aad, rest) = self.associated_data(key_id, seal, bound_to)?;
        let (nonce, tag) = rest.split_first_chunk::<NONCE_LEN>().ok_or_else(tampered)?;
        let tag = <&[u8; TAG_LEN]>::try_from(tag).map_err(|_| tampered())?;
        key.cipher
            .decrypt_inout_detached(nonce.into(), &aad, body.into(), <&Tag>::from(tag))
            .map_err(|_| tampered())
    }

    /// A code (HMAC-SHA256) that nobody makes for these values without the key.
    ///
    /// # Errors
    /// [`OpenError::UnknownKey`].
    pub fn mac(&self, key_id: &str, of: Binding) -> Result<Vec<u8>, OpenError> {
        let mac = self.key(key_id)?.mac(of, &self.deployment);
        Ok(mac.finalize().into_bytes().to_vec())
    }

    /// Checks a code of [`KeyRing::mac`], in a time that does not tell how much of it is right.
    ///
    /// # Errors
    /// [`OpenError`]: the key is missing, or it is the code of other values.
    pub fn check_mac(&self, key_id: &str, code: &[u8], of: Binding) -> Result<(), OpenError> {
        let mac = self.key(key_id)?.mac(of, &self.deployment);
        mac.verify_slice(code).map_err(|_| OpenError::Tampered(key_id.into()))
    }

    /// The associated data of a sealed secret, and what follows the byte of its format.
    fn associated_data<'a>(
        &self,
        key_id: &str,
        sealed: &'a [u8],
        bound_to: Binding,
    ) -> Result<(Vec<u8>, &'a [u8]), OpenError> {
        let tampered = || OpenError::Tampered(key_id.into());
        let format = Format::of(sealed).ok_or_else(tampered)?;
        if format == Format::One && !self.accepts_format_1 && !bound_to.is_always_read() {
            return Err(OpenError::Format1(key_id.into()));
        }
        let aad = bound_to.associated_data(format, &self.deployment).ok_or_else(tampered)?;
        Ok((aad, sealed.get(1..).unwrap_or_default()))
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
mod tests;
