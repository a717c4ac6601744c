use crypto_box::SalsaBox;
use crypto_box::aead::Aead;
use crypto_box::aead::rand_core::{CryptoRng, Error, RngCore};

use super::*;

/// The secret key of the recipient in the known answers, and its public key as libsodium computes it.
const SECRET: [u8; KEY_LEN] = counting_from(1);
const PUBLIC: &str = "B6N8vBQgk8i3VdwbEOhstCY3StFqqFPtC9/AsrhtHHw=";
const CONTENT: &[u8] = br#"{"value":"s3cret"}"#;

const fn counting_from(first: u8) -> [u8; KEY_LEN] {
    let mut bytes = [first; KEY_LEN];
    let mut place = 1;
    while place < KEY_LEN {
        bytes[place] = bytes[place - 1] + 1;
        place += 1;
    }
    bytes
}

fn public(text: &str) -> Result<PublicKey, &'static str> {
    PublicKey::try_from(Cow::Borrowed(text))
}

/// Chance that gives these bytes and no others.
struct Fixed([u8; KEY_LEN]);

impl RngCore for Fixed {
    fn next_u32(&mut self) -> u32 {
        unreachable!("a key is filled")
    }

    fn next_u64(&mut self) -> u64 {
        unreachable!("a key is filled")
    }

    fn fill_bytes(&mut self, to: &mut [u8]) {
        to.copy_from_slice(&self.0);
    }

    fn try_fill_bytes(&mut self, to: &mut [u8]) -> Result<(), Error> {
        self.fill_bytes(to);
        Ok(())
    }
}

impl CryptoRng for Fixed {}

/// Made by `nacl.public.SealedBox` of `PyNaCl` 1.6.2.
#[test]
fn a_box_that_libsodium_sealed_opens() {
    let sealed = "PQfNWLILvE03sF5yvNKK++FTUryHw8j9xJvGGmK1l3SS+kRpg5hYD+SkveLt8f1ZfFLPQPd2F7HRBdC6A2YRT5hK";
    let key = SecretKey::from_bytes(&SECRET);
    assert_eq!(key.public_key().to_string(), PUBLIC);
    let opened = key.open(&BASE64.decode(sealed).unwrap()).expect("it opens");
    assert_eq!(opened.as_slice(), CONTENT);
}

/// The expected box comes from libsodium's `crypto_box` and `BLAKE2b` with the same two key pairs; its `SealedBox` opens it.
#[test]
fn a_box_is_byte_for_byte_what_libsodium_makes_with_the_same_key_pairs() {
    let expected = "VxR2nRFr92Q2rnS8eT0sMK0ZA8WaxSc4BcfiaYtBDDYHbQHVeIGvmHNwLb3zWC2CWrxVA29w+SQg3kiAqgXbh9QQ";
    let sealed = public(PUBLIC).unwrap().seal_with(&mut Fixed(counting_from(101)), CONTENT);
    assert_eq!(BASE64.encode(&sealed), expected);
    assert_eq!(sealed.len(), CONTENT.len() + OVERHEAD);
}

#[test]
fn only_the_key_that_it_was_sealed_to_opens_a_box_and_only_if_it_is_whole() {
    let key = SecretKey::generate();
    let sealed = key.public_key().seal(CONTENT);
    assert_eq!(key.open(&sealed).expect("it opens").as_slice(), CONTENT);
    assert_ne!(sealed, key.public_key().seal(CONTENT), "each box has a key pair of its own");
    assert!(SecretKey::generate().open(&sealed).is_none(), "another key");
    for place in 0..sealed.len() {
        assert!(key.open(&sealed[..place]).is_none(), "cut at {place}");
        let mut changed = sealed.clone();
        changed[place] ^= 1;
        assert!(key.open(&changed).is_none(), "byte {place} changed");
    }
}

#[test]
fn a_key_of_low_order_is_refused_because_everybody_opens_what_is_sealed_to_it() {
    for bytes in LOW_ORDER {
        for highest_bit in [0, 0x80] {
            let mut bytes = bytes;
            bytes[KEY_LEN - 1] |= highest_bit;
            let refused = public(&BASE64.encode(bytes)).unwrap_err();
            assert!(refused.contains("low order"), "{bytes:?}: {refused}");
            // Two strangers share a secret with it, and so with everybody.
            let shared =
                |secret| SalsaBox::new(&bytes.into(), &crypto_box::SecretKey::from(counting_from(secret)));
            let sealed = shared(1).encrypt(&[0; 24].into(), CONTENT).unwrap();
            assert_eq!(shared(2).decrypt(&[0; 24].into(), sealed.as_slice()).unwrap(), CONTENT, "{bytes:?}");
        }
    }
}

#[test]
fn what_is_no_public_key_is_refused() {
    let good = SecretKey::generate().public_key().to_string();
    assert_eq!(public(&good).unwrap().to_string(), good);
    for wrong in [
        "",
        "key",
        &good[..43],
        &good[1..],
        &format!("{good}AAAA"),
        &format!(" {good}"),
        &"A".repeat(44),
        &BASE64.encode([9; 31]),
        &BASE64.encode([9; 33]),
        &"9".repeat(100_000),
    ] {
        let refused = public(wrong).unwrap_err();
        assert!(refused.contains("32 bytes in base64"), "{refused}");
    }
}

#[test]
fn no_key_is_shown() {
    let key = SecretKey::generate();
    assert_eq!(format!("{key:?} {:?}", key.public_key()), "[REDACTED] PublicKey");
}
