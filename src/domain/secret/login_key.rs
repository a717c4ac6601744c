//! The key pairs that login flows seal a `token.store` to. Each comes from an encryption key, so there is no second key to manage:
//! a login that was sealed to an older key opens for as long as that key is in the ring.

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{KEY_LEN, KeyRing};
use crate::domain::sealed_box::SecretKey;

/// Keeps the derived key apart from everything else that the encryption key is used for.
const LABEL: &[u8] = b"tokenkeeper: X25519 key for sealed token.store, version 1";

/// The most keys that are tried for one login. Each costs two multiplications on the curve, and whoever may publish can ask for
/// that. Behind so many keys a login opens only if it names its key.
const MOST_TRIED: usize = 8;

/// Why a sealed login was not opened.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LoginNotOpened {
    #[error(
        "this worker does not have the key that `key_id` names; `tokenkeeper keys public` prints the present one"
    )]
    UnknownKey,
    #[error("no key of this worker opens it; `tokenkeeper keys public` prints the key to seal it to")]
    NotOurs,
}

impl KeyRing {
    /// Opens what was sealed to [`RingKey::login_public_key`](super::RingKey::login_public_key) of a key of the ring.
    /// `key_id`: which key it was, if the publisher says.
    ///
    /// # Errors
    /// [`LoginNotOpened`]
    pub fn open_login(
        &self,
        key_id: Option<&str>,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, LoginNotOpened> {
        if let Some(key_id) = key_id {
            let key = self.key(key_id).map_err(|_| LoginNotOpened::UnknownKey)?;
            return key.login_key.open(sealed).ok_or(LoginNotOpened::NotOurs);
        }
        let mut tried = self.keys.iter().take(MOST_TRIED);
        tried.find_map(|key| key.login_key.open(sealed)).ok_or(LoginNotOpened::NotOurs)
    }
}

/// HKDF-SHA256 (RFC 5869). The encryption key is random, so it needs no salt.
#[allow(clippy::expect_used, reason = "32 bytes are far below the limit of HKDF")]
pub(super) fn login_key(key: &[u8; KEY_LEN]) -> SecretKey {
    let mut derived = Zeroizing::new([0; KEY_LEN]);
    Hkdf::<Sha256>::new(None, key).expand(LABEL, derived.as_mut_slice()).expect("HKDF gives 32 bytes");
    SecretKey::from_bytes(&derived)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::secret::ExposeSecret;

    const CONTENT: &[u8] = b"a login";

    fn entries(count: usize) -> Vec<String> {
        (0..count)
            .map(|number| KeyRing::generate(&format!("k-{number}")).expose_secret().to_owned())
            .collect()
    }

    fn ring(entries: &[String]) -> KeyRing {
        KeyRing::parse(&entries.join(",")).unwrap()
    }

    /// Publishers keep the public key: another label, hash or curve would lock their logins out. Computed with Python's
    /// `hmac` and `PyNaCl`.
    #[test]
    fn the_public_key_of_an_encryption_key_never_changes() {
        let ring = KeyRing::parse("k-1:AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=").unwrap();
        assert_eq!(
            ring.keys()[0].login_public_key().to_string(),
            "Wx8dS+AKRkJmqpjR3GDbn573ZGSF3JwTEafXJd3KJXw="
        );
    }

    #[test]
    fn every_key_of_the_ring_opens_and_a_dropped_one_does_not() {
        let entries = entries(2);
        let (old, new) = (&entries[..1], &entries[1..]);
        let sealed = ring(old).keys()[0].login_public_key().seal(CONTENT);
        let rotated = ring(&[new, old].concat());
        for key_id in [None, Some("k-0")] {
            assert_eq!(rotated.open_login(key_id, &sealed).unwrap().as_slice(), CONTENT);
        }
        assert_eq!(rotated.open_login(Some("k-1"), &sealed).unwrap_err(), LoginNotOpened::NotOurs);
        let dropped = ring(new);
        assert_eq!(dropped.open_login(None, &sealed).unwrap_err(), LoginNotOpened::NotOurs);
        assert_eq!(dropped.open_login(Some("k-0"), &sealed).unwrap_err(), LoginNotOpened::UnknownKey);
    }

    #[test]
    fn of_a_long_ring_the_newest_keys_are_tried_and_the_others_must_be_named() {
        let ring = ring(&entries(MOST_TRIED + 1));
        let sealed_to = |place: usize| ring.keys()[place].login_public_key().seal(CONTENT);
        assert!(ring.open_login(None, &sealed_to(MOST_TRIED - 1)).is_ok());
        let oldest = sealed_to(MOST_TRIED);
        assert_eq!(ring.open_login(None, &oldest).unwrap_err(), LoginNotOpened::NotOurs);
        assert!(ring.open_login(Some("k-8"), &oldest).is_ok());
    }
}
