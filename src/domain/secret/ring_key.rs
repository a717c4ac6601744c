//! One key of the ring, and what it makes: ciphertexts and codes.

use chacha20poly1305::aead::{Aead, AeadInOut, Generate, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

use super::login_key::login_key;
use super::{
    AuditKey, Binding, BodySeal, ExposeSecret, Format, KEY_LEN, NONCE_LEN, Sealed, SecretString, TAG_LEN,
};
use crate::domain::sealed_box::{PublicKey, SecretKey};

/// Separates the key of codes from the key of the cipher.
const MAC_KEY: &[u8] = b"tokenkeeper message authentication\x01";

/// An encryption key and its id.
#[derive(Clone)]
pub struct RingKey {
    pub(super) id: String,
    check: String,
    audit: AuditKey,
    pub(super) cipher: XChaCha20Poly1305,
    /// Opens the logins that are sealed to this key.
    pub(super) login_key: SecretKey,
    mac: Hmac<Sha256>,
}

impl RingKey {
    #[allow(clippy::expect_used, reason = "HMAC takes a key of any length")]
    pub(super) fn new(id: &str, key: &[u8; KEY_LEN]) -> Self {
        let digest = Sha256::new_with_prefix(b"tokenkeeper key check").chain_update(key).finalize();
        let check = format!("{:016x}", u64::from_be_bytes(*digest.0.first_chunk().unwrap_or(&[0; 8])));
        let hmac = |key: &[u8]| <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("any length");
        // HKDF-Expand (RFC 5869, section 2.3) of one block: the key is random already, so nothing is to be extracted.
        let mac_key = hmac(key).chain_update(MAC_KEY).finalize().into_bytes();
        Self {
            id: id.to_owned(),
            check,
            audit: AuditKey::new(id, key),
            cipher: XChaCha20Poly1305::new(key.into()),
            login_key: login_key(key),
            mac: hmac(mac_key.as_slice()),
        }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// 64 bits of a digest of the key, in hex. Tells keys of the same id apart, and reveals nothing of a random key.
    pub fn check(&self) -> &str {
        &self.check
    }

    /// The subkey that chains the lines of an audit log.
    pub const fn audit_key(&self) -> &AuditKey {
        &self.audit
    }

    /// What a login flow seals a `token.store` to, so that the broker cannot read it.
    pub fn login_public_key(&self) -> PublicKey {
        self.login_key.public_key()
    }

    pub(super) fn mac(&self, of: Binding, deployment: &str) -> Hmac<Sha256> {
        let text = of.associated_data(Format::NEWEST, deployment).unwrap_or_default();
        self.mac.clone().chain_update(text)
    }
}

/// A key with a format: what is opened together is sealed by one of these.
#[derive(Clone, Copy)]
pub struct Sealer<'a> {
    pub(super) key: &'a RingKey,
    pub(super) format: Format,
    pub(super) deployment: &'a str,
}

impl<'a> Sealer<'a> {
    pub const fn key(&self) -> &'a RingKey {
        self.key
    }

    pub const fn format(&self) -> Format {
        self.format
    }

    pub const fn deployment(&self) -> &'a str {
        self.deployment
    }

    /// Encrypts `secret`. Only the same binding opens it, so a ciphertext that is copied into another row, or whose row is
    /// changed, is worthless.
    #[allow(clippy::expect_used, clippy::missing_panics_doc, reason = "the cipher refuses only over 256 GiB")]
    pub fn seal(&self, secret: &SecretString, bound_to: Binding) -> Sealed {
        let (format, aad) = self.associated_data(bound_to);
        let nonce = XNonce::generate();
        let payload = Payload { msg: secret.expose_secret().as_bytes(), aad: &aad };
        let ciphertext = self.key.cipher.encrypt(&nonce, payload).expect("a token is shorter than 256 GiB");
        let mut bytes = Vec::with_capacity(1 + NONCE_LEN + ciphertext.len());
        bytes.push(format.byte());
        bytes.extend_from_slice(&nonce);
        bytes.extend_from_slice(&ciphertext);
        Sealed { key_id: self.key.id.clone(), bytes }
    }

    /// Encrypts a body in place, and returns the seal that opens it again.
    #[allow(clippy::expect_used, reason = "the cipher refuses only over 256 GiB")]
    pub(super) fn seal_body(&self, body: &mut [u8], bound_to: Binding) -> BodySeal {
        let (format, aad) = self.associated_data(bound_to);
        let nonce = XNonce::generate();
        let tag = self
            .key
            .cipher
            .encrypt_inout_detached(&nonce, &aad, body.into())
            .expect("it is shorter than 256 GiB");
        let mut seal = [format.byte(); 1 + NONCE_LEN + TAG_LEN];
        seal[1..=NONCE_LEN].copy_from_slice(&nonce);
        seal[1 + NONCE_LEN..].copy_from_slice(&tag);
        seal
    }

    fn associated_data(&self, bound_to: Binding) -> (Format, Vec<u8>) {
        let format = bound_to.format(self.format);
        (format, bound_to.associated_data(format, self.deployment).unwrap_or_default())
    }
}
