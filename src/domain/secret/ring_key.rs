//! One key of the ring.

use chacha20poly1305::aead::{Aead, Generate, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use sha2::{Digest, Sha256};

use super::login_key::login_key;
use super::{AuditKey, ExposeSecret, FORMAT, KEY_LEN, NONCE_LEN, Sealed, SecretString};
use crate::domain::sealed_box::{PublicKey, SecretKey};

/// An encryption key and its id.
#[derive(Clone)]
pub struct RingKey {
    pub(super) id: String,
    check: String,
    audit: AuditKey,
    pub(super) cipher: XChaCha20Poly1305,
    /// Opens the logins that are sealed to this key.
    pub(super) login_key: SecretKey,
}

impl RingKey {
    pub(super) fn new(id: &str, key: &[u8; KEY_LEN]) -> Self {
        let digest = Sha256::new_with_prefix(b"tokenkeeper key check").chain_update(key).finalize();
        let check = format!("{:016x}", u64::from_be_bytes(*digest.0.first_chunk().unwrap_or(&[0; 8])));
        Self {
            id: id.to_owned(),
            check,
            audit: AuditKey::new(id, key),
            cipher: XChaCha20Poly1305::new(key.into()),
            login_key: login_key(key),
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

    /// Encrypts `secret`. `bound_to` names its place (table, column, row). Only the same `bound_to` opens it, so a ciphertext
    /// copied into another row is worthless.
    #[allow(clippy::expect_used, clippy::missing_panics_doc, reason = "the cipher refuses only over 256 GiB")]
    pub fn seal(&self, secret: &SecretString, bound_to: &str) -> Sealed {
        let nonce = XNonce::generate();
        let payload = Payload { msg: secret.expose_secret().as_bytes(), aad: bound_to.as_bytes() };
        let ciphertext = self.cipher.encrypt(&nonce, payload).expect("a token is shorter than 256 GiB");
        let mut bytes = Vec::with_capacity(1 + NONCE_LEN + ciphertext.len());
        bytes.push(FORMAT);
        bytes.extend_from_slice(&nonce);
        bytes.extend_from_slice(&ciphertext);
        Sealed { key_id: self.id.clone(), bytes }
    }
}
