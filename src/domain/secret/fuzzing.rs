//! Fuzzing: whatever is changed, nothing opens but what was sealed.

#![allow(clippy::missing_panics_doc, reason = "to panic is how a fuzzer reports")]

use super::{Binding, ExposeSecret, KeyRing, SecretString};

/// Stands for a secret in inputs. It has digits between its letters, so that it is no word of ours by chance.
pub(crate) const MARK: &str = "s3cr3t";

/// Panics where a text for operators holds this secret.
pub(crate) fn assert_untold(text: &str, secret: &str) {
    assert!(!text.contains(secret), "it tells a secret: {text}");
}

/// The ring that all inputs are sealed with. Its key is fixed, so that an input means the same in every run.
#[allow(clippy::expect_used, reason = "the text is a key ring")]
pub(crate) fn ring() -> KeyRing {
    KeyRing::parse("fuzz:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").expect("a key ring")
}

fn at(place: &str) -> Binding {
    Binding::new("fuzz", place)
}

/// The input is: which byte is changed, how, and a text. The text is sealed, taken for a sealed one, and read as a key ring.
pub fn ciphertexts(input: &[u8]) {
    let ring = ring();
    let [place, change, text @ ..] = input else { return };
    assert!(ring.open("fuzz", text, at("here")).is_err(), "nobody sealed this");
    let text = String::from_utf8_lossy(text);
    a_key_ring(&text);
    let secret = SecretString::from(text.as_ref());
    let sealed = ring.seal(&secret, at("here"));
    assert!(sealed.bytes.len() >= text.len() + 40, "nonce and tag");
    let opened =
        ring.open(&sealed.key_id, &sealed.bytes, at("here")).map(|opened| opened.expose_secret().to_owned());
    assert_eq!(opened.as_deref(), Ok(&*text));
    assert!(ring.open(&sealed.key_id, &sealed.bytes, at("there")).is_err(), "it was moved");
    let mut changed = sealed.bytes;
    let place = usize::from(*place) * changed.len() / 256;
    changed[place] ^= (*change).max(1);
    assert!(ring.open(&sealed.key_id, &changed, at("here")).is_err(), "byte {place} was changed");
    changed.truncate(place);
    assert!(ring.open(&sealed.key_id, &changed, at("here")).is_err(), "it was cut off");
    a_body(&ring, text.as_bytes(), place, *change);
}

fn a_body(ring: &KeyRing, body: &[u8], place: usize, change: u8) {
    let mut sealed = body.to_vec();
    let (key_id, mut seal) = ring.seal_body(&mut sealed, at("here"));
    let mut opened = sealed.clone();
    assert_eq!(ring.open_body(key_id, &seal, &mut opened, at("here")), Ok(()));
    assert_eq!(opened, body);
    let place = place % (seal.len() + sealed.len());
    match sealed.get_mut(place.wrapping_sub(seal.len())) {
        Some(byte) => *byte ^= change.max(1),
        None => seal[place] ^= change.max(1),
    }
    assert!(ring.open_body(key_id, &seal, &mut sealed, at("here")).is_err(), "byte {place} was changed");
}

/// Which entries a ring has is no secret, their material is.
fn a_key_ring(text: &str) {
    let told = match KeyRing::parse(text) {
        Ok(ring) => format!("{ring:?}"),
        Err(error) => format!("{error} {error:?}"),
    };
    let materials =
        text.split(',').filter_map(|entry| entry.split_once(':')).map(|(_, material)| material.trim());
    let ids: Vec<&str> =
        text.split(',').filter_map(|entry| entry.split_once(':')).map(|(id, _)| id).collect();
    for material in materials.filter(|material| material.contains(MARK)) {
        if !ids.iter().any(|id| id.contains(MARK)) {
            assert_untold(&told, material);
        }
    }
}
